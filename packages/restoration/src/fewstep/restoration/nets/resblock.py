"""Residual blocks told the diffusion time, and what stands between the levels of a U-Net of them."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .cache import Remembered, Remembering

# How many visited times keep what was computed from them: those of one sampler at a few batch sizes.
REMEMBERED_TIMES = 32


def timestep_embedding(t: Tensor, width: int) -> Float[Tensor, "batch width"]:
    """Cosines, then sines, of t at geometrically spaced frequencies.

    [cos(t f_k), sin(t f_k)], f_k = 10000^(−k/(width/2)), k = 0 … width/2 − 1.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class ResBlock(Remembering):
    """Residual block: norm, SiLU, convolution; norm, scale and shift by the time, SiLU, convolution.

    Args:
        channels: channels taken.
        out_channels: channels given; a 1×1 convolution carries the input over when they differ.
        embedding: channels of the time embedding.
        dropout: probability of dropping a feature in training.

    Reference: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3.1.
    """

    def __init__(self, channels: int, out_channels: int, embedding: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(
            nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(32, out_channels),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)
        self.remembered: Remembered[tuple[Tensor, Tensor]] = Remembered(REMEMBERED_TIMES)

    def forward(
        self, x: Float[Tensor, "batch channels h w"], embedding: Float[Tensor, "batch embedding"]
    ) -> Float[Tensor, "batch out_channels h w"]:
        inputs = (embedding, *self.emb_layers.parameters())
        gain, shift = self.remembered.get(inputs, lambda: self.modulation(embedding))
        h = self.in_layers(x)
        h = torch.addcmul(shift, self.out_layers[0](h), gain)
        return self.skip_connection(x) + self.out_layers[1:](h)

    def modulation(self, embedding: Float[Tensor, "batch embedding"]) -> tuple[Tensor, Tensor]:
        """1 + scale and shift, shaped for feature maps."""
        scale, shift = self.emb_layers(embedding)[:, :, None, None].chunk(2, dim=1)
        return 1 + scale, shift


class Downsample(nn.Module):
    """Halve the resolution by a strided 3×3 convolution."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch out h2 w2"]:
        return self.op(x)


class Upsample(nn.Module):
    """Double the resolution by repetition and a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Stage(nn.ModuleList):
    """Layers applied in turn; residual blocks are given the time embedding too."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights and bias set to zero, so that a fresh block adds nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
