"""RDDM's and Resfusion's networks against the outputs of the published code."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.restoration.nets.ddim_unet import DDIMUnet
from fewstep.restoration.nets.rddm_blocks import LinearAttention, StandardizedConv2d, sinusoids
from fewstep.restoration.nets.rddm_unet import RDDMUnet
from fewstep.restoration.nets.unet_res import unet_res

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration"
BF16_STEP = 2.0**-8  # largest relative rounding error of bfloat16


def build_ddim() -> nn.Module:
    return DDIMUnet(16, condition_channels=3, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,))


BUILDERS = {
    "rddm_net_sep": lambda: unet_res(8, (1, 2)),
    "rddm_net_shared": lambda: unet_res(8, (1, 2), share_encoder=1),
    "resfusion_rddm_unet": lambda: RDDMUnet(8, (1, 2, 4), condition_channels=3),
    "resfusion_ddim_unet": build_ddim,
}


def golden(name: str) -> tuple[nn.Module, tuple, Tensor]:
    """The network with the stored weights, what it is asked and what it must answer."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    net = BUILDERS[name]()
    net.load_state_dict({k[3:]: v.float() for k, v in tensors.items() if k.startswith("sd.")})
    asked = tensors["in.x"], tensors["in.t"], tensors.get("in.input_cond")
    heads = [tensors[key] for key in ("out.0", "out.1") if key in tensors]
    return net.eval(), asked, torch.cat(heads, dim=1)


@pytest.mark.parametrize("name", BUILDERS)
def test_networks_equal_published(name):
    net, asked, expected = golden(name)
    with torch.no_grad():
        first, remembered = net(*asked), net(*asked)
        last = net.to(memory_format=torch.channels_last)(*asked)  # pyright: ignore[reportCallIssue]
    recorded = net(*asked)  # with gradients: nothing is remembered
    for out in (first, remembered, last, recorded):
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
def test_networks_in_float64(name):
    net, (x, t, lq), expected = golden(name)
    with torch.no_grad():
        out = net.double()(x.double(), t, lq)
    assert out.dtype == torch.float64
    torch.testing.assert_close(out.float(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("autocast", [False, True])
def test_networks_in_bfloat16(name, autocast):
    net, asked, expected = golden(name)
    net = net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if autocast:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            out = net(*asked).float()
    else:
        with torch.no_grad():
            out = net.bfloat16()(*asked).float()
    error = (out - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    # About sixty layers, each rounding once: errors of BF16_STEP/2 add up like √60 ≈ 8 independent ones.
    assert error < 8 * BF16_STEP


def test_linear_attention_is_the_published_formula():
    torch.manual_seed(0)
    layer = LinearAttention(16).double()
    nn.init.normal_(layer.to_out[1].g)  # pyright: ignore[reportArgumentType]
    x = torch.randn(2, 16, 5, 7, dtype=torch.float64)
    q, k, v = layer.to_qkv(x).reshape(2, 3, 4, 32, 35).unbind(1)
    context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v / 35)
    out = torch.einsum("bhde,bhdn->bhen", context, q.softmax(-2) * 32**-0.5)
    out = layer.to_out[0](out.reshape(2, 128, 5, 7))
    centred = out - out.mean(1, keepdim=True)
    expected = centred / (out.var(1, correction=0, keepdim=True) + 1e-5).sqrt() * layer.to_out[1].g
    torch.testing.assert_close(layer(x.flatten(2).mT).mT.reshape(x.shape), expected, rtol=0, atol=1e-10)


def test_filters_are_standardised_once():
    conv = StandardizedConv2d(4, 6, 3)
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        first = conv(x)
        kept = conv.remembered.get((conv.weight,), lambda: pytest.fail("computed again"))
        torch.testing.assert_close(kept.mean((1, 2, 3)), torch.zeros(6), rtol=0, atol=1e-6)
        variance = conv.weight.var((1, 2, 3), correction=0)
        torch.testing.assert_close(kept.var((1, 2, 3), correction=0), variance / (variance + 1e-5))
        conv.weight.mul_(-1)
        torch.testing.assert_close(conv(x), F.conv2d(x, -kept, conv.bias, padding=1), rtol=0, atol=1e-5)
    assert (first - conv(x)).abs().max() > 0.1


def test_sinusoids_take_fractions():
    out = sinusoids(torch.tensor([0.0, 2.5], dtype=torch.float64), 8)
    expected = torch.tensor([2.5 * 1e4 ** (-k / 3) for k in range(4)], dtype=torch.float64)
    torch.testing.assert_close(out[1], torch.cat([expected.sin(), expected.cos()]), rtol=0, atol=1e-12)


def test_heads_may_be_told_different_times():
    net, (x, t, _), _ = golden("rddm_net_sep")
    with torch.no_grad():
        both = net(x, torch.stack([t, t + 1.5], dim=1))
        first, second = net(x, t), net(x, t + 1.5)
    assert torch.equal(both, torch.cat([first[:, :3], second[:, 3:]], dim=1))
    assert (second - first)[:, 3:].abs().max() > 1e-4


def test_networks_forget_when_weights_change():
    net, asked, _ = golden("rddm_net_sep")
    with torch.no_grad():
        before = net(*asked)
        for parameter in net.parameters():
            parameter.add_(0.05)
        after = net(*asked)
        assert torch.equal(after, copy.deepcopy(net)(*asked))
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", BUILDERS)
def test_networks_train_after_they_were_used(name):
    net, asked, _ = golden(name)
    with torch.inference_mode():
        net(*asked)
    net.train()
    net(*asked).square().mean().backward()
    missing = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert missing == []


def test_a_mask_is_joined_last():
    net = unet_res(8, (1, 2), condition_channels=6).eval()
    x, lq, mask = torch.randn(3, 1, 3, 8, 8)
    with torch.no_grad():
        out = net(x, torch.tensor([5]), lq=lq, mask=mask)
        assert torch.equal(out, net(torch.cat([x, lq, mask], dim=1), torch.tensor([5])))
        assert not torch.equal(out, net(x, torch.tensor([5]), lq=mask, mask=lq))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: unet_res(8, share_encoder=2), r"share_encoder must be 0 .*, got 2"),
        (lambda: unet_res(12), r"dim must be an even multiple of the 8 groups .* got 12"),
        (lambda: RDDMUnet(8, ()), "dim_mults not empty"),
        (lambda: DDIMUnet(ch=48), "ch must be a positive multiple of 32, got 48"),
        (lambda: DDIMUnet(image_size=20), "image_size must be a positive multiple of 8, got 20"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("name", BUILDERS)
def test_sides_that_cannot_be_halved_are_refused(name):
    net, (x, t, lq), _ = golden(name)
    short = (x[..., :-1], t, None if lq is None else lq[..., :-1])
    with pytest.raises(ValueError, match=r"x must have sides that are multiples of \d, got \(16, \d+\)"):
        net(*short)


@pytest.mark.slow
def test_released_size():
    """72.5 million parameters in two networks."""
    with torch.device("meta"):
        assert round(sum(p.numel() for p in unet_res().parameters()) / 1e6, 1) == 72.5
