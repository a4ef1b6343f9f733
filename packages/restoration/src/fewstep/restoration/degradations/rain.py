"""Synthetic rain: parallel bright streaks before the scene."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .base import (
    Degraded,
    Range,
    check_clean,
    check_integers,
    check_range,
    check_share,
    draw,
    draw_integer,
    to_uint8,
)


@dataclass(frozen=True)
class Rain:
    """Streaks s over an image x: x + opacity · (1 − x) · s on the scale 0 … 1.

    Random dots, smeared along a line, make s = min(gain · (line ∗ dots), clip). Gain, length and angle are
    drawn once for an image, place and weight for each dot.

    Args:
        gain: range of the factor of the streaks.
        density: share of the pixels that hold a dot.
        weight: range of a dot's weight.
        length: range of the length of a streak in pixels, integers.
        angle: greatest angle between the streaks and the vertical in degrees.
        clip: greatest value of s.
        opacity: how far a streak of s = 1 brightens towards white.

    Raises:
        ValueError: a field out of its limits.

    Example:
        >>> rainy = Rain()(np.full((32, 32, 3), 60, np.uint8), np.random.default_rng(0)).lq
        >>> int(rainy.min()), bool(rainy.max() > 100)
        (60, True)
    """

    gain: Range = (3.0, 8.0)
    density: float = 0.01
    weight: Range = (0.6, 1.6)
    length: tuple[int, int] = (11, 23)
    angle: float = 25.0
    clip: float = 0.85
    opacity: float = 0.8

    def __post_init__(self) -> None:
        check_range("gain", self.gain, 0.0)
        check_range("weight", self.weight, 0.0)
        check_range("length", self.length, 1)
        check_integers("length", self.length)
        for name in ("density", "clip", "opacity"):
            check_share(name, getattr(self, name))
        if not isinstance(self.angle, int | float) or not 0 <= self.angle <= 45:
            raise ValueError(f"angle must lie within 0 … 45 degrees from the vertical, got {self.angle!r}")

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Let it rain."""
        check_clean(clean)
        line = motion_line(draw_integer(rng, self.length), draw(rng, (-self.angle, self.angle)))
        gain = draw(rng, self.gain)
        streaks = smeared_dots(clean.shape[:2], line, self.density, self.weight, rng)
        streaks *= np.float32(gain)
        np.minimum(streaks, np.float32(self.clip), out=streaks)
        streaks *= np.float32(self.opacity)
        rainy = 255.0 - clean.astype(np.float32)
        rainy *= streaks[..., None]
        rainy += clean
        return Degraded(to_uint8(rainy))


def motion_line(length: int, angle: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make the point spread of a straight motion: a line one pixel wide, whose taps add up to one.

    Args:
        length: of the motion in pixels.
        angle: to the vertical in degrees, at most 45 either way; positive from the upper left.

    Returns:
        (rows, columns, weights): integer offsets from 0, one tap for each row that the line crosses.

    Example:
        >>> [part.tolist() for part in motion_line(4, 30.0)]
        [[0, 1, 2], [0, 1, 2], [0.3333333432674408, 0.3333333432674408, 0.3333333432674408]]
    """
    count = max(1, round(length * math.cos(math.radians(angle))))
    rows = np.arange(count)
    columns = np.rint((rows - (count - 1) / 2) * math.tan(math.radians(angle))).astype(np.int64)
    return rows, columns - columns.min(), np.full(count, 1.0 / count, np.float32)


def smeared_dots(
    size: tuple[int, int],
    line: tuple[np.ndarray, np.ndarray, np.ndarray],
    density: float,
    weight: Range,
    rng: np.random.Generator,
) -> np.ndarray:
    """Convolve sparse random dots with a line; streaks that begin outside of the image come into it.

    Args:
        size: (height, width) of the image.
        line: (rows, columns, weights) of the line.
        density: share of the pixels that hold a dot.
        weight: range of a dot's weight.
        rng: the source of the draws.

    Returns:
        (height, width) float32.
    """
    rows, columns, weights = line
    margin, border = int(rows.max()), int(columns.max())
    height, width = size[0] + 2 * margin, size[1] + 2 * border
    # The dots lie in the image and to its upper left: the taps reach to the lower right only.
    dots = rng.random((size[0] + margin, size[1] + border), dtype=np.float32) < density
    y, x = np.nonzero(dots)
    heights = rng.uniform(weight[0], weight[1], len(y))
    places = (y * width + x)[:, None] + rows * width + columns
    values = heights[:, None] * weights
    out = np.bincount(places.ravel(), values.ravel(), height * width).reshape(height, width)
    return out[margin : margin + size[0], border : border + size[1]].astype(np.float32)
