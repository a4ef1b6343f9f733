"""IR-SDE's and Refusion's networks against the outputs of the published code."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.restoration.nets.conditional_nafnet import ConditionalNAFNet
from fewstep.restoration.nets.conditional_unet import ConditionalUNet
from fewstep.restoration.nets.irsde_blocks import ChannelNorm, FullAttention
from fewstep.restoration.nets.refusion_autoencoder import RefusionAutoencoder

GOLDEN = Path(__file__).parents[1] / "golden" / "restoration"
NETWORKS = {
    "irsde_cond_nafnet": ConditionalNAFNet,
    "irsde_cond_unet": ConditionalUNet,
    "irsde_cond_unet_latent": ConditionalUNet,
}
BF16_STEP = 2.0**-8  # largest relative rounding error of bfloat16


def golden(name: str, build=None) -> tuple[Any, dict[str, Tensor]]:
    """The network of a golden file with its weights, and the file's tensors."""
    tensors = load_file(GOLDEN / f"{name}.safetensors")
    config = json.loads((GOLDEN / f"{name}.json").read_text())["config"]
    net = (build or NETWORKS[name])(**config).eval()
    # Strict: every name of the published layout.
    net.load_state_dict({key[3:]: value.float() for key, value in tensors.items() if key[:3] == "sd."})
    return net, tensors


def arguments(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    return tensors["in.x"], tensors["in.t"], tensors["in.cond"]


@pytest.mark.parametrize("name", NETWORKS)
def test_network_equals_published(name):
    net, tensors = golden(name)
    with torch.no_grad():
        first = net(*arguments(tensors))
        remembered = net(*arguments(tensors))
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)(*arguments(tensors))
        double = copy.deepcopy(net).double()(*(value.double() for value in arguments(tensors)))
    recorded = net(*arguments(tensors))  # with gradients: nothing is remembered, nothing done in place
    for out in (first, remembered, last, double.float(), recorded):
        torch.testing.assert_close(out, tensors["out.0"], rtol=0, atol=1e-5)
    assert torch.equal(first, remembered)


