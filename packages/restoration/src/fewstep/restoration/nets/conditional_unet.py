"""IR-SDE's U-Net: residual blocks without norms, linear attention, told the degraded image and the time."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..methods.padding import reflect_to_multiple
from .cache import Remembered, Remembering
from .irsde_blocks import (
    Attend,
    FullAttention,
    LinearAttention,
    Modulation,
    ResBlock,
    conv3,
    down,
    sinusoids,
    up,
)

# How many visited times keep their modulations: those of the published 100 steps.
REMEMBERED_TIMES = 128
MIDDLES = {"linear": LinearAttention, "full": FullAttention}


class DownLevel(nn.ModuleList):
    """A level on the way down: two blocks whose features are kept, attention, half the resolution."""

    def __init__(self, width: int, time: int, shrink: nn.Module) -> None:
        attend = Attend(width, LinearAttention(width))
        super().__init__([ResBlock(width, width, time), ResBlock(width, width, time), attend, shrink])

    def forward(self, h: Tensor, told: Iterator[Modulation], skips: list[Tensor]) -> Tensor:
        block1, block2, attend, shrink = self
        skips.append(block1(h, next(told)))
        skips.append(attend(block2(skips[-1], next(told))))
        return shrink(skips[-1])


class UpLevel(nn.ModuleList):
    """A level on the way up: two blocks that are given what was kept, attention, twice the resolution."""

    def __init__(self, width: int, kept: int, time: int, grow: nn.Module) -> None:
        attend = Attend(width, LinearAttention(width))
        block1, block2 = (ResBlock(width + kept, width, time) for _ in range(2))
        super().__init__([block1, block2, attend, grow])

    def forward(self, h: Tensor, told: Iterator[Modulation], skips: list[Tensor]) -> Tensor:
        block1, block2, attend, grow = self
        h = block1(torch.cat([h, skips.pop()], dim=1), next(told))
        h = block2(torch.cat([h, skips.pop()], dim=1), next(told))
        return grow(attend(h))


class ConditionalUNet(Remembering):
    """The network of IR-SDE, for images and for latents.

    It is shown x − y and y, or x alone where the process has no degraded image (denoising). Any size is
    taken: sides are extended by reflection to a multiple of 2^levels and the result is cut.

    Args:
        in_nc: channels of the state.
        out_nc: channels given.
        nf: features of the first level.
        depth: levels; level i has nf·2^i features, and nf·2^depth are in the middle.
        ch_mult: features of the levels after the first one and of the middle as multiples of nf, in place of
            `depth` (the variant for latents).
        conditional: the network is shown y.
        middle: attention in the middle, "linear" or "full" (the denoising networks).

    Raises:
        ValueError: an unknown kind of attention, or no levels.

    Example:
        >>> net = ConditionalUNet(nf=8, depth=1).eval()
        >>> net(torch.zeros(1, 3, 5, 7), torch.ones(1), torch.zeros(1, 3, 5, 7)).shape
        torch.Size([1, 3, 5, 7])

    Reference: Luo et al. 2023, "Image Restoration with Mean-Reverting Stochastic Differential Equations",
        appendix; Luo et al. 2023, "Refusion", for latents.
    """

    def __init__(
        self,
        in_nc: int = 3,
        out_nc: int = 3,
        nf: int = 64,
        depth: int = 4,
        ch_mult: Sequence[int] | None = None,
        conditional: bool = True,
        middle: str = "linear",
    ) -> None:
        super().__init__()
        if middle not in MIDDLES:
            raise ValueError(f"middle must be 'linear' or 'full', got {middle!r}")
        widths = [nf * m for m in ([2**i for i in range(depth + 1)] if ch_mult is None else [1, *ch_mult])]
        levels = len(widths) - 1
        if levels < 1:
            raise ValueError(f"depth must be at least 1, got {levels}")
        self.nf, self.factor, self.conditional = nf, 2**levels, conditional
        time = 4 * nf
        self.init_conv = nn.Conv2d(in_nc * (1 + conditional), nf, 7, padding=3, bias=False)
        # The first place is the published one's embedding without weights.
        self.time_mlp = nn.Sequential(nn.Identity(), nn.Linear(nf, time), nn.GELU(), nn.Linear(time, time))
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i in range(levels):
            fine, coarse = widths[i], widths[i + 1]
            last = i == levels - 1
            self.downs.append(DownLevel(fine, time, conv3(fine, coarse) if last else down(fine, coarse)))
            self.ups.insert(0, UpLevel(coarse, fine, time, up(coarse, fine) if i else conv3(coarse, fine)))
        middle_width = widths[-1]
        self.mid_block1 = ResBlock(middle_width, middle_width, time)
        self.mid_attn = Attend(middle_width, MIDDLES[middle](middle_width))
        self.mid_block2 = ResBlock(middle_width, middle_width, time)
        self.final_res_block = ResBlock(2 * nf, nf, time)
        self.final_conv = nn.Conv2d(nf, out_nc, 3, padding=1)
        self.remembered: Remembered[list[Modulation]] = Remembered(REMEMBERED_TIMES)

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Tensor,
        y: Float[Tensor, "batch channels h w"] | None = None,
    ) -> Float[Tensor, "batch out h w"]:
        """What the network predicts (the noise, as published).

        Args:
            x: state.
            t: time of each state, or one for all; shape (batch,) or (1,).
            y: degraded image, for a conditional network.

        Raises:
            ValueError: y is missing, or is not taken.
        """
        if self.conditional != (y is not None):
            raise ValueError(f"y must be {'given: this network is conditional' if y is None else 'left out'}")
        height, width = x.shape[-2:]
        shown = x if y is None else torch.cat([x - y, y], dim=1)
        shown = reflect_to_multiple(shown, self.factor).to(
            self.init_conv.weight.dtype, memory_format=torch.channels_last
        )
        h = self.features(self.init_conv(shown), iter(self.modulations(t)))
        return self.final_conv(h)[..., :height, :width]

    def features(self, first: Tensor, told: Iterator[Modulation]) -> Tensor:
        """From the first convolution's features to those of the last block."""
        h, skips = first, []
        for level in self.downs:
            h = level(h, told, skips)
        h = self.mid_block1(h, next(told))
        h = self.mid_block2(self.mid_attn(h), next(told))
        for level in self.ups:
            h = level(h, told, skips)
        return self.final_res_block(torch.cat([h, first], dim=1), next(told))

    def modulations(self, t: Tensor) -> list[Modulation]:
        """What the time does in each residual block, in the order in which they are passed."""
        return self.remembered.get((t, *self._time_parameters()), lambda: self._modulations(t))

    def _modulations(self, t: Tensor) -> list[Modulation]:
        embedding = self.time_mlp(sinusoids(t, self.nf).to(self.init_conv.weight.dtype))
        return [block.modulation(embedding) for block in self._told()]

    def _told(self) -> list[ResBlock]:
        blocks = [self.mid_block1, self.mid_block2]
        for down_level, up_level in zip(reversed(self.downs), self.ups, strict=True):
            blocks = [*blocks_of(down_level), *blocks, *blocks_of(up_level)]
        return [*blocks, self.final_res_block]

    def _time_parameters(self) -> list[Tensor]:
        return [*self.time_mlp.parameters(), *(p for block in self._told() for p in block.mlp.parameters())]


def blocks_of(level: nn.Module) -> list[ResBlock]:
    """The residual blocks among the parts of a level."""
    return [part for part in level.children() if isinstance(part, ResBlock)]
