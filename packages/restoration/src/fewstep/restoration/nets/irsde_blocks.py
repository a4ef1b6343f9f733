"""The parts of IR-SDE's networks: time embedding, norm without bias, residual block, linear attention."""

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .inplace import plus, silu
from .linear_attention import linear_attention
from .rddm_blocks import Upsample
from .row_filters import Conv3

HEADS, HEAD_WIDTH = 4, 32
HIDDEN = HEADS * HEAD_WIDTH


class Modulation(NamedTuple):
    """What the time does to feature maps: h·gain + shift."""

    gain: Tensor
    shift: Tensor


def sinusoids(t: Tensor, width: int) -> Float[Tensor, "batch width"]:
    """Sines, then cosines, of t at geometrically spaced frequencies from 1 down to 1/10000.

    [sin(t f_k), cos(t f_k)], f_k = 10000^(−k/(width/2 − 1)), k = 0 … width/2 − 1.

    Example:
        >>> sinusoids(torch.zeros(1), 4)
        tensor([[0., 0., 1., 1.]])
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.reshape(-1, 1).float() * torch.exp(steps * (-math.log(1e4) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class SimpleGate(nn.Module):
    """The product of the two halves of the channels."""

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch half *space"]:
        first, second = x.chunk(2, dim=1)
        return first * second


class ChannelNorm(nn.Module):
    """Each pixel's features less their mean, over their standard deviation, times a gain per channel."""

    eps = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(
        self, x: Float[Tensor, "batch channels h w"], told: Modulation | None = None
    ) -> Float[Tensor, "batch channels h w"]:
        """Normed features, scaled and shifted where a modulation is given."""
        if told is not None and len(told.gain) > 1:
            return torch.addcmul(told.shift, self(x), told.gain)
        weight, bias = self.g.flatten(), None
        if told is not None:
            weight, bias = weight * told.gain.flatten(), told.shift.flatten()
        pixels = x.permute(0, 2, 3, 1)
        return F.layer_norm(pixels, weight.shape, weight, bias, eps=self.eps).permute(0, 3, 1, 2)


class Projection(nn.Module):
    """A 3×3 convolution under its published name."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = conv3(channels, out_channels)


class ResBlock(nn.Module):
    """Two convolutions with SiLU, the first one's features scaled and shifted by the time; no norm.

    Args:
        channels: channels taken.
        out_channels: channels given; a 1×1 convolution carries the input over when they differ.
        embedding: channels of the time embedding; None for a block that is not told the time.
    """

    def __init__(self, channels: int, out_channels: int, embedding: int | None = None) -> None:
        super().__init__()
        if embedding is not None:
            self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.block1 = Projection(channels, out_channels)
        self.block2 = Projection(out_channels, out_channels)
        same = channels == out_channels
        self.res_conv = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1, bias=False)

    def forward(
        self, x: Float[Tensor, "batch channels h w"], modulation: Modulation | None = None
    ) -> Float[Tensor, "batch out_channels h w"]:
        h = self.block1.proj(x)
        if modulation is not None:
            h = torch.addcmul(modulation.shift, h, modulation.gain)
        return plus(silu(self.block2.proj(silu(h))), self.res_conv(x))

    def modulation(self, embedding: Float[Tensor, "batch embedding"]) -> Modulation:
        """Gain and shift of one time, shaped for feature maps."""
        scale, shift = self.mlp(embedding)[:, :, None, None].chunk(2, dim=1)
        return Modulation(1 + scale, shift)


class LinearAttention(nn.Module):
    """Attention whose cost grows with the pixels and not with their square, then channel normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, 3 * HIDDEN, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(HIDDEN, channels, 1), ChannelNorm(channels))

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        rows = x.permute(0, 2, 3, 1).flatten(1, 2)
        out, norm = cast("tuple[nn.Conv2d, nn.Module]", tuple(self.to_out))
        assert out.bias is not None
        w_qkv, w_out = self.to_qkv.weight.flatten(1), out.weight.flatten(1)
        h = linear_attention(rows, w_qkv, w_out, out.bias, (HEADS, HEAD_WIDTH))
        return norm(h.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2))


class FullAttention(nn.Module):
    """Attention between all pixels; 4 heads of 32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_qkv = nn.Conv2d(channels, 3 * HIDDEN, 1, bias=False)
        self.to_out = nn.Conv2d(HIDDEN, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        height, width = x.shape[-2:]
        qkv = self.to_qkv(x).flatten(2).unflatten(1, (3, HEADS, HEAD_WIDTH))
        q, k, v = qkv.transpose(3, 4).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(h.transpose(2, 3).flatten(1, 2).unflatten(2, (height, width)))


class PreNorm(nn.Module):
    """attention(norm(x))."""

    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.fn = attention

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        return self.fn(self.norm(x))


class Attend(nn.Module):
    """x + attention(norm(x)); named as published."""

    def __init__(self, channels: int, attention: nn.Module) -> None:
        super().__init__()
        self.fn = PreNorm(channels, attention)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        return plus(self.fn(x), x)


def conv3(channels: int, out_channels: int) -> Conv3:
    """3×3 convolution without bias, which the published blocks have not."""
    return Conv3(channels, out_channels, bias=False)


def down(channels: int, out_channels: int) -> nn.Conv2d:
    """4×4 convolution that halves the sides."""
    return nn.Conv2d(channels, out_channels, 4, stride=2, padding=1)


def up(channels: int, out_channels: int) -> Upsample:
    """Repetition of pixels that doubles the sides, and a 3×3 convolution."""
    return Upsample(channels, out_channels)
