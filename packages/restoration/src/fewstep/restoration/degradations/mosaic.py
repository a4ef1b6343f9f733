"""Mosaics: blocks of one colour, and the one colour per pixel of a camera's sensor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Degraded, check_clean, check_integers, check_range, draw_integer, to_uint8

PATTERNS = ("RGGB", "BGGR", "GRBG", "GBRG")


@dataclass(frozen=True)
class Mosaic:
    """Pixelation: square blocks, each filled with its mean; the blocks begin at a random place.

    Args:
        block: range of the side of a block in pixels, integers.

    Raises:
        ValueError: not integers of at least 1.

    Example:
        >>> ramp = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
        >>> len(np.unique(Mosaic((2, 2))(ramp, np.random.default_rng(4)).lq[..., 0])) <= 9
        True
    """

    block: tuple[int, int] = (4, 16)

    def __post_init__(self) -> None:
        check_range("block", self.block, 1)
        check_integers("block", self.block)

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Fill blocks with their means."""
        check_clean(clean)
        side = draw_integer(rng, self.block)
        rows = block_starts(clean.shape[0], side, int(rng.integers(side)))
        columns = block_starts(clean.shape[1], side, int(rng.integers(side)))
        heights = np.diff(rows, append=clean.shape[0])
        widths = np.diff(columns, append=clean.shape[1])
        sums = np.add.reduceat(clean, rows, axis=0, dtype=np.float64)
        sums = np.add.reduceat(sums, columns, axis=1)
        means = to_uint8(sums / (heights[:, None] * widths)[..., None])
        return Degraded(means.repeat(heights, axis=0).repeat(widths, axis=1))


def block_starts(size: int, side: int, phase: int) -> np.ndarray:
    """Say where the blocks of one axis begin; the first and the last may be cut.

    Args:
        size: pixels of the axis.
        side: pixels of a block.
        phase: pixels of the first block that are cut away, 0 … side − 1.

    Returns:
        The first pixel of each block, beginning with 0.

    Example:
        >>> block_starts(10, 4, 1).tolist()
        [0, 3, 7]
    """
    starts = np.arange(-phase, size, side)
    starts[0] = 0
    return starts


@dataclass(frozen=True)
class Bayer:
    """What a camera's sensor sees, each pixel one colour, with the two missing ones interpolated bilinearly.

    Args:
        patterns: the colours of the upper left 2 × 2 pixels, row by row; one is drawn for each image, since a
            crop may begin at any pixel of the sensor.

    Raises:
        ValueError: no pattern, or an unknown one; an image smaller than 2 × 2.

    Example:
        >>> grey = np.full((6, 8, 3), 90, np.uint8)
        >>> bool((Bayer()(grey, np.random.default_rng(0)).lq == 90).all())
        True
    """

    patterns: tuple[str, ...] = PATTERNS

    def __post_init__(self) -> None:
        if not self.patterns or not set(self.patterns) <= set(PATTERNS):
            raise ValueError(f"patterns must be among {', '.join(PATTERNS)}, got {self.patterns!r}")

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Throw away two of the three colours of each pixel and interpolate them."""
        check_clean(clean)
        if min(clean.shape[:2]) < 2:
            raise ValueError(f"clean must be at least 2 × 2 pixels, got shape {clean.shape}")
        pattern = self.patterns[int(rng.integers(len(self.patterns)))]
        seen = bayer_mask(clean.shape[:2], pattern)
        return Degraded(to_uint8(interpolate(clean * seen, seen)))


def bayer_mask(size: tuple[int, int], pattern: str) -> np.ndarray:
    """Say which colour a pixel of the sensor sees.

    Args:
        size: (height, width).
        pattern: one of `PATTERNS`.

    Returns:
        (height, width, 3) bool, one True in each pixel.
    """
    cell = np.array([[colour == seen for colour in "RGB"] for seen in pattern]).reshape(2, 2, 3)
    return np.tile(cell, (-(-size[0] // 2), -(-size[1] // 2), 1))[: size[0], : size[1]]


def interpolate(samples: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Fill a channel's missing samples with the mean of their neighbours, weighted (1, 2, 1) × (1, 2, 1).

    On a Bayer pattern this is the bilinear interpolation, at the border from fewer neighbours.

    Args:
        samples: (height, width, 3), 0 where not seen.
        seen: (height, width, 3) bool.

    Returns:
        (height, width, 3) float32; samples that were seen are unchanged.
    """
    filled = _neighbours(samples.astype(np.float32)) / _neighbours(seen.astype(np.float32))
    return np.where(seen, samples, filled).astype(np.float32)


def _neighbours(x: np.ndarray) -> np.ndarray:
    """Σ over 3 × 3 neighbours, weighted (1, 2, 1) × (1, 2, 1), with zeros beyond the border."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
