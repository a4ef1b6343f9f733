"""RDDM's U-Net, which Resfusion restores with too."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .rddm_blocks import Attention, LinearAttention, Residual, ResnetBlock, TimeEmbedding, Upsample, widths


class Level(nn.ModuleList):
    """Two residual blocks, linear attention, and the layer that changes resolution or width."""

    def __init__(self, taken: int, given: int, embedding: int, groups: int, change: nn.Module) -> None:
        super().__init__(
            [
                ResnetBlock(taken, given, embedding, groups),
                ResnetBlock(taken, given, embedding, groups),
                Residual(given, LinearAttention(given)),
                change,
            ]
        )


class Encoder(nn.Module):
    """First convolution, levels on the way down and middle: an RDDM U-Net without its way up.

    Args:
        in_channels: channels of the image and all that is joined to it.
        dim: width of the first level.
        dim_mults: widths of the levels in units of `dim`, from full resolution down.
        groups: of the group normalisations.
    """

    def __init__(self, in_channels: int, dim: int, dim_mults: Sequence[int], groups: int) -> None:
        super().__init__()
        if dim < 4 or dim % 2 or dim % groups or not dim_mults:
            raise ValueError(
                f"dim must be an even multiple of the {groups} groups and dim_mults not empty, "
                f"got {dim} and {tuple(dim_mults)}"
            )
        self.dim, self.dim_mults, self.groups = dim, tuple(dim_mults), groups
        self.multiple = 2 ** (len(dim_mults) - 1)
        embedding = 4 * dim
        self.init_conv = nn.Conv2d(in_channels, dim, 7, padding=3)
        self.time_mlp = TimeEmbedding(dim)
        self.downs = nn.ModuleList()
        sides = widths(dim, self.dim_mults)
        for index, (taken, given) in enumerate(sides):
            last = index + 1 == len(sides)
            change = nn.Conv2d(taken, given, 3 if last else 4, 1 if last else 2, 1)
            self.downs.append(Level(taken, taken, embedding, groups, change))
        middle = sides[-1][1]
        self.mid_block1 = ResnetBlock(middle, middle, embedding, groups)
        self.mid_attn = Residual(middle, Attention(middle))
        self.mid_block2 = ResnetBlock(middle, middle, embedding, groups)

    def way_up(self, skips: bool) -> nn.ModuleList:
        """Levels on the way up, with or without the features of the way down joined to what they take."""
        levels = nn.ModuleList()
        sides = widths(self.dim, self.dim_mults)
        for index, (below, above) in enumerate(reversed(sides)):
            last = index + 1 == len(sides)
            change = nn.Conv2d(above, below, 3, padding=1) if last else Upsample(above, below)
            taken = above + below if skips else above
            levels.append(Level(taken, above, 4 * self.dim, self.groups, change))
        return levels

    def encode(
        self, x: Float[Tensor, "batch in h w"], embedding: Float[Tensor, "batch embedding"]
    ) -> tuple[Tensor, list[Tensor]]:
        """Features at the lowest resolution, and all that the way up takes from its end."""
        if x.shape[-2] % self.multiple or x.shape[-1] % self.multiple:
            raise ValueError(
                f"x must have sides that are multiples of {self.multiple}, got {tuple(x.shape[-2:])}"
            )
        h = self.init_conv(x)
        skips = [h]
        for block1, block2, attention, change in self.downs:  # type: ignore[misc]
            skips.append(block1(h, embedding))
            skips.append(attention(block2(skips[-1], embedding)))
            h = change(skips[-1])
        return self.mid_block2(self.mid_attn(self.mid_block1(h, embedding)), embedding), skips


def climb(levels: nn.ModuleList, h: Tensor, skips: list[Tensor] | None, embedding: Tensor) -> Tensor:
    """Features at full resolution from those at the lowest; `skips` is used up from its end."""

    def joined(h: Tensor) -> Tensor:
        return h if skips is None else torch.cat([h, skips.pop()], dim=1)

    for block1, block2, attention, change in levels:  # type: ignore[misc]
        h = attention(block2(joined(block1(joined(h), embedding)), embedding))
        h = change(h)
    return h


class RDDMUnet(Encoder):
    """A U-Net of weight-standardised residual blocks with linear attention on every level.

    Parameter names are those of the published files: RDDM's `Unet` and Resfusion's `RDDM_Unet`.

    Args:
        dim: width of the first level.
        dim_mults: widths of the levels in units of `dim`, from full resolution down.
        channels: image channels.
        condition_channels: channels of all that is joined to the noisy image.
        out_channels: channels given; those of the image by default.
        groups: of the group normalisations.

    Example:
        >>> net = RDDMUnet(8, (1, 2), condition_channels=3)
        >>> x = torch.zeros(1, 3, 16, 24)
        >>> net(x, torch.tensor([3]), lq=x).shape
        torch.Size([1, 3, 16, 24])

    Reference: Liu et al. 2024, "Residual Denoising Diffusion Models", appendix; Shi et al. 2024, "Resfusion".
    """

    def __init__(
        self,
        dim: int = 64,
        dim_mults: Sequence[int] = (1, 2, 4, 8),
        channels: int = 3,
        condition_channels: int = 0,
        out_channels: int | None = None,
        groups: int = 8,
    ) -> None:
        super().__init__(channels + condition_channels, dim, dim_mults, groups)
        self.ups = self.way_up(skips=True)
        self.final_res_block = ResnetBlock(2 * dim, dim, 4 * dim, groups)
        self.final_conv = nn.Conv2d(dim, channels if out_channels is None else out_channels, 1)

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Shaped[Tensor, "batch"],
        lq: Float[Tensor, "batch lq h w"] | None = None,
        mask: Float[Tensor, "batch mask h w"] | None = None,
    ) -> Float[Tensor, "batch out h w"]:
        """Predict.

        Args:
            x: noisy image.
            t: times, whole or not, shape (batch,).
            lq: what is joined to it first: the degraded image.
            mask: what is joined next: a mask, or another image.

        Returns:
            The prediction, in the dtype of the weights.
        """
        embedding = self.time_mlp(t)
        h, skips = self.encode(joined(x, lq, mask, self.init_conv.weight), embedding)
        h = climb(self.ups, h, skips, embedding)
        h = self.final_res_block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.final_conv(h)


def joined(x: Tensor, lq: Tensor | None, mask: Tensor | None, weight: Tensor) -> Tensor:
    """The image and what is told beside it, in the precision of the weights and in their memory format."""
    told = torch.cat([part.to(weight.dtype) for part in (x, lq, mask) if part is not None], dim=1)
    if weight.is_contiguous(memory_format=torch.channels_last):
        return told.contiguous(memory_format=torch.channels_last)
    return told
