"""RDDM's networks for residual and noise: one U-Net, two, or two ways up from one encoder."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .cache import Remembered, Remembering
from .rddm_blocks import ResnetBlock
from .rddm_unet import Encoder, RDDMUnet, climb, joined

SHARED, SEPARATE, SINGLE = 1, 0, -1
# Pairs of times that keep their halves.
REMEMBERED_PAIRS = 32


def unet_res(
    dim: int = 64,
    dim_mults: Sequence[int] = (1, 2, 4, 8),
    channels: int = 3,
    condition_channels: int = 3,
    share_encoder: int = SEPARATE,
    groups: int = 8,
) -> "UnetRes | SharedUnetRes":
    """A network that predicts residual and noise, or one of them.

    Args:
        dim: width of the first level.
        dim_mults: widths of the levels in units of `dim`, from full resolution down.
        channels: image channels.
        condition_channels: channels of all that is joined to the noisy image.
        share_encoder: 0, a U-Net each for the two heads; −1, one U-Net and one head; 1, one encoder with two
            ways up.
        groups: of the group normalisations.

    Raises:
        ValueError: share_encoder is something else.

    Example:
        >>> net, x = unet_res(8, (1, 2)), torch.zeros(1, 3, 16, 24)
        >>> net(x, torch.tensor([3]), lq=x).shape
        torch.Size([1, 6, 16, 24])

    Reference: Liu et al. 2024, "Residual Denoising Diffusion Models", section 4.2 and appendix.
    """
    if share_encoder == SHARED:
        return SharedUnetRes(dim, dim_mults, channels, condition_channels, groups)
    if share_encoder not in (SEPARATE, SINGLE):
        raise ValueError(
            f"share_encoder must be 0 (two networks), 1 (shared) or -1 (one), got {share_encoder}"
        )
    heads = 2 if share_encoder == SEPARATE else 1
    return UnetRes(heads, dim, dim_mults, channels, condition_channels, groups)


class UnetRes(Remembering):
    """A U-Net for each head, under the names of the published files.

    Args:
        heads: 1 or 2.
        dim: as of `unet_res`, like all that follow.
        dim_mults: widths of the levels.
        channels: image channels.
        condition_channels: channels of what is joined to the noisy image.
        groups: of the group normalisations.
    """

    def __init__(
        self,
        heads: int,
        dim: int,
        dim_mults: Sequence[int],
        channels: int,
        condition_channels: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.unet0 = RDDMUnet(dim, dim_mults, channels, condition_channels, groups=groups)
        self.unet1: RDDMUnet | None = None
        if heads == 2:
            self.unet1 = RDDMUnet(dim, dim_mults, channels, condition_channels, groups=groups)
        self.heads, self.dim, self.multiple = heads, dim, self.unet0.multiple
        self.remembered: Remembered[tuple[Tensor, ...]] = Remembered(REMEMBERED_PAIRS)

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Shaped[Tensor, "batch *heads"],
        lq: Float[Tensor, "batch lq h w"] | None = None,
        mask: Float[Tensor, "batch mask h w"] | None = None,
    ) -> Float[Tensor, "batch out h w"]:
        """Predict; the heads follow each other along the channels.

        Args:
            x: noisy image.
            t: times, whole or not: shape (batch,), or (batch, heads) where the heads are told different ones.
            lq: what is joined to it first: the degraded image.
            mask: what is joined next: a mask, or another image.
        """
        told = joined(x, lq, mask, self.unet0.init_conv.weight)
        if self.unet1 is None:
            return self.unet0(told, t if t.ndim == 1 else self._each(t)[0])
        first, second = (t, t) if t.ndim == 1 else self._each(t)
        return torch.cat([self.unet0(told, first), self.unet1(told, second)], dim=1)

    def _each(self, t: Tensor) -> tuple[Tensor, ...]:
        """The heads' times; the same objects for the same pair: what follows is remembered."""
        return self.remembered.get((t,), lambda: t.unbind(1))


class SharedUnetRes(Encoder):
    """One encoder with two ways up, under the names of the published files.

    The first head's way up is not joined to the features of the way down.

    Args:
        dim: as of `unet_res`, like all that follow.
        dim_mults: widths of the levels.
        channels: image channels.
        condition_channels: channels of what is joined to the noisy image.
        groups: of the group normalisations.
    """

    heads = 2

    def __init__(
        self, dim: int, dim_mults: Sequence[int], channels: int, condition_channels: int, groups: int
    ) -> None:
        super().__init__(channels + condition_channels, dim, dim_mults, groups)
        self.ups_no_skip = self.way_up(skips=False)
        self.ups = self.way_up(skips=True)
        self.final_res_block_1 = ResnetBlock(dim, dim, 4 * dim, groups)
        self.final_conv_1 = nn.Conv2d(dim, channels, 1)
        self.final_res_block_2 = ResnetBlock(2 * dim, dim, 4 * dim, groups)
        self.final_conv_2 = nn.Conv2d(dim, channels, 1)

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Shaped[Tensor, "batch"],
        lq: Float[Tensor, "batch lq h w"] | None = None,
        mask: Float[Tensor, "batch mask h w"] | None = None,
    ) -> Float[Tensor, "batch out h w"]:
        """Predict; arguments and result as of `UnetRes`, but for the times, which are those of both heads."""
        embedding = self.time_mlp(t)
        deep, skips = self.encode(joined(x, lq, mask, self.init_conv.weight), embedding)
        h = self.final_res_block_1(climb(self.ups_no_skip, deep, None, embedding), embedding)
        first = self.final_conv_1(h)
        h = climb(self.ups, deep, skips, embedding)
        h = self.final_res_block_2(torch.cat([h, skips.pop()], dim=1), embedding)
        return torch.cat([first, self.final_conv_2(h)], dim=1)
