"""Blocks of RDDM's U-Nets: weight-standardised convolutions, channel normalisation, attention."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .cache import Remembered, Remembering
from .inplace import plus, silu
from .linear_attention import linear_attention
from .row_filters import convolved, pays, row_filters

# How many visited times keep what was computed from them: those of one sampler at a few batch sizes.
REMEMBERED_TIMES = 32
# Of every attention layer of the published networks.
HEADS, HEAD_WIDTH = 4, 32
EPS = 1e-5


def sinusoids(t: Tensor, width: int) -> Float[Tensor, "batch width"]:
    """Sines, then cosines, of t at geometrically spaced frequencies.

    [sin(t f_k), cos(t f_k)], f_k = 10000^(−k/(width/2 − 1)), k = 0 … width/2 − 1.

    Args:
        t: times, whole or not, shape (batch,).
        width: channels, even and at least 4.

    Reference: Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models", appendix B.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.promote_types(t.dtype, torch.float32), device=t.device)
    angles = t[:, None].to(steps.dtype) * torch.exp(steps * (-math.log(1e4) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimeEmbedding(Remembering, nn.Sequential):
    """Sinusoids of the time, a linear layer, GELU, a linear layer; remembered for visited times.

    Args:
        width: channels of the sinusoids; the result has four times as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__(
            nn.Identity(), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, 4 * width)
        )
        self.width = width
        self.remembered: Remembered[Tensor] = Remembered(REMEMBERED_TIMES)

    def forward(self, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch embedding"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.remembered.get((t, *self.parameters()), lambda: self._embed(t))

    def _embed(self, t: Tensor) -> Tensor:
        return self[3](self[2](self[1](sinusoids(t, self.width).to(next(self.parameters()).dtype))))


class StandardizedConv2d(Remembering, nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1.

    w' = (w − mean w) / √(var w + 10⁻⁵) for every filter. w' is computed once for as long as w stays as it is,
    in float32 or better whatever the convolution computes in, so that a network is the same function in every
    precision; the published code adds 10⁻³ in the place of 10⁻⁵ where the input is not float32.

    Reference: Qiao, Wang, Liu, Shen & Yuille 2019, "Micro-Batch Training with Batch-Channel Normalization and
        Weight Standardization", equation 11.
    """

    def __init__(self, channels: int, out_channels: int, size: int) -> None:
        super().__init__(channels, out_channels, size, padding=size // 2)
        self.remembered: Remembered[Tensor] = Remembered(2)
        self.fast: Remembered[Tensor] = Remembered(1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch out_channels h w"]:
        if pays(x, self.weight):
            filters = self.fast.get((self.weight,), lambda: row_filters(self.standardized()))
            return convolved(x, filters, self.bias)
        return self._conv_forward(x, self.remembered.get((self.weight,), self.standardized), self.bias)

    def standardized(self) -> Tensor:
        """The filters that are applied."""
        weight = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        variance, mean = torch.var_mean(weight, dim=(1, 2, 3), correction=0, keepdim=True)
        standardized = ((weight - mean) * (variance + EPS).rsqrt()).to(self.weight.dtype)
        device = weight.device.type
        if torch.is_autocast_enabled(device) and not torch.is_grad_enabled():
            # Autocast would convert what is remembered in every call.
            return standardized.to(torch.get_autocast_dtype(device))
        return standardized


class Block(nn.Module):
    """Standardised 3×3 convolution, group normalisation, scale and shift where given, SiLU."""

    def __init__(self, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.proj = StandardizedConv2d(channels, out_channels, 3)
        self.norm = nn.GroupNorm(groups, out_channels)

    def forward(
        self, x: Float[Tensor, "batch channels h w"], modulation: tuple[Tensor, Tensor] | None = None
    ) -> Float[Tensor, "batch out_channels h w"]:
        h = self.proj(x)
        if modulation is None:
            return silu(self.norm(h))
        gain, shift = modulation
        if len(gain) > 1:
            return silu(torch.addcmul(shift, self.norm(h), gain))
        # One time for all: the norm's own scale and shift take it up.
        gain, shift = gain.flatten(), shift.flatten()
        weight, bias = self.norm.weight * gain, torch.addcmul(shift, self.norm.bias, gain)
        return silu(F.group_norm(h, self.norm.num_groups, weight, bias, self.norm.eps))


class ResnetBlock(Remembering):
    """Two blocks, the first one modulated by the time, added to the input.

    Args:
        channels: channels taken.
        out_channels: channels given; a 1×1 convolution carries the input over when they differ.
        embedding: channels of the time embedding.
        groups: of the group normalisations.
    """

    def __init__(self, channels: int, out_channels: int, embedding: int, groups: int = 8) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.block1 = Block(channels, out_channels, groups)
        self.block2 = Block(out_channels, out_channels, groups)
        same = channels == out_channels
        self.res_conv = nn.Identity() if same else Pointwise(channels, out_channels)
        self.remembered: Remembered[tuple[Tensor, Tensor]] = Remembered(REMEMBERED_TIMES)

    def forward(
        self, x: Float[Tensor, "batch channels h w"], embedding: Float[Tensor, "batch embedding"]
    ) -> Float[Tensor, "batch out_channels h w"]:
        modulation = self.remembered.get(
            (embedding, *self.mlp.parameters()), lambda: self.modulation(embedding)
        )
        h = self.block2(self.block1(x, modulation))
        return plus(h, self.res_conv(x))

    def modulation(self, embedding: Float[Tensor, "batch embedding"]) -> tuple[Tensor, Tensor]:
        """1 + scale and shift, shaped for feature maps."""
        scale, shift = self.mlp(embedding)[:, :, None, None].chunk(2, dim=1)
        return 1 + scale, shift


class ChannelNorm(nn.Module):
    """Every pixel's channels brought to mean 0 and variance 1, times a gain per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, rows: Float[Tensor, "batch pixels channels"]) -> Float[Tensor, "batch pixels channels"]:
        return F.layer_norm(rows, rows.shape[-1:], self.g.flatten(), eps=EPS)


class LinearAttention(nn.Module):
    """Attention whose cost grows linearly with the pixels, then channel normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = HEADS * HEAD_WIDTH
        self.to_qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(hidden, channels, 1), ChannelNorm(channels))

    def forward(self, rows: Float[Tensor, "batch pixels channels"]) -> Float[Tensor, "batch pixels channels"]:
        out, norm = self.to_out
        assert isinstance(out, nn.Conv2d)
        assert out.bias is not None
        w_qkv, w_out = self.to_qkv.weight.flatten(1), out.weight.flatten(1)
        return norm(linear_attention(rows, w_qkv, w_out, out.bias, (HEADS, HEAD_WIDTH)))


class Attention(nn.Module):
    """Attention of every pixel to every other, in four heads of 32 channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = HEADS * HEAD_WIDTH
        self.to_qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.to_out = nn.Conv2d(hidden, channels, 1)

    def forward(self, rows: Float[Tensor, "batch pixels channels"]) -> Float[Tensor, "batch pixels channels"]:
        qkv = F.linear(rows, self.to_qkv.weight.flatten(1))
        q, k, v = qkv.unflatten(2, (3, HEADS, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return F.linear(mixed, self.to_out.weight.flatten(1), self.to_out.bias)


class PreNorm(nn.Module):
    """Channel normalisation before a layer."""

    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn
        self.norm = ChannelNorm(channels)

    def forward(self, rows: Float[Tensor, "batch pixels channels"]) -> Float[Tensor, "batch pixels channels"]:
        return self.fn(self.norm(rows))


class Residual(nn.Module):
    """A layer's result added to its input; the layer sees a row of channels per pixel."""

    def __init__(self, channels: int, layer: nn.Module) -> None:
        super().__init__()
        self.fn = PreNorm(channels, layer)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        # Of maps with channels last in memory the rows are a view.
        added = self.fn(x.flatten(2).mT).mT.unflatten(2, x.shape[2:])
        return plus(added, x)


class Pointwise(nn.Conv2d):
    """A 1×1 convolution as a product with rows of channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch out_channels h w"]:
        if not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        rows = F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias)
        return rows.permute(0, 3, 1, 2)


class Upsample(Remembering, nn.Sequential):
    """The resolution doubled by repetition, then a 3×3 convolution.

    Where no gradients are recorded it is computed at the low resolution: taps that meet the same pixel
    are added, which leaves a 2×2 filter for each of the four places in a doubled pixel, 16 products for 36.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.remembered: Remembered[Tensor] = Remembered(2)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch out_channels h2 w2"]:  # pyright: ignore[reportIncompatibleMethodOverride]
        conv = self[1]
        assert isinstance(conv, nn.Conv2d)
        if torch.is_grad_enabled():
            return super().forward(x)
        filters = self.remembered.get((conv.weight,), lambda: merged_taps(conv.weight))
        batch, _, height, width = x.shape
        bias = None if conv.bias is None else conv.bias.repeat(4)
        places = F.conv2d(x, filters, bias, padding=1).unflatten(1, (2, 2, conv.out_channels))
        out = x.new_empty(batch, 2 * height, 2 * width, conv.out_channels, dtype=places.dtype)
        for row in range(2):
            for column in range(2):
                place = places[:, row, column, :, row : row + height, column : column + width]
                out[:, row::2, column::2] = place.permute(0, 2, 3, 1)
        return out.permute(0, 3, 1, 2)


def merged_taps(weight: Float[Tensor, "out in 3 3"]) -> Float[Tensor, "out4 in 2 2"]:
    """2×2 filters for the four places in a doubled pixel, row by row, from a 3×3 filter behind repetition."""
    # The upper (left) place sees the pixel before once and its own twice; the lower (right) place mirrors it.
    merge = weight.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])
    merged = torch.einsum("ryi,cxj,oeij->rcoeyx", merge, merge, weight)
    merged = merged.flatten(0, 2)
    if weight.is_contiguous(memory_format=torch.channels_last):
        return merged.contiguous(memory_format=torch.channels_last)
    return merged.contiguous()


def widths(dim: int, multiples: tuple[int, ...]) -> list[tuple[int, int]]:
    """Channels before and after each level of a U-Net.

    Example:
        >>> widths(8, (1, 2, 4))
        [(8, 8), (8, 16), (16, 32)]
    """
    return list(pairwise([dim, *(dim * m for m in multiples)]))
