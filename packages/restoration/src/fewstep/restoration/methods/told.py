"""What a network is told of every pixel beside the input: an inpainting mask, the noise level."""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Level

# Standard deviations are told in units of this, on the scale 0 … 255.
LEVEL_UNIT = 50.0
MAPS = {"mask": 1, "level": 2}


def map_channels(takes: Collection[str]) -> int:
    """Channels of the maps for what a model takes.

    Example:
        >>> map_channels({"level"})
        2
    """
    return sum(MAPS[name] for name in takes)


def told_maps(
    takes: Collection[str],
    lq: Float[Tensor, "batch channels h w"],
    mask: Float[Tensor, "batch 1 h w"] | None = None,
    level: Level = None,
) -> Float[Tensor, "batch maps h w"] | None:
    """Channels beside the input, in the order mask, level.

    The mask is told as +1 where the image is unknown and -1 where it is known. The level is told in two
    channels: whether it is known (1 or 0), and standard deviation / 50 (0 where it is not known).

    Args:
        takes: what the network is told, of "mask" and "level".
        lq: the input.
        mask: 1 where the image is unknown.
        level: standard deviation on the scale 0 … 255; None, or negative for single images: not known.

    Returns:
        The channels, or None for a network that takes nothing.
    """
    parts = []
    if "mask" in takes:
        if mask is None:
            raise ValueError("mask must be given: this model inpaints")
        parts.append(2 * mask.to(lq) - 1)
    if "level" in takes:
        values = torch.as_tensor(-1.0 if level is None else level, dtype=lq.dtype, device=lq.device)
        values = values.expand(len(lq)) if values.ndim == 0 else values
        known = (values >= 0).to(lq)
        pair = torch.stack([known, values.clamp(min=0) / LEVEL_UNIT], dim=1)
        parts.append(pair[:, :, None, None].expand(-1, -1, *lq.shape[-2:]))
    return torch.cat(parts, dim=1) if parts else None