def test_one_time_for_the_whole_batch():
    net, tensors = golden("irsde_cond_unet")
    with torch.no_grad():
        out = net(tensors["in.x"], torch.tensor([5]), tensors["in.cond"])
    torch.testing.assert_close(out, tensors["out.int_time5"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_of_one(name):
    """The published code fails on it (trap: a time without dimensions)."""
    net, tensors = golden(name)
    with torch.no_grad():
        single = net(*(value[:1] for value in arguments(tensors)))
    torch.testing.assert_close(single, tensors["out.0"][:1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(name, autocast):
    net, tensors = golden(name)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = net(*arguments(tensors)) if autocast else net.bfloat16()(*arguments(tensors))
    error = (out.float() - tensors["out.0"]).norm() / tensors["out.0"].norm()
    # About forty layers round once each: errors of BF16_STEP/2 add up like √40 ≈ 6.3 independent ones.
    assert error < 6.3 * BF16_STEP


@pytest.mark.parametrize("name", NETWORKS)
def test_it_forgets_when_weights_or_times_change(name):
    net, tensors = golden(name)
    x, t, y = arguments(tensors)
    with torch.no_grad():
        before = net(x, t, y)
        for parameter in net.time_mlp.parameters():
            parameter.mul_(1.5)
        after = net(x, t, y)
        fresh = copy.deepcopy(net)(x, t.clone(), y)
        t.add_(3)
        later = net(x, t, y)
        again = copy.deepcopy(net)(x, t.clone(), y)
    assert (after - before).abs().max() > 1e-4
    assert (later - after).abs().max() > 1e-4
    assert torch.equal(after, fresh)
    assert torch.equal(later, again)


@pytest.mark.parametrize("name", NETWORKS)
def test_it_trains_after_it_was_used(name):
    net, tensors = golden(name)
    with torch.inference_mode():
        net(*arguments(tensors))
    net.train()
    net(*arguments(tensors)).square().mean().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_autoencoder_equals_published():
    net, tensors = golden("irsde_refusion_unet_ae", RefusionAutoencoder)
    x = tensors["in.x"]
    with torch.no_grad():
        z, kept = net.encode(x)
        torch.testing.assert_close(z, tensors["out.z"], rtol=0, atol=1e-5)
        torch.testing.assert_close(net(x), tensors["out.rec"], rtol=0, atol=1e-5)
        assert len(kept) == 7
        decoded = net.decode(z, kept)
    assert (net.factor, net.multiple) == (4, 8)
    torch.testing.assert_close(decoded[..., :21, :18], tensors["out.rec"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (2, 13), (33, 5)])
def test_any_size(size):
    """The published U-Net cannot reflect an image shorter than what is missing."""
    nets = (
        ConditionalUNet(nf=8, depth=2),
        ConditionalNAFNet(width=8, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]),
    )
    x = torch.rand(1, 3, *size)
    with torch.no_grad():
        for net in nets:
            assert net.eval()(x, torch.ones(1), x).shape == x.shape


def test_denoising_networks_are_told_no_image():
    """One set of channels, and attention between all pixels in the middle."""
    unet = ConditionalUNet(nf=8, depth=1, conditional=False, middle="full").eval()
    assert unet.init_conv.weight.shape == (8, 3, 7, 7)
    assert "mid_attn.fn.fn.to_out.weight" in unet.state_dict()
    nafnet = ConditionalNAFNet(width=8, enc_blk_nums=[1], dec_blk_nums=[1], conditional=False).eval()
    x = torch.rand(2, 3, 6, 6)
    for net in (unet, nafnet):
        with torch.no_grad():
            assert net(x, torch.ones(2)).shape == x.shape
        with pytest.raises(ValueError, match="y must be left out"):
            net(x, torch.ones(2), x)
    with pytest.raises(ValueError, match="y must be given: this network is conditional"):
        ConditionalUNet(nf=8, depth=1)(x, torch.ones(2))


def test_full_attention_is_softmax_of_products():
    attention = FullAttention(16).double()
    x = torch.randn(2, 16, 3, 5, dtype=torch.float64)
    q, k, v = attention.to_qkv(x).reshape(2, 3, 4, 32, 15).unbind(1)
    weights = (torch.einsum("bhdi,bhdj->bhij", q, k) * 32**-0.5).softmax(-1)
    mixed = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(2, 128, 3, 5)
    torch.testing.assert_close(attention(x), attention.to_out(mixed))


def test_long_skip_adds_the_first_features():
    """Same names as without; the last convolution sees the first one's features too."""
    plain = ConditionalNAFNet(width=8, enc_blk_nums=[1], dec_blk_nums=[1]).double().eval()
    skipped = ConditionalNAFNet(width=8, enc_blk_nums=[1], dec_blk_nums=[1], long_skip=True).double().eval()
    skipped.load_state_dict(plain.state_dict())
    x, y = torch.rand(2, 1, 3, 8, 8, dtype=torch.float64)
    t = torch.ones(1)
    with torch.no_grad():
        first = plain.intro(torch.cat([x - y, y], dim=1))
        added = nn.functional.conv2d(first, plain.ending.weight, padding=1)
        torch.testing.assert_close(skipped(x, t, y), plain(x, t, y) + added)


def test_norm_ignores_a_constant():
    norm = ChannelNorm(8)
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(norm(x + 5), norm(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConditionalUNet(middle="none"), "middle must be 'linear' or 'full', got 'none'"),
        (lambda: ConditionalUNet(depth=0), "depth must be at least 1, got 0"),
        (lambda: ConditionalNAFNet(dec_blk_nums=[1]), r"one entry per level like enc_blk_nums \(4\), got 1"),
        (lambda: RefusionAutoencoder(ch_mult=()), "ch_mult must have at least one entry"),
    ],
)
def test_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
def test_published_sizes():
    """137.2 and 76.6 million parameters, as published."""
    with torch.device("meta"):
        unet, nafnet = ConditionalUNet(), ConditionalNAFNet()
    assert sum(p.numel() for p in unet.parameters()) // 100_000 == 1371
    assert sum(p.numel() for p in nafnet.parameters()) // 100_000 == 766
