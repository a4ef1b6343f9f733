"""ResShift's network and autoencoder against the outputs of the published code."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.restoration.nets.cache import Remembered
from fewstep.restoration.nets.swin import SwinLayer, relative_position_index, wrap_masks
from fewstep.restoration.nets.unet_swin import UNetModelSwin
from fewstep.restoration.nets.vq import VQModel

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration"
BF16_STEP = 2.0**-8  # largest relative rounding error of bfloat16


def golden(name: str) -> tuple[dict, dict]:
    """The file's tensors, and the state_dict stored in it."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    weights = {
        k[3:]: v.float() if v.is_floating_point() else v.long() for k, v in tensors.items() if k[:3] == "sd."
    }
    return tensors, weights


def small_unet(**changes) -> UNetModelSwin:
    """The network of the golden file."""
    arguments = {
        "image_size": 16,
        "model_channels": 32,
        "attention_resolutions": (16,),
        "num_res_blocks": (1, 1),
        "channel_mult": (1, 1),
        "num_head_channels": 16,
        "swin_embed_dim": 32,
        "mlp_ratio": 2,
        "lq_size": 16,
    }
    return UNetModelSwin(**(arguments | changes)).eval()


@pytest.fixture
def unet() -> tuple[UNetModelSwin, dict]:
    tensors, weights = golden("resshift_unet_swin")
    net = small_unet()
    net.load_state_dict(
        weights
    )  # strict: every name of the published layout, index and mask buffers included
    return net, tensors


@pytest.mark.parametrize("case", [0, 1])
def test_unet_equals_published(unet, case):
    net, tensors = unet
    x, t, lq = (tensors[f"in{case}.{name}"] for name in ("x", "t", "lq"))
    with torch.no_grad():
        first = net(x, t, lq=lq)
        remembered = net(x, t, lq=lq)
        features = net.condition(lq)
        torch.testing.assert_close(net(x, t, features=features), first, rtol=0, atol=0)
    recorded = net(x, t, lq=lq)  # with gradients: nothing is remembered
    for out in (first, remembered, recorded):
        torch.testing.assert_close(out, tensors[f"out{case}"], rtol=0, atol=1e-5)


def test_unet_buffers_equal_published():
    _, weights = golden("resshift_unet_swin")
    name = "input_blocks.1.1.blocks.1."
    assert torch.equal(relative_position_index(8), weights[name + "attn.relative_position_index"])
    above, last = wrap_masks(8, 4)
    # Four windows of a 16×16 map, row by row.
    assert torch.equal(torch.stack([above, above, last, last]), weights[name + "attn_mask"])


def test_unet_in_float64_and_channels_last(unet):
    net, tensors = unet
    with torch.no_grad():
        arguments = tensors["in1.x"], tensors["in1.t"]
        last = net.to(memory_format=torch.channels_last)(*arguments, lq=tensors["in1.lq"])
        torch.testing.assert_close(last, tensors["out1"], rtol=0, atol=1e-5)
        double = net.double()(tensors["in1.x"].double(), tensors["in1.t"], lq=tensors["in1.lq"])
    torch.testing.assert_close(double.float(), tensors["out1"], rtol=0, atol=1e-5)


def test_unet_in_bfloat16(unet):
    net, tensors = unet
    with torch.no_grad():
        x, t, lq = (tensors[f"in0.{name}"] for name in ("x", "t", "lq"))
        out = net.bfloat16()(x, t, lq=lq)
    assert out.dtype == torch.float32
    error = (out - tensors["out0"]).square().mean().sqrt() / tensors["out0"].square().mean().sqrt()
    # About thirty layers, each rounding once: errors of BF16_STEP/2 add up like √30 ≈ 5.5 independent ones.
    assert error < 5.5 * BF16_STEP


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_group_norm_in_bfloat16_accumulates_in_float32(layout):
    x = (torch.randn(2, 64, 16, 16, generator=torch.Generator().manual_seed(0)) + 8).bfloat16()
    x = x.to(memory_format=layout)
    norm = nn.GroupNorm(32, 64)
    expected = norm(x.float())
    norm.bfloat16()
    # One rounding of the result: statistics in bfloat16 would be off by 8 · 2^-8, more than thrice as much.
    torch.testing.assert_close(norm(x).float(), expected, rtol=BF16_STEP, atol=BF16_STEP)


def test_unet_forgets_when_weights_change(unet):
    net, tensors = unet
    x, t, lq = (tensors[f"in0.{name}"] for name in ("x", "t", "lq"))
    with torch.no_grad():
        before = net(x, t, lq=lq)
        for name, parameter in net.named_parameters():
            if name.startswith("time_embed") or "bias_table" in name or "emb_layers" in name:
                parameter.mul_(1.5)
        after = net(x, t, lq=lq)
        fresh = copy.deepcopy(net)(x, t, lq=lq)
        t.add_(1)  # the same tensor with other contents
        later = net(x, t, lq=lq)
        fresh_later = copy.deepcopy(net)(x, t.clone(), lq=lq)
    assert (after - before).abs().max() > 1e-3
    assert (later - after).abs().max() > 1e-3
    assert torch.equal(after, fresh)
    assert torch.equal(later, fresh_later)


def test_unet_trains_after_it_was_used(unet):
    net, tensors = unet
    arguments = tensors["in0.x"], tensors["in0.t"]
    with torch.inference_mode():
        net(*arguments, lq=tensors["in0.lq"])
    net.train()
    net(*arguments, lq=tensors["in0.lq"]).square().mean().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_remembered_is_not_shared_with_a_copy():
    remembered = Remembered(1)
    x = torch.ones(1)
    with torch.no_grad():
        remembered.get((x,), lambda: "original")
        assert copy.deepcopy(remembered).get((x,), lambda: "copy") == "copy"
        assert remembered.get((x,), lambda: "again") == "original"
    assert remembered.get((x,), lambda: "recorded") == "recorded"


