"""Published files of ResShift in every variant, rebuilt with random weights in the published layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.weights import CheckpointError
from fewstep.restoration.converters.resshift import (
    from_official,
    steps_in_name,
    variant,
)
from fewstep.restoration.methods.resshift import ResShift, ResShiftConfig
from fewstep.restoration.nets.unet_swin import UNetModelSwin
from fewstep.restoration.nets.vq import VQModel

# The released architecture, narrow.
SWIN = {
    "image_size": 64,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "attention_resolutions": [64, 32, 16, 8],
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 2, 2, 4],
    "num_head_channels": 16,
    "swin_depth": 2,
    "swin_embed_dim": 32,
    "window_size": 8,
    "mlp_ratio": 4,
    "cond_lq": True,
    "cond_mask": False,
    "lq_size": 64,
}
F4 = {
    "in_channels": 3,
    "ch": 32,
    "ch_mult": [1, 2, 4],
    "num_res_blocks": [2, 2, 2],
    "z_channels": 3,
    "embed_dim": 3,
    "n_embed": 16,
}
F8 = F4 | {"ch_mult": [1, 2, 4, 8], "num_res_blocks": [1, 2, 3, 4], "z_channels": 8, "embed_dim": 8}
INPAINTING = SWIN | {"cond_mask": True, "lq_size": 256}
FACE = SWIN | {"in_channels": 8, "out_channels": 8, "lq_size": 512}
VARIANTS = {
    "super-resolution": (SWIN, F4, 4, 64),
    "inpainting": (INPAINTING, F4, 1, 256),
    "restoration": (FACE, F8, 1, 512),
}


# Layers with shifted windows of the released architecture, and the side of the maps they were trained on.
SHIFTED = {
    "input_blocks.1": 64,
    "input_blocks.4": 32,
    "input_blocks.7": 16,
    "output_blocks.3": 16,
    "output_blocks.6": 32,
    "output_blocks.9": 64,
}


def published_state(net: torch.nn.Module) -> dict[str, Tensor]:
    """Random weights for a network, with the buffers that the published files hold besides."""
    state = {name: torch.randn_like(value) for name, value in net.state_dict().items()}
    tables = [name for name in state if name.endswith("relative_position_bias_table")]
    for name in tables:
        state[name.replace("bias_table", "index")] = torch.zeros(64, 64, dtype=torch.int64)
    if tables:
        for layer, side in SHIFTED.items():
            state[f"{layer}.1.blocks.1.attn_mask"] = torch.zeros((side // 8) ** 2, 64, 64)
    return state


@pytest.fixture(scope="module")
def states() -> dict[str, tuple[dict[str, Tensor], dict[str, Tensor]]]:
    torch.manual_seed(0)
    return {
        name: (published_state(UNetModelSwin(**swin)), published_state(VQModel(**vq)))
        for name, (swin, vq, _, _) in VARIANTS.items()
    }


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_recognised_and_loaded(name, states, tmp_path):
    swin, vq, scale, padding = VARIANTS[name]
    network, first_stage = states[name]
    torch.save(network, tmp_path / "net.pth")
    torch.save({"state_dict": first_stage | {"loss.logvar": torch.zeros(())}}, tmp_path / "ae.pth")
    model = from_official(tmp_path / "net.pth", tmp_path / "ae.pth")
    assert model.config == ResShiftConfig(
        scale=scale, padding=padding, network_options=swin, first_stage_options=vq
    )
    assert variant(model.config) == name
    assert not model.training
    for module, state in ((model.net, network), (model.first_stage, first_stage)):
        for key, value in module.state_dict().items():
            assert torch.equal(value, state[key]), key


def test_restores_and_goes_to_our_own_format(states, tmp_path):
    network, first_stage = states["super-resolution"]
    save_file(network, tmp_path / "net.safetensors")
    save_file(first_stage, tmp_path / "ae.safetensors")
    model = from_official(tmp_path / "net.safetensors", tmp_path / "ae.safetensors")
    model.save_pretrained(tmp_path / "ours")
    ours = ResShift.from_pretrained(tmp_path / "ours")
    lq = torch.rand(1, 3, 20, 30) * 2 - 1
    assert ours.restore(lq, mode="mean").shape == (1, 3, 80, 120)
    assert torch.equal(ours.net.state_dict()["out.2.bias"], network["out.2.bias"])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_removed(prefix, states, tmp_path):
    network, first_stage = states["super-resolution"]
    torch.save({prefix + key: value for key, value in network.items()}, tmp_path / "net.pth")
    torch.save({prefix + key: value for key, value in first_stage.items()}, tmp_path / "ae.pth")
    model = from_official(tmp_path / "net.pth", tmp_path / "ae.pth")
    assert torch.equal(model.net.state_dict()["out.2.bias"], network["out.2.bias"])


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("resshift_realsrx4_s15_v2.pth", None, (15, 0.04)),
        ("resshift_realsrx4_s4_v3.pth", None, (4, 0.2)),
        ("resshift_inpainting_face_s4.pth", None, (4, 0.2)),
        ("renamed.pth", None, (4, 0.2)),
        ("renamed.pth", 15, (15, 0.04)),
        ("resshift_realsrx4_s15_v1.pth", 4, (4, 0.2)),
    ],
)
def test_steps_come_from_the_argument_or_the_published_name(name, given, expected, states, tmp_path):
    network, first_stage = states["super-resolution"]
    torch.save(network, tmp_path / name)
    torch.save(first_stage, tmp_path / "ae.pth")
    model = from_official(tmp_path / name, tmp_path / "ae.pth", steps=given)
    assert (model.config.steps, model.config.min_noise_level) == expected


def test_unusual_steps_need_their_noise(states, tmp_path):
    network, first_stage = states["super-resolution"]
    torch.save(network, tmp_path / "net.pth")
    torch.save(first_stage, tmp_path / "ae.pth")
    files = tmp_path / "net.pth", tmp_path / "ae.pth"
    with pytest.raises(ValueError, match=r"min_noise_level must be given for 8 steps; .*\[4, 15\]"):
        from_official(*files, steps=8)
    assert from_official(*files, steps=8, min_noise_level=0.1).config.min_noise_level == 0.1


def test_steps_are_not_read_into_other_names():
    assert steps_in_name(Path("a_s15/net.pth")) is None
    assert steps_in_name("autoencoder_vq_f4.pth") is None
    assert steps_in_name("resshift_bicsrx4_s4") == 4


def test_a_file_of_something_else_is_refused(states, tmp_path):
    network, first_stage = states["super-resolution"]
    torch.save(network, tmp_path / "net.pth")
    torch.save(first_stage, tmp_path / "ae.pth")
    net, ae = tmp_path / "net.pth", tmp_path / "ae.pth"
    with pytest.raises(
        CheckpointError, match=r"ae.pth is not a ResShift network: it has no time_embed.0.weight"
    ):
        from_official(ae, ae)
    with pytest.raises(
        CheckpointError, match=r"net.pth is not a VQ autoencoder: it has no encoder.conv_in.weight"
    ):
        from_official(net, net)
    with pytest.raises(CheckpointError, match="is not a file"):
        from_official(tmp_path / "none.pth", ae)


def test_a_missing_or_additional_weight_is_named(states, tmp_path):
    network, first_stage = states["super-resolution"]
    torch.save(first_stage, tmp_path / "ae.pth")
    torch.save({k: v for k, v in network.items() if k != "out.2.bias"}, tmp_path / "short.pth")
    torch.save(network | {"extra.weight": torch.zeros(1)}, tmp_path / "long.pth")
    for name, key in (("short", "out.2.bias"), ("long", "extra.weight")):
        with pytest.raises(CheckpointError, match=rf"{name}.pth does not fit UNetModelSwin: .*{key}"):
            from_official(tmp_path / f"{name}.pth", tmp_path / "ae.pth")


def test_an_autoencoder_of_another_model_is_refused(states, tmp_path):
    torch.save(states["restoration"][0], tmp_path / "face.pth")
    torch.save(states["super-resolution"][1], tmp_path / "f4.pth")
    with pytest.raises(CheckpointError, match=r"latents of 8 channels, but those of .*f4\.pth have 3"):
        from_official(tmp_path / "face.pth", tmp_path / "f4.pth")


def test_files_that_hold_code_are_not_run(states, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": Trap()}, tmp_path / "net.pth")
    with pytest.raises(CheckpointError):
        from_official(tmp_path / "net.pth", tmp_path / "net.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_released_size(tmp_path):
    """A file of the released size: 118.6 million parameters and 55.3 million of the autoencoder."""
    network, first_stage = UNetModelSwin(), VQModel()
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 118.6
    assert round(sum(p.numel() for p in first_stage.parameters()) / 1e6, 1) == 55.3
    state = published_state(network)
    torch.save({"state_dict": state}, tmp_path / "resshift_realsrx4_s15_v2.pth")
    torch.save(first_stage.state_dict(), tmp_path / "autoencoder_vq_f4.pth")
    model = from_official(tmp_path / "resshift_realsrx4_s15_v2.pth", tmp_path / "autoencoder_vq_f4.pth")
    released = SWIN | {"model_channels": 160, "swin_embed_dim": 192, "num_head_channels": 32}
    assert model.config == ResShiftConfig(
        steps=15,
        min_noise_level=0.04,
        network_options=released,
        first_stage_options=F4 | {"ch": 128, "n_embed": 8192},
    )
    assert torch.equal(model.net.state_dict()["out.2.weight"], state["out.2.weight"])
