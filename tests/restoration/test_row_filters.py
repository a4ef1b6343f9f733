"""Fast ways of the networks' layers give what the plain ones give, also after their weights have changed."""

import copy

import pytest
import torch
import torch.nn.functional as F

from fewstep.restoration.nets import row_filters
from fewstep.restoration.nets.inplace import plus, silu
from fewstep.restoration.nets.irsde_blocks import up
from fewstep.restoration.nets.linear_attention import PIXELS, linear_attention
from fewstep.restoration.nets.rddm_blocks import LinearAttention, Residual, StandardizedConv2d
from fewstep.restoration.nets.row_filters import Conv3, convolved, pays
from fewstep.restoration.nets.row_filters import row_filters as filters_of

# The least map of these channels that is convolved the fast way.
CHANNELS, OUT, SIDE = 128, 64, 92


def fast_map(seed: int = 0) -> torch.Tensor:
    x = torch.randn(1, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    return x.contiguous(memory_format=torch.channels_last)


def plain(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return F.conv2d(x, weight, bias, padding=1)


def relative(made: torch.Tensor, truth: torch.Tensor) -> float:
    return ((made - truth).norm() / truth.norm()).item()


@pytest.mark.parametrize("height", [1, 3, 4, 8, 21])
@pytest.mark.parametrize("block_bytes", [1, row_filters.BLOCK_BYTES])
@pytest.mark.parametrize("biased", [False, True])
def test_the_result_is_that_of_a_convolution(height, block_bytes, biased, monkeypatch):
    monkeypatch.setattr(row_filters, "BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    x = torch.randn(2, 5, height, 7, dtype=torch.float64)
    weight = torch.randn(3, 5, 3, 3, dtype=torch.float64)
    bias = torch.randn(3, dtype=torch.float64) if biased else None
    with torch.no_grad():
        made = convolved(x.contiguous(memory_format=torch.channels_last), filters_of(weight), bias)
    torch.testing.assert_close(made, plain(x, weight, bias), rtol=0, atol=1e-10)
    assert made.is_contiguous(memory_format=torch.channels_last)


def test_rounding_errors_are_about_twice_those_of_the_direct_sum():
    x, layer = fast_map(), Conv3(CHANNELS, OUT)
    with torch.no_grad():
        assert pays(x, layer.weight)
        assert layer.bias is not None
        truth = plain(x.double(), layer.weight.double(), layer.bias.double())
        direct = relative(plain(x, layer.weight, layer.bias), truth)
        assert 0 < relative(layer(x), truth) < 4 * direct


def test_it_is_left_to_the_library_where_it_does_not_pay():
    x, layer = fast_map(), Conv3(CHANNELS, OUT)
    assert not pays(x, layer.weight)  # gradients are recorded
    assert layer(x).requires_grad
    with torch.no_grad():
        assert not pays(x.contiguous(), layer.weight)
        assert not pays(x[:, :, :10, :10].contiguous(memory_format=torch.channels_last), layer.weight)
        assert not pays(x.bfloat16(), layer.weight.bfloat16())
        assert not pays(x, layer.weight[:, :, :1, :1])
        with torch.autocast("cpu", torch.bfloat16):
            assert not pays(x, layer.weight)
            assert layer(x).dtype is torch.bfloat16


def optimised(layer):
    with torch.enable_grad():
        optimiser = torch.optim.SGD(layer.parameters(), lr=1.0)
        layer(fast_map(1)[:, :, :8, :8]).square().mean().backward()
        optimiser.step()
    return layer


def loaded(layer):
    layer.load_state_dict({key: torch.randn(value.shape) for key, value in layer.state_dict().items()})
    return layer


def turned(layer):
    for parameter in layer.parameters():
        parameter.data.mul_(-0.5)
    return layer


CHANGES = {
    "training step": optimised,
    "load_state_dict": loaded,
    "there and back in bfloat16": lambda layer: layer.bfloat16().float(),
    "there and back in float64": lambda layer: turned(layer.double()).float(),
    "copy": lambda layer: optimised(copy.deepcopy(layer)),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", [Conv3, lambda c, o: StandardizedConv2d(c, o, 3)])
def test_filters_are_renewed_when_weights_change(kind, change):
    torch.manual_seed(0)
    layer, x = kind(CHANNELS, OUT).eval(), fast_map()
    with torch.no_grad():
        before = layer(x)
        layer = CHANGES[change](layer)
        weight = layer.standardized() if isinstance(layer, StandardizedConv2d) else layer.weight
        assert pays(x, layer.weight)
        assert relative(layer(x), plain(x, weight, layer.bias)) < 1e-5
    assert relative(layer(x), before) > 1e-4


def test_filters_are_made_once():
    layer, x = Conv3(CHANNELS, OUT).eval(), fast_map()
    with torch.no_grad():
        layer(x)
        layer.fast.get((layer.weight,), lambda: pytest.fail("computed again"))


def test_enlargement_renews_its_merged_filters():
    torch.manual_seed(0)
    layer, x = up(6, 4).double().eval(), torch.randn(2, 6, 5, 7, dtype=torch.float64)
    for _ in range(2):
        with torch.no_grad():
            merged = layer(x)
            conv = layer[1]
            assert isinstance(conv, torch.nn.Conv2d)
            whole = plain(F.interpolate(x, scale_factor=2, mode="nearest"), conv.weight, conv.bias)
            torch.testing.assert_close(merged, whole, rtol=0, atol=1e-10)
            conv.weight.mul_(-2)


@pytest.mark.parametrize("pixels", [5, PIXELS + 3])
def test_streamed_attention_is_the_whole_one(pixels):
    torch.manual_seed(0)
    heads, channels = (2, 4), 6
    rows = 3 * torch.randn(2, pixels, channels, dtype=torch.float64)
    w_qkv = torch.randn(24, channels, dtype=torch.float64)
    w_out, bias = torch.randn(channels, 8, dtype=torch.float64), torch.randn(channels, dtype=torch.float64)
    recorded = linear_attention(rows, w_qkv, w_out, bias, heads)
    with torch.no_grad():
        streamed = linear_attention(rows, w_qkv, w_out, bias, heads)
    torch.testing.assert_close(streamed, recorded, rtol=0, atol=1e-10)


def test_nothing_is_overwritten_that_gradients_or_precision_need():
    fresh, x = torch.ones(3), torch.ones(3, requires_grad=True)
    assert plus(fresh, x).tolist() == [2.0, 2.0, 2.0]
    silu(fresh)
    assert fresh.tolist() == [1.0, 1.0, 1.0]
    with torch.no_grad():
        half = torch.ones(3, dtype=torch.bfloat16)
        assert plus(half, x).dtype is torch.float32
        assert half.tolist() == [1.0, 1.0, 1.0]
        assert plus(fresh, x) is fresh


@pytest.mark.parametrize("batch", [1, 2])
def test_attention_keeps_the_layout_that_joined_maps_need(batch):
    x = torch.randn(batch, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        made = Residual(16, LinearAttention(16))(x)
    assert torch.cat([made, x], dim=1).is_contiguous(memory_format=torch.channels_last)