def test_unet_attends_in_a_single_row_of_windows():
    layer = SwinLayer(32, 32, 2, 2, 16, 8, 2)
    x = torch.randn(1, 32, 8, 24)
    assert layer(x).shape == x.shape


def test_unet_with_a_larger_condition_and_a_mask():
    net = small_unet(in_channels=8, out_channels=8, cond_mask=True, lq_size=64)
    assert {k for k in net.state_dict() if k.startswith("feature_extractor") and k.endswith("weight")} == {
        f"feature_extractor.{k}.weight" for k in ("0", "2.op", "3", "5.op")
    }
    lq, mask = torch.rand(1, 3, 64, 128), torch.ones(1, 1, 64, 128)
    assert net(torch.randn(1, 8, 16, 32), torch.tensor([2]), lq=lq, mask=mask).shape == (1, 8, 16, 32)
    with pytest.raises(ValueError, match="conditioned on 4 channels"):
        net.condition(lq)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_channels": 48}, "model_channels must be a positive multiple of 32, got 48"),
        ({"swin_embed_dim": 40}, "swin_embed_dim must be a positive multiple of 32"),
        ({"image_size": 17}, "image_size must be a positive multiple of 2, got 17"),
        ({"lq_size": 48}, "lq_size must be 1, 2, 4, 8"),
        ({"num_res_blocks": (1,)}, "num_res_blocks must have one entry per level"),
    ],
)
def test_unet_refuses_sizes_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        small_unet(**changes)


def test_unet_refuses_an_image_of_broken_windows(unet):
    net, _ = unet
    with pytest.raises(ValueError, match=r"x must have sides that are multiples of 16, got \(16, 24\)"):
        net(torch.zeros(1, 3, 16, 24), torch.zeros(1), lq=torch.zeros(1, 3, 16, 24))


@pytest.fixture
def autoencoder() -> tuple[VQModel, dict]:
    tensors, weights = golden("resshift_vq")
    model = VQModel(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=64)
    model.load_state_dict(weights)
    return model.eval(), tensors


def test_autoencoder_equals_published(autoencoder):
    model, tensors = autoencoder
    with torch.no_grad():
        z = model.encode(tensors["in.x"])
        torch.testing.assert_close(z, tensors["out.z"], rtol=0, atol=1e-5)
        assert torch.equal(model.quantize.indices(z), tensors["out.indices"])
        torch.testing.assert_close(model.quantize(z), tensors["out.zq"], rtol=0, atol=1e-6)
        scale = tensors["out.decode"].abs().max()
        decoded, smooth = model.decode(z), model.decode(z, force_not_quantize=True)
    torch.testing.assert_close(decoded / scale, tensors["out.decode"] / scale, rtol=0, atol=1e-5)
    torch.testing.assert_close(smooth / scale, tensors["out.decode_not_quantized"] / scale, rtol=0, atol=1e-5)


def test_attention_takes_the_kernel_that_makes_no_matrix_of_pairs(unet, autoencoder):
    """With the other kernels switched off, inputs that the fused one cannot take are an error."""
    (net, tensors), (model, images) = unet, autoencoder
    arguments = tensors["in1.x"], tensors["in1.t"]
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        net(*arguments, lq=tensors["in1.lq"])
        model.decode(model.encode(images["in.x"]))


def test_codebook_search_in_pieces_and_in_bfloat16(autoencoder, monkeypatch):
    model, tensors = autoencoder
    monkeypatch.setattr("fewstep.restoration.nets.vq.DISTANCES_AT_ONCE", 64 * 7)
    assert torch.equal(model.quantize.indices(tensors["out.z"]), tensors["out.indices"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.quantize.indices(tensors["out.z"]), tensors["out.indices"])


def test_gradient_passes_straight_through_the_codebook(autoencoder):
    model, tensors = autoencoder
    z = tensors["out.z"].clone().requires_grad_()
    weights = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    (model.quantize(z) * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)


def test_autoencoder_refuses_sides_it_cannot_halve(autoencoder):
    model, _ = autoencoder
    with pytest.raises(ValueError, match=r"multiples of 4, got \(10, 12\)"):
        model.encode(torch.zeros(1, 3, 10, 12))
    with pytest.raises(ValueError, match="num_res_blocks must be one number or one per level"):
        VQModel(ch=32, ch_mult=(1, 2), num_res_blocks=[1, 1, 1])


def test_face_autoencoder_layout():
    """The f8 autoencoder has a different number of blocks on each level."""
    model = VQModel(
        ch=32, ch_mult=(1, 2, 2, 2), num_res_blocks=[1, 2, 3, 4], z_channels=8, embed_dim=8, n_embed=16
    )
    assert model.factor == 8
    names = model.state_dict()
    for level in range(4):
        for place, count in (("encoder.down", level + 1), ("decoder.up", level + 2)):
            blocks = {name.split(".")[4] for name in names if name.startswith(f"{place}.{level}.block.")}
            assert blocks == {str(block) for block in range(count)}
    z = model.encode(torch.zeros(1, 3, 16, 8))
    assert z.shape == (1, 8, 2, 1)
    assert model.decode(z).shape == (1, 3, 16, 8)


@pytest.mark.slow
def test_released_sizes():
    """118.6 and 55.3 million parameters, as published."""
    with torch.device("meta"):
        assert sum(p.numel() for p in UNetModelSwin().parameters()) == 118_593_583
        assert sum(p.numel() for p in VQModel().parameters()) == 55_322_782
