"""A residual network that super-resolves at the low resolution, told the diffusion time."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def told_time(t: Tensor, width: int) -> Float[Tensor, "batch width"]:
    """Cosines, then sines, of t·10000^(-k/half), k = 0 … half - 1, half = width/2; t has shape (batch,)."""
    half = width // 2
    frequency = torch.exp(-math.log(1e4) * torch.arange(half, device=t.device) / half)
    angle = t[:, None].float() * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class ModulatedBlock(nn.Module):
    """Residual block whose first convolution is scaled and shifted by the time embedding.

    h = conv2(silu((1 + scale(e)) · conv1(x) + shift(e))), output x + h. The second convolution and the
    modulation start at zero, so that a fresh block is the identity.

    Args:
        width: feature channels.
        embedding: channels of the time embedding.
    """

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * width)
        for layer in (self.conv2, self.modulation):
            nn.init.zeros_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def forward(
        self, x: Float[Tensor, "batch width h w"], embedding: Float[Tensor, "batch embedding"]
    ) -> Float[Tensor, "batch width h w"]:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv1(x) * (1 + scale) + shift
        return x + self.conv2(F.silu(h))


class ConditionalEDSR(nn.Module):
    """EDSR's residual trunk as a ResShift network in pixel space.

    The noisy image is folded to the low resolution by pixel-unshuffle (a lossless first stage), joined with
    the low-quality image, passed through `blocks` residual blocks and unfolded again; the bicubic
    enlargement is added, so that a fresh network predicts it. There is no normalisation and no pooling: a
    pixel depends on a window of `receptive_field` low-quality pixels to each side and on nothing else, which
    makes tiled and whole results agree exactly.

    Args:
        channels: image channels.
        scale: enlargement.
        width: feature channels (even).
        blocks: residual blocks.

    Reference: Lim et al. 2017, "Enhanced Deep Residual Networks for Single Image Super-Resolution";
        Yue et al. 2023, "ResShift", for what the network is told and asked.
    """

    def __init__(self, channels: int = 3, scale: int = 4, width: int = 64, blocks: int = 16) -> None:
        super().__init__()
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        self.scale = scale
        self.width = width
        embedding = 2 * width
        self.time_embed = nn.Sequential(
            nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.head = nn.Conv2d(channels * (scale**2 + 1), width, 3, padding=1)
        self.body = nn.ModuleList(ModulatedBlock(width, embedding) for _ in range(blocks))
        self.tail = nn.Conv2d(width, channels * scale**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        if self.tail.bias is not None:
            nn.init.zeros_(self.tail.bias)

    @property
    def receptive_field(self) -> int:
        """Low-quality pixels to each side on which an output pixel depends.

        Every block has two 3×3 convolutions; head and tail add one pixel each; the bicubic enlargement
        reaches no further than two.
        """
        return max(2, 2 * len(self.body) + 2)

    def forward(
        self, x: Float[Tensor, "batch channels H W"], t: Tensor, lq: Float[Tensor, "batch channels h w"]
    ) -> Float[Tensor, "batch channels H W"]:
        """Predict the clean image.

        Args:
            x: noisy image, already scaled by the path's input scale.
            t: step index, shape (batch,).
            lq: low-quality image in [-1, 1], H = scale·h.
        """
        embedding = self.time_embed(told_time(t, self.width).to(self.head.weight.dtype))
        features = self.head(torch.cat([F.pixel_unshuffle(x, self.scale), lq], dim=1))
        h = features
        for block in self.body:
            h = block(h, embedding)
        enlarged = F.interpolate(lq, scale_factor=self.scale, mode="bicubic")
        return enlarged + F.pixel_shuffle(self.tail(h + features), self.scale)
