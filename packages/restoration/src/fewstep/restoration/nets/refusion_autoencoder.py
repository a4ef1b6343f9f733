"""Refusion's autoencoder: a U-Net whose decoder needs what its encoder kept of the image."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..methods.padding import reflect_to_multiple
from .irsde_blocks import Attend, LinearAttention, ResBlock, conv3, down, up


class DownLevel(nn.ModuleList):
    """Two blocks whose features are kept, attention on the last level, half the resolution."""

    def __init__(self, width: int, attend: nn.Module, shrink: nn.Module) -> None:
        super().__init__([ResBlock(width, width), ResBlock(width, width), attend, shrink])

    def forward(self, h: Tensor, kept: list[Tensor]) -> Tensor:
        block1, block2, attend, shrink = self
        kept.append(block1(h))
        kept.append(attend(block2(kept[-1])))
        return shrink(kept[-1])


class UpLevel(nn.ModuleList):
    """Two blocks that are given what was kept, attention on the first level, twice the resolution."""

    def __init__(self, width: int, kept: int, attend: nn.Module, grow: nn.Module) -> None:
        super().__init__([ResBlock(width + kept, width), ResBlock(width + kept, width), attend, grow])

    def forward(self, h: Tensor, last: Tensor, first: Tensor) -> Tensor:
        block1, block2, attend, grow = self
        h = block1(torch.cat([h, last], dim=1))
        h = block2(torch.cat([h, first], dim=1))
        return grow(attend(h))


class RefusionAutoencoder(nn.Module):
    """The autoencoder of latent Refusion: only the coarsest features go through diffusion.

    `encode` gives the latent and the features on the way to it; `decode` wants both. In restoration the
    features are those of the degraded image, the latent is the restored one.

    Args:
        in_ch: image channels.
        out_ch: channels given.
        ch: features at full resolution.
        ch_mult: features of the levels after the first one, as multiples of ch.
        embed_dim: channels of the latent.

    Example:
        >>> stage = RefusionAutoencoder(ch=8, ch_mult=(1, 2)).eval()
        >>> z, kept = stage.encode(torch.zeros(1, 3, 8, 12))
        >>> z.shape, stage.decode(z, kept).shape
        (torch.Size([1, 4, 4, 6]), torch.Size([1, 3, 8, 12]))

    Reference: Luo et al. 2023, "Refusion", section 3.2.
    """

    def __init__(
        self,
        in_ch: int = 3,
        out_ch: int = 3,
        ch: int = 64,
        ch_mult: Sequence[int] = (1, 2, 4, 4),
        embed_dim: int = 4,
    ) -> None:
        super().__init__()
        widths = [ch, *(ch * m for m in ch_mult)]
        self.levels = levels = len(widths) - 1
        if levels < 1:
            raise ValueError("ch_mult must have at least one entry, got none")
        self.latent_channels, self.width = embed_dim, ch
        self.init_conv = nn.Conv2d(in_ch, ch, 3, padding=1, bias=False)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for i in range(levels):
            fine, coarse = widths[i], widths[i + 1]
            last = i == levels - 1
            shrink = conv3(fine, coarse) if last else down(fine, coarse)
            grow = up(coarse, fine) if i else conv3(coarse, fine)
            self.encoder.append(DownLevel(fine, attention(fine, last), shrink))
            self.decoder.insert(0, UpLevel(coarse, fine, attention(coarse, last), grow))
        self.latent_conv = nn.Conv2d(widths[-1], embed_dim, 1, bias=False)
        self.post_latent_conv = nn.Conv2d(embed_dim, widths[-1], 1, bias=False)
        self.final_conv = nn.Conv2d(ch, out_ch, 3, padding=1)

    @property
    def factor(self) -> int:
        """How many times smaller the sides of the latent are."""
        return 2 ** (self.levels - 1)

    @property
    def multiple(self) -> int:
        """Sides are extended by reflection to multiples of this, twice the factor, as published."""
        return 2**self.levels

    def encode(self, x: Float[Tensor, "batch 3 h w"]) -> tuple[Tensor, list[Tensor]]:
        """Image to latent and kept features."""
        extended = reflect_to_multiple(x, self.multiple)
        kept = [self.init_conv(extended.contiguous(memory_format=torch.channels_last))]
        h = kept[0]
        for level in self.encoder:
            h = level(h, kept)
        return self.latent_conv(h), kept

    def decode(
        self, z: Float[Tensor, "batch latent h w"], kept: Sequence[Tensor]
    ) -> Float[Tensor, "batch 3 h2 w2"]:
        """Latent and kept features to image, of the extended size."""
        first, *pairs = kept
        h = self.post_latent_conv(z)
        for level in self.decoder:
            h = level(h, pairs.pop(), pairs.pop())
        return self.final_conv(h + first)

    def forward(self, x: Float[Tensor, "batch 3 h w"]) -> Float[Tensor, "batch 3 h w"]:
        """The image after encoding and decoding."""
        return self.decode(*self.encode(x))[..., : x.shape[-2], : x.shape[-1]]


def attention(width: int, wanted: bool) -> nn.Module:
    """Linear attention, or nothing."""
    return Attend(width, LinearAttention(width)) if wanted else nn.Identity()
