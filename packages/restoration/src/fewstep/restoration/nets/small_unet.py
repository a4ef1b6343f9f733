"""A small U-Net of plain residual blocks that is told the diffusion time, for tasks that keep the size."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .edsr import ModulatedBlock, told_time


class SmallUNet(nn.Module):
    """DRUNet's U-Net of residual blocks as a diffusion network in pixel space.

    The noisy image, the low-quality image and the maps are folded by pixel-unshuffle, pass `blocks` residual
    blocks per level on the way down and up (2×2 convolutions of stride 2 between levels, skips are added) and
    are unfolded again; the low-quality image is added, so that a fresh network returns it. There is no
    normalisation, no attention and no pooling over the image: a pixel depends on a window of
    `receptive_field` pixels to each side and on nothing else.

    Args:
        channels: image channels.
        maps: further channels that are told, such as a mask.
        widths: feature channels of the levels, from the finest (the first one even).
        blocks: residual blocks per level and direction.
        fold: side of the squares of pixels that are folded into channels.

    Reference: Zhang et al. 2021, "Plug-and-Play Image Restoration with Deep Denoiser Prior" (DRUNet), fig. 1;
        Zhang, Zuo & Zhang 2018, "FFDNet", for folding and maps.
    """

    def __init__(
        self,
        channels: int = 3,
        maps: int = 0,
        widths: Sequence[int] = (32, 64, 96),
        blocks: int = 2,
        fold: int = 2,
    ) -> None:
        super().__init__()
        if not widths or widths[0] % 2:
            raise ValueError(f"widths must begin with an even number, got {tuple(widths)}")
        self.channels, self.maps, self.fold = channels, maps, fold
        self.widths, self.blocks = tuple(widths), blocks
        embedding = 4 * widths[0]
        self.time_embed = nn.Sequential(
            nn.Linear(widths[0], embedding), nn.SiLU(), nn.Linear(embedding, embedding), nn.SiLU()
        )
        self.head = nn.Conv2d((2 * channels + maps) * fold**2, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        self.shrink, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.down.append(nn.ModuleList(ModulatedBlock(width, embedding) for _ in range(blocks)))
            if level + 1 < len(widths):
                self.shrink.append(nn.Conv2d(width, widths[level + 1], 2, stride=2))
                self.grow.append(nn.ConvTranspose2d(widths[level + 1], width, 2, stride=2))
                self.up.append(nn.ModuleList(ModulatedBlock(width, embedding) for _ in range(blocks)))
        self.tail = nn.Conv2d(widths[0], channels * fold**2, 3, padding=1)
        nn.init.zeros_(self.tail.weight)
        if self.tail.bias is not None:
            nn.init.zeros_(self.tail.bias)

    @property
    def multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return self.fold * 2 ** (len(self.widths) - 1)

    @property
    def receptive_field(self) -> int:
        """Pixels to each side on which an output pixel depends at most."""
        reach, cell = 1, self.fold
        for level in range(len(self.widths)):
            ways = 1 if level + 1 == len(self.widths) else 2
            reach += (2 * self.blocks * ways + 1) * cell
            cell *= 2
        return reach + self.fold

    @property
    def pixel_bytes(self) -> int:
        """Memory of a call in bytes per pixel, roughly."""
        folded = sum(
            (4 + 2 * (level + 1 < len(self.widths))) * width / 4**level
            for level, width in enumerate(self.widths)
        )
        return int(4 * (folded / self.fold**2 + 6 * self.channels))

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Tensor,
        lq: Float[Tensor, "batch channels h w"],
        maps: Float[Tensor, "batch maps h w"] | None = None,
    ) -> Float[Tensor, "batch channels h w"]:
        """Predict the clean image.

        Args:
            x: noisy image.
            t: times, shape (batch,).
            lq: low-quality image in [-1, 1]; its sides are multiples of `multiple`.
            maps: what else is known of every pixel.
        """
        embedding = self.time_embed(told_time(t, self.widths[0]).to(self.head.weight.dtype))
        told = torch.cat([x, lq] if maps is None else [x, lq, maps], dim=1)
        h = self.head(F.pixel_unshuffle(told, self.fold))
        skips = []
        for level, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[union-attr]
                h = block(h, embedding)
            if level < len(self.shrink):
                skips.append(h)
                h = self.shrink[level](h)
        for level in reversed(range(len(self.up))):
            h = self.grow[level](h) + skips[level]
            for block in self.up[level]:  # type: ignore[union-attr]
                h = block(h, embedding)
        return lq + F.pixel_shuffle(self.tail(h), self.fold)
