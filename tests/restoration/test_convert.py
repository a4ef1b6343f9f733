"""Published files of every system, told apart: each by its own converter and by no other."""

import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from fewstep.core.weights import CheckpointError
from fewstep.restoration.cli import app
from fewstep.restoration.convert import SYSTEMS, from_official, recognised
from fewstep.restoration.converters.official import Official
from fewstep.restoration.methods.loading import load_model
from fewstep.restoration.nets.conditional_nafnet import ConditionalNAFNet
from fewstep.restoration.nets.conditional_unet import ConditionalUNet
from fewstep.restoration.nets.ddim_unet import DDIMUnet
from fewstep.restoration.nets.guided_unet import GuidedUNet
from fewstep.restoration.nets.rddm_unet import RDDMUnet
from fewstep.restoration.nets.refusion_autoencoder import RefusionAutoencoder
from fewstep.restoration.nets.unet_res import unet_res
from fewstep.restoration.nets.unet_swin import UNetModelSwin
from fewstep.restoration.nets.vq import VQModel

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration"
NAFNET = {"width": 8, "enc_blk_nums": [1, 1], "middle_blk_num": 1, "dec_blk_nums": [1, 1]}
SWIN = {
    "model_channels": 32,
    "num_head_channels": 16,
    "swin_embed_dim": 32,
    "channel_mult": [1, 1, 1, 1],
    "num_res_blocks": [1, 1, 1, 1],
}
VQ = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "n_embed": 8}
GUIDED = {
    "model_channels": 32,
    "channel_mult": (1, 1),
    "attention_downsampling": (2,),
    "head_channels": 16,
    "num_res_blocks": 1,
}


def unet(share: int) -> dict[str, Tensor]:
    return unet_res(
        dim=8, dim_mults=[1, 2], channels=3, condition_channels=3, share_encoder=share
    ).state_dict()


def idm() -> dict[str, Tensor]:
    tensors = load_file(GOLDEN / "idm_net.safetensors")
    return {name[3:]: value.float() for name, value in tensors.items() if name.startswith("sd.")}


# (system, class of our model, weights, what they do not say).
FILES = {
    "ResShift": ("ResShift", "ResShift", lambda: UNetModelSwin(**SWIN).state_dict(), {}),
    "RDDM, two networks": ("RDDM", "RDDM", lambda: unet(0), {}),
    "RDDM, shared encoder": ("RDDM", "RDDM", lambda: unet(1), {}),
    "RDDM, one network": ("RDDM", "RDDM", lambda: unet(-1), {}),
    "Resfusion, RDDM's": (
        "Resfusion",
        "Resfusion",
        lambda: RDDMUnet(8, (1, 2), condition_channels=3).state_dict(),
        {},
    ),
    "Resfusion, DDIM's": (
        "Resfusion",
        "Resfusion",
        lambda: DDIMUnet(16, ch=32, ch_mult=(1, 1), num_res_blocks=1, condition_channels=3).state_dict(),
        {},
    ),
    "IR-SDE": (
        "IR-SDE or Refusion",
        "IRSDE",
        lambda: ConditionalUNet(nf=8, depth=1).state_dict(),
        {"max_sigma": 10},
    ),
    "IR-SDE, denoiser": (
        "IR-SDE or Refusion",
        "DenoisingSDE",
        lambda: ConditionalUNet(nf=8, depth=1, conditional=False, middle="full").state_dict(),
        {},
    ),
    "Refusion": ("IR-SDE or Refusion", "IRSDE", lambda: ConditionalNAFNet(**NAFNET).state_dict(), {}),
    "OFTSR": ("OFTSR", "OFTSR", lambda: GuidedUNet(**GUIDED).state_dict(), {"head_channels": 16}),
    "IDM": ("IDM", "IDM", idm, {"ratio": 0.25, "block": 8, "heads": 2, "groups": 8}),
}
PREFIXED = {
    "none": lambda state: state,
    "parallel": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    "compiled": lambda state: {"params": {f"_orig_mod.{name}": value for name, value in state.items()}},
    "averaged": lambda state: (
        {f"online_model.{name}": value * 0 for name, value in state.items()}
        | {f"ema_model.{name}": value for name, value in state.items()}
        | {"initted": torch.ones(1)}
    ),
    "trainer": lambda state: {
        "step": 7,
        "model": {name: value * 0 for name, value in state.items()},
        "ema": dict(state),
    },
}


@cache
def weights_of(name: str) -> dict[str, Tensor]:
    return FILES[name][2]()


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("stage") / "autoencoder_vq_f4.pth"
    torch.save({"state_dict": VQModel(**VQ).state_dict()}, file)
    return file


