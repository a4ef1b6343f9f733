"""What a restoration says about itself: the noise of the input, and how far its samples differ."""

from __future__ import annotations

from typing import Any

import numpy as np

from .canvas import canvas
from .images import Picture
from .images.picture import convert_depth

# High-pass filter of Daubechies' wavelet with two vanishing moments.
_ROOT = np.sqrt(3.0)
_DETAIL = np.array([1 - _ROOT, _ROOT - 3, 3 + _ROOT, -1 - _ROOT]) / (4 * np.sqrt(2.0))
# Median of |ε| for a standard normal ε.
_NORMAL_MEDIAN = 0.6744897501960817
# From nothing to much: dark blue, violet, orange, pale yellow, with a lightness that rises evenly.
_STOPS = np.array([[8, 12, 40], [86, 34, 120], [190, 58, 84], [244, 140, 50], [252, 250, 190]], np.float64)
_LEGEND = 9
# Rows that are in float64 at a time.
_ROWS = 256


def estimate_level(picture: Picture) -> float:
    """Standard deviation of the white noise in a photograph, on the scale 0 … 255.

    σ = median |d| / 0.6745 over the diagonal details d of the finest wavelet level, in which noise has its
    full strength and photographs have next to nothing; the mean over the colours. Details that are exactly 0
    are left out: they come from clipped or artificial areas.

    Args:
        picture: the photograph; alpha is not looked at.

    Returns:
        The estimate; 0 for a photograph of less than 4 pixels a side.

    Example:
        >>> noise = np.random.default_rng(0).normal(128, 20, (200, 200, 1))
        >>> round(estimate_level(Picture(np.rint(noise).astype(np.uint8))))
        20

    Reference: Donoho & Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage", section 4.
    """
    colour = picture.colour
    if min(colour.shape[:2]) < len(_DETAIL):
        return 0.0
    levels = [_level(colour[:, :, k]) for k in range(colour.shape[2])]
    return float(np.mean(levels)) * 255.0 / picture.peak


def _level(plane: np.ndarray) -> float:
    details = np.abs(_filtered(_filtered(plane, 0), 1))
    details = details[details > 1e-9]
    return float(np.median(details)) / _NORMAL_MEDIAN if details.size else 0.0


def _filtered(plane: np.ndarray, axis: int) -> np.ndarray:
    """Every second value of the high-pass filter along an axis."""
    count = (plane.shape[axis] - len(_DETAIL)) // 2 + 1
    parts = [np.take(plane, range(k, k + 2 * count, 2), axis) * tap for k, tap in enumerate(_DETAIL)]
    return np.sum(parts, axis=0)


class Spread:
    """Mean and standard deviation of samples that come one by one (Welford's recurrence).

    Args:
        shape: (height, width, channels) of the samples.

    Example:
        >>> spread = Spread((1, 1, 1))
        >>> for value in (0.0, 0.5, 1.0):
        ...     spread.add(np.full((1, 1, 1), value, np.float32))
        >>> spread.mean.item(), spread.deviation().item()
        (0.5, 0.5)
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean = canvas(shape, np.dtype(np.float32))
        self._squares = canvas(shape, np.dtype(np.float32))
        self.mean[:] = 0
        self._squares[:] = 0

    def add(self, sample: np.ndarray) -> None:
        """Count one more sample in.

        Args:
            sample: float32 in [0, 1].
        """
        self.count += 1
        for top in range(0, len(sample), _ROWS):
            rows = slice(top, top + _ROWS)
            before = sample[rows] - self.mean[rows]
            self.mean[rows] += before / self.count
            self._squares[rows] += before * (sample[rows] - self.mean[rows])

    def deviation(self, colours: int | None = None) -> np.ndarray:
        """Unbiased standard deviation √(Σ (x − mean)²/(n − 1)), root mean square over the colours.

        Args:
            colours: channels that count; all of them by default.

        Returns:
            (height, width) float32, in units of white.
        """
        out = canvas(self.mean.shape[:2], np.dtype(np.float32))
        for top in range(0, len(out), _ROWS):
            squares = self._squares[top : top + _ROWS, :, :colours].mean(axis=2)
            out[top : top + _ROWS] = np.sqrt(squares / (self.count - 1))
        return out

    def average(self, dtype: np.dtype) -> np.ndarray:
        """The mean in the sample type of the photograph."""
        return convert_depth(self.mean, dtype.type)


def uncertainty_picture(deviation: np.ndarray, floating: bool) -> tuple[Picture, dict[str, Any]]:
    """A standard deviation as a picture, and what its colours mean.

    Args:
        deviation: (height, width) float32, in units of white.
        floating: the numbers themselves as float grey (for TIFF); otherwise 8-bit colours.

    Returns:
        The picture, and on the scale 0 … 255 the mean, the largest value, and the legend: values with their
        colours, from 0 to the 99.9th percentile, above which all have the last colour.
    """
    facts: dict[str, Any] = {
        "mean": round(255 * float(deviation.mean()), 4),
        "largest": round(255 * float(deviation.max()), 4),
    }
    if floating:
        return Picture(np.minimum(deviation, 1)[:, :, None]), {**facts, "unit": "1 is white"}
    top = max(float(np.percentile(deviation, 99.9)), 1e-6)
    pixels = np.empty((*deviation.shape, 3), np.uint8)
    for row in range(0, len(pixels), _ROWS):
        pixels[row : row + _ROWS] = colours_of(deviation[row : row + _ROWS] / top)
    steps = np.linspace(0, 1, _LEGEND)
    legend = [
        {"value": round(255 * top * step, 4), "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for step, colour in zip(steps.tolist(), colours_of(steps).tolist(), strict=True)
    ]
    return Picture(pixels), {**facts, "unit": "255 is white", "legend": legend}


def colours_of(values: np.ndarray) -> np.ndarray:
    """Colours of numbers between 0 and 1, along one more axis.

    Example:
        >>> colours_of(np.array([0.0, 2.0])).tolist()
        [[8, 12, 40], [252, 250, 190]]
    """
    where = np.linspace(0, 1, len(_STOPS))
    return np.stack([np.rint(np.interp(values, where, stop)) for stop in _STOPS.T], axis=-1).astype(np.uint8)
