"""Refusion's NAFNet: blocks without activation functions, told the degraded image and the time."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .cache import Remembered, Remembering
from .conditional_unet import REMEMBERED_TIMES
from .inplace import times
from .irsde_blocks import ChannelNorm, Modulation, SimpleGate, sinusoids
from .rddm_blocks import Pointwise


class Pair(NamedTuple):
    """Modulations of the two halves of a block."""

    attention: Modulation
    feed_forward: Modulation


class NAFBlock(nn.Module):
    """x + beta·attention(x), then + gamma·feed-forward; each on normed features that the time modulates.

    attention: 1×1, 3×3 depthwise, gate, channel attention (a 1×1 convolution of the mean over all pixels),
    1×1. Feed-forward: 1×1, gate, 1×1. The gate multiplies the two halves of the channels.

    Args:
        channels: features.
        embedding: channels of the time embedding.

    Reference: Chen et al. 2022, "Simple Baselines for Image Restoration" (NAFNet), figure 3; Luo et al. 2023,
        "Refusion", figure 3, for the time.
    """

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        double = 2 * channels
        self.mlp = nn.Sequential(SimpleGate(), nn.Linear(embedding // 2, 4 * channels))
        self.conv1 = Pointwise(channels, double)
        self.conv2 = nn.Conv2d(double, double, 3, padding=1, groups=double)
        self.conv3 = Pointwise(channels, channels)
        self.sca = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, channels, 1))
        self.conv4 = Pointwise(channels, double)
        self.conv5 = Pointwise(channels, channels)
        self.norm1, self.norm2 = ChannelNorm(channels), ChannelNorm(channels)
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.gate = SimpleGate()

    def forward(
        self, x: Float[Tensor, "batch channels h w"], told: Pair
    ) -> Float[Tensor, "batch channels h w"]:
        h = self.gate(self.conv2(self.conv1(self.norm1(x, told.attention))))
        x = torch.addcmul(x, self.conv3(times(h, self.sca(h))), self.beta)
        h = self.gate(self.conv4(self.norm2(x, told.feed_forward)))
        return torch.addcmul(x, self.conv5(h), self.gamma)

    def modulation(self, embedding: Float[Tensor, "batch embedding"]) -> Pair:
        """Gains and shifts of one time, shaped for feature maps."""
        shift1, scale1, shift2, scale2 = self.mlp(embedding)[:, :, None, None].chunk(4, dim=1)
        return Pair(Modulation(1 + scale1, shift1), Modulation(1 + scale2, shift2))


class Blocks(nn.Sequential):
    """Blocks in turn, each told its modulation."""

    def forward(self, x: Tensor, told: Iterator[Pair]) -> Tensor:
        for block in self:
            x = block(x, next(told))
        return x


class ConditionalNAFNet(Remembering):
    """The network of Refusion, for images and for latents.

    It is shown x − y and y, or x alone where the process has no degraded image (denoising). Any size is
    taken: sides are extended with zeros to a multiple of 2^levels and the result is cut. Skips are added.

    Args:
        img_channel: channels of the state.
        width: features of the first level, doubled from level to level.
        enc_blk_nums: blocks of each level on the way down.
        middle_blk_num: blocks in the middle.
        dec_blk_nums: blocks of each level on the way up.
        conditional: the network is shown y.
        long_skip: the first convolution's features are added before the last one, as in the variant that
            was published for the latents of dehazing.

    Raises:
        ValueError: different numbers of levels on the two ways.

    Example:
        >>> net = ConditionalNAFNet(width=8, enc_blk_nums=[1], dec_blk_nums=[1]).eval()
        >>> net(torch.zeros(1, 3, 5, 7), torch.ones(1), torch.zeros(1, 3, 5, 7)).shape
        torch.Size([1, 3, 5, 7])

    Reference: Luo et al. 2023, "Refusion: Enabling Large-Size Realistic Image Restoration with Latent-Space
        Diffusion Models", section 3.3.
    """

    def __init__(
        self,
        img_channel: int = 3,
        width: int = 64,
        enc_blk_nums: Sequence[int] = (1, 1, 1, 28),
        middle_blk_num: int = 1,
        dec_blk_nums: Sequence[int] = (1, 1, 1, 1),
        conditional: bool = True,
        long_skip: bool = False,
    ) -> None:
        super().__init__()
        levels = len(enc_blk_nums)
        if levels != len(dec_blk_nums):
            raise ValueError(
                f"dec_blk_nums must have one entry per level like enc_blk_nums ({levels}), "
                f"got {len(dec_blk_nums)}"
            )
        self.width, self.factor, self.conditional, self.long_skip = width, 2**levels, conditional, long_skip
        time = 4 * width
        # The first place is the published one's embedding without weights.
        self.time_mlp = nn.Sequential(
            nn.Identity(), nn.Linear(width, 2 * time), SimpleGate(), nn.Linear(time, time)
        )
        self.intro = nn.Conv2d(img_channel * (1 + conditional), width, 3, padding=1)
        self.ending = nn.Conv2d(width, img_channel, 3, padding=1)
        widths = [width << level for level in range(levels + 1)]
        self.encoders = nn.ModuleList(blocks(w, time, n) for w, n in zip(widths, enc_blk_nums, strict=False))
        self.downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, stride=2) for w in widths[:-1])
        self.middle_blks = blocks(widths[-1], time, middle_blk_num)
        self.ups = nn.ModuleList(
            nn.Sequential(nn.Conv2d(w, 2 * w, 1, bias=False), nn.PixelShuffle(2)) for w in widths[:0:-1]
        )
        self.decoders = nn.ModuleList(
            blocks(w, time, n) for w, n in zip(widths[-2::-1], dec_blk_nums, strict=True)
        )
        self.remembered: Remembered[list[Pair]] = Remembered(REMEMBERED_TIMES)

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Tensor,
        y: Float[Tensor, "batch channels h w"] | None = None,
    ) -> Float[Tensor, "batch channels h w"]:
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
        shown = F.pad(shown, (0, -width % self.factor, 0, -height % self.factor))
        told = iter(self.modulations(t))
        first = h = self.intro(shown.to(self.intro.weight.dtype, memory_format=torch.channels_last))
        skips: list[Tensor] = []
        for encoder, shrink in zip(self.encoders, self.downs, strict=True):
            skips.append(encoder(h, told))
            h = shrink(skips[-1])
        h = self.middle_blks(h, told)
        for decoder, grow in zip(self.decoders, self.ups, strict=True):
            h = decoder(grow(h) + skips.pop(), told)
        return self.ending(h + first if self.long_skip else h)[..., :height, :width]

    def modulations(self, t: Tensor) -> list[Pair]:
        """What the time does in each block, in the order in which they are passed."""
        return self.remembered.get((t, *self._time_parameters()), lambda: self._modulations(t))

    def _modulations(self, t: Tensor) -> list[Pair]:
        embedding = self.time_mlp(sinusoids(t, self.width).to(self.intro.weight.dtype))
        return [block.modulation(embedding) for block in self._told()]

    def _told(self) -> list[NAFBlock]:
        parts = (*self.encoders, self.middle_blks, *self.decoders)
        return [block for part in parts for block in part.children() if isinstance(block, NAFBlock)]

    def _time_parameters(self) -> list[Tensor]:
        return [*self.time_mlp.parameters(), *(p for block in self._told() for p in block.mlp.parameters())]


def blocks(channels: int, embedding: int, count: int) -> Blocks:
    """A number of blocks in turn."""
    return Blocks(*(NAFBlock(channels, embedding) for _ in range(count)))