@pytest.mark.parametrize("layout", PREFIXED)
@pytest.mark.parametrize("name", FILES)
def test_one_system_recognises_a_file(name, layout, tmp_path):
    """Whatever a trainer has put around it, and the averaged weights are those that are taken."""
    system, state = FILES[name][0], weights_of(name)
    torch.save(PREFIXED[layout](state), tmp_path / "net.pth")
    read = Official.of(tmp_path / "net.pth")
    assert [found.name for found in recognised(read.state)] == [system]
    assert read.state.keys() == state.keys()
    assert all(torch.equal(read.state[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", FILES)
def test_the_model_is_built(name, tmp_path, stage):
    _, kind, _, options = FILES[name]
    torch.save(weights_of(name), tmp_path / "net.pth")
    autoencoder = stage if name == "ResShift" else None
    model = from_official(tmp_path / "net.pth", autoencoder, **options)
    assert type(model).__name__ == kind
    assert not model.training
    model.save_pretrained(tmp_path / "ours")
    again = load_model(tmp_path / "ours").state_dict()
    assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


def test_a_list_without_names_is_of_oftsr(tmp_path):
    net = GuidedUNet(**GUIDED)
    values = [parameter.detach() for parameter in net.parameters()]
    torch.save({"ema": {"decay": 0.9999, "shadow_params": values}, "step": 4}, tmp_path / "net.pth")
    assert [found.name for found in recognised(Official.of(tmp_path / "net.pth").state)] == ["OFTSR"]
    model = from_official(tmp_path / "net.pth", network_options=GUIDED, kind="flow")
    assert torch.equal(dict(model.named_parameters())["net.out.2.weight"], values[-2])


def test_the_file_is_read_once(tmp_path, monkeypatch):
    torch.save(unet(0), tmp_path / "net.pth")
    reads, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda *args, **more: reads.append(args) or load(*args, **more))
    from_official(tmp_path / "net.pth")
    assert len(reads) == 1


def test_what_is_of_no_system_is_said(tmp_path, stage):
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    names = ", ".join(system.name for system in SYSTEMS)
    with pytest.raises(
        CheckpointError, match=f"other.pth is of none of {names}; its weights are called conv.weight"
    ):
        from_official(tmp_path / "other.pth")
    torch.save(RefusionAutoencoder(ch=8, ch_mult=(1, 2)).state_dict(), tmp_path / "stage.pth")
    for alone in (stage, tmp_path / "stage.pth"):
        with pytest.raises(CheckpointError, match="is of none of"):
            from_official(alone)
    with pytest.raises(CheckpointError, match="is not a file"):
        from_official(tmp_path / "none.pth")


def test_what_is_missing_or_too_much_is_said(tmp_path, stage):
    save_file(unet(0), tmp_path / "rddm.safetensors")
    with pytest.raises(
        TypeError, match=r"max_sigma cannot be said of .*, which is of RDDM; what can be: objective"
    ):
        from_official(tmp_path / "rddm.safetensors", max_sigma=3)
    with pytest.raises(TypeError, match="autoencoder cannot be said of"):
        from_official(tmp_path / "rddm.safetensors", stage)
    torch.save(UNetModelSwin(**SWIN).state_dict(), tmp_path / "resshift.pth")
    with pytest.raises(ValueError, match=r"autoencoder must be given: .*ResShift"):
        from_official(tmp_path / "resshift.pth")


def run(*arguments) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["convert", *map(str, arguments)], env={"COLUMNS": "300"})
    return done.exit_code, done.stdout, re.sub(r"[\s│╭╮╰╯─]+", " ", done.stderr)


def test_the_command(tmp_path):
    torch.save(unet(0), tmp_path / "net.pth")
    folder = tmp_path / "ours"
    code, out, err = run(
        tmp_path / "net.pth", "-o", folder, "--task", "derain", "--set", "sampling_steps=2", "--json"
    )
    assert code == 0, err
    assert json.loads(out) | {"parameters": 0} == {
        "method": "rddm",
        "tasks": ["derain"],
        "scale": 1,
        "parameters": 0,
        "output": str(folder),
    }
    model = load_model(folder)
    assert (model.tasks, model.steps_of("sample")) == (("derain",), 2)
    code, _, err = run(tmp_path / "net.pth", "-o", folder)
    assert (code, "is there already" in err) == (2, True)


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ({"conv.weight": torch.zeros(3)}, (), "is of none of ResShift, RDDM"),
        (None, (), "net.pth is not a file"),
        (b"", (), "net.pth is empty"),
        (b"no weights at all", (), "neither a safetensors file nor|damaged|is refused"),
        ({"ema": [1, 2]}, (), "holds no tensors"),
        ("rddm", ("--set", "steps"), "--set: expected field=value, got 'steps'"),
        ("rddm", ("--set", "stepps=3"), "stepps cannot be said of .* what can be: objective, sum_scale"),
        ("rddm", ("--set", "objective=pred_v"), "objective must be one of"),
        ("rddm", ("--task", "paint"), "--task: expected one of super-resolution"),
        ("rddm", ("--autoencoder", "none.pth"), "autoencoder cannot be said of"),
    ],
)
def test_bad_input_ends_with_2_and_one_sentence(content, arguments, words, tmp_path):
    file = tmp_path / "net.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        torch.save(unet(0) if content == "rddm" else content, file)
    code, out, err = run(file, "-o", tmp_path / "ours", *arguments)
    assert code == 2
    assert re.search(words, err), err
    assert "Traceback" not in err + out
    assert not (tmp_path / "ours").exists()
