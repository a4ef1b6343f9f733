"""A model over an image of any size: windows with one common noise, blended and written row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.layout import Window, Windowing
from fewstep.core.noise import NoiseField
from fewstep.core.windows import Blender

from .rows import RowWriter, to_signed

# A trained network looks far, and further with every call, but cares about what is near: in the shipped model
# what lies beyond 16 pixels changes one 8-bit value in a hundred thousand, and that by one.
_LOCAL_PAD = 24
_GLOBAL_PAD = 32
# Of main memory, for rows that are not finished.
_HOST_BUDGET = 1e9
# Low-quality tiles (batch, 3, h, w) in [−1, 1] and their places (row, column) → (batch, 3, scale·h, scale·w).
TileFunction = Callable[[Tensor, Sequence[tuple[int, int]]], Tensor]


@dataclass(frozen=True)
class Tiling:
    """How an image is cut into windows.

    Args:
        tile: side in low-quality pixels of the part of a window that is its own; 0 takes the image whole.
        pad: low-quality pixels around it that a window sees as well.
        halo: how many of them, from the outside, are thrown away; across the rest neighbours are blended.
        batch: windows that run together.
        multiple: places and sides of windows are multiples of this, so that what a network folds or reduces
            is folded as in the whole image.
    """

    tile: int
    pad: int = _LOCAL_PAD
    halo: int = _LOCAL_PAD
    batch: int = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.tile < 0 or 0 < self.tile < 16:
            raise ValueError(f"tile: expected 0 (no tiles) or at least 16 pixels, got {self.tile}")
        if self.pad < 0:
            raise ValueError(f"tile_pad: expected 0 or more pixels, got {self.pad}")
        if not 0 <= self.halo <= self.pad:
            raise ValueError(f"halo: expected 0 to the pad of {self.pad} pixels, got {self.halo}")

    @classmethod
    def choose(
        cls,
        size: tuple[int, int],
        tile: int | str = "auto",
        pad: int | None = None,
        reach: int | None = None,
        pixel_bytes: int = 4096,
        budget: float = 1e9,
        scale: int = 4,
        multiple: int = 1,
    ) -> Tiling:
        """Fill in what was not given.

        Args:
            size: (height, width) in low-quality pixels.
            tile: a side in pixels, 0 for the whole image, or "auto": the whole image if `budget` allows it,
                else the largest multiple of 64 that it allows.
            pad: pixels around a tile; by default at most 24, or 32 when the network looks at everything.
            reach: pixels to each side on which one call of the network depends; None when there is no limit.
            pixel_bytes: memory of the network per low-quality pixel.
            budget: memory in bytes that windows may take.
            scale: enlargement.
            multiple: of places and sides; tile and pad are rounded up to it.

        Returns:
            The tiling.

        Raises:
            ValueError: a tile that is no side length, or a negative pad.

        Example:
            >>> [Tiling.choose(size, reach=36).tile for size in ((400, 300), (4000, 3000), (8000, 6000))]
            [0, 384, 192]
        """
        if pad is None:
            pad = _GLOBAL_PAD if reach is None else min(_LOCAL_PAD, reach)
        # A network without a limit is blended over three quarters of what neighbours share.
        halo = pad // 4 if reach is None else min(pad, reach)
        pixels = budget / pixel_bytes
        if tile == "auto":
            whole = size[0] * size[1] <= pixels
            # Rows that wait are float32 RGB as long as the short side; while they grow there are 3 copies.
            waiting = _HOST_BUDGET / (3 * 12 * scale**2 * min(size))
            tile = 0 if whole else max(64, int(min(pixels**0.5, waiting) - 2 * pad) // 64 * 64)
        if isinstance(tile, int):
            tile, pad = (-(-side // multiple) * multiple for side in (tile, pad))
        if not isinstance(tile, int):
            raise ValueError(f"tile: expected a side in pixels, 0 (no tiles) or 'auto', got {tile!r}")
        batch = 1 if tile == 0 else int(min(16, max(1, pixels // (tile + 2 * pad) ** 2)))
        return cls(tile, pad, halo, batch, multiple)

    def blender(self, size: tuple[int, int]) -> Blender:
        """What cuts, runs and blends an image of this size.

        Args:
            size: (height, width) in low-quality pixels.

        Returns:
            A blender whose windows are `tile + 2·pad` long.
        """
        if self.tile == 0:
            return Blender(Windowing(max(size)), 1)
        windowing = Windowing(self.tile + 2 * self.pad, 2 * self.pad, self.halo, self.multiple)
        return Blender(windowing, self.batch)

    def extended(self, size: tuple[int, int]) -> tuple[int, int]:
        """The size that windows cover: tiled axes are extended to whole multiples, beyond the image."""
        longest = self.tile + 2 * self.pad
        height, width = (
            -(-side // self.multiple) * self.multiple if self.tile and side > longest else side
            for side in size
        )
        return height, width


def restore_into(
    target: np.ndarray,
    source: np.ndarray,
    function: TileFunction,
    tiling: Tiling,
    scale: int,
    on_progress: Callable[[int, int], object] | None = None,
) -> None:
    """Restore grey or colour channels into an image of the wanted size, in bounded memory.

    Args:
        target: (out height, out width, channels) uint8, uint16 or float32 in [0, 1]; written. When its size
            is not `scale` times the source's, the result is resized with antialiased bicubic interpolation.
        source: (height, width, 1 or 3).
        function: restores tiles; grey is given to it as three equal channels, and its mean is taken.
        tiling: how to cut.
        scale: enlargement of `function`.
        on_progress: called as on_progress(windows done, windows in all).
    """
    # Rows are finished one after the other, so memory grows with their length: let them be the short side.
    turned = source.shape[1] > source.shape[0]
    if turned:
        source, target = source.swapaxes(0, 1), target.swapaxes(0, 1)
    channels = source.shape[2]

    def run(group: Sequence[Window]) -> Tensor:
        tiles = torch.stack([to_signed(crop(source, window)) for window in group]).expand(-1, 3, -1, -1)
        if turned:
            places = [(window.start[1], window.start[0]) for window in group]
            restored = function(tiles.transpose(2, 3).contiguous(), places).transpose(2, 3)
        else:
            restored = function(tiles, [(window.start[0], window.start[1]) for window in group])
        restored = restored.to("cpu", torch.float32)
        return restored.mean(dim=1, keepdim=True) if channels == 1 else restored

    height, width = source.shape[:2]
    writer = RowWriter(target, (scale * height, scale * width))
    size = tiling.extended((height, width))
    blender = tiling.blender(size)
    for band in blender.bands(run, size, scale=scale, device="cpu", progress=on_progress):
        rows = band.values[0][:, : scale * height - band.start, : scale * width]
        if rows.shape[1]:
            writer.write(rows)


def crop(source: np.ndarray, window: Window) -> np.ndarray:
    """A window of an image that goes on beyond its lower and right border as its mirror image.

    Args:
        source: (height, width, ...).
        window: begins inside of it.

    Returns:
        (window height, window width, ...).

    Example:
        >>> crop(np.arange(4).reshape(1, 4), Window((0, 2), (1, 4))).tolist()
        [[2, 3, 2, 1]]
    """
    rows, columns = (
        slice(first, first + count) if first + count <= size else _mirrored(first, count, size)
        for first, count, size in zip(window.start, window.shape, source.shape[:2], strict=True)
    )
    return source[rows][:, columns]


def _mirrored(first: int, count: int, size: int) -> np.ndarray:
    index = np.arange(first, first + count)
    return np.where(index < size, index, 2 * (size - 1) - index)


class TileNoise:
    """A `noise(like)` function for a batch of tiles: successive draws of one field, each at its tile's place.

    Args:
        field: the noise of the whole image.
        places: (row, column) of each tile in low-quality pixels.
        ratio: state samples per low-quality pixel.
    """

    def __init__(self, field: NoiseField, places: Sequence[tuple[int, int]], ratio: int | Fraction) -> None:
        self.field = field
        self.origins = [(int(ratio * row), int(ratio * column)) for row, column in places]
        self.draws = 0

    def __call__(self, like: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        drawn = [
            self.field.crop(self.draws, origin, like.shape[2:], like.device, like.dtype)
            for origin in self.origins
        ]
        self.draws += 1
        return torch.stack(drawn)
