"""Rows of a result on their way into an integer image: resized and rounded while they arrive."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .resize import resize_axis, taps

# Values that are in floating point at a time while they are rounded.
_CHUNK = 2**22


class RowResizer:
    """Antialiased bicubic resizing along the rows, as `imresize_to`, of an image that arrives from the top.

    Args:
        rows: rows that will arrive.
        out_rows: rows of the result.

    Example:
        >>> resizer = RowResizer(8, 4)
        >>> parts = [resizer.push(torch.ones(1, 4, 5)), resizer.push(torch.ones(1, 4, 5))]
        >>> sum(part.shape[1] for part in parts)
        4
    """

    def __init__(self, rows: int, out_rows: int) -> None:
        self.indices, self.weights = taps(rows, out_rows, out_rows / rows)
        self._last = np.maximum.accumulate(self.indices.max(axis=1))
        self._first = np.minimum.accumulate(self.indices.min(axis=1)[::-1])[::-1]
        self._done = 0
        self._start = 0
        self._held: Tensor | None = None

    def push(self, rows: Float[Tensor, "channels n width"]) -> Float[Tensor, "channels m width"]:
        """Take the next rows and give those of the result that they complete.

        Args:
            rows: (channels, n, width).

        Returns:
            (channels, m, width); m may be 0.
        """
        held = rows if self._held is None else torch.cat([self._held, rows], dim=1)
        stop = int(np.searchsorted(self._last, self._start + held.shape[1]))
        ready = slice(self._done, stop)
        if stop > self._done:
            out = resize_axis(held, 1, self.indices[ready] - self._start, self.weights[ready])
        else:
            out = held[:, :0]
        self._done = stop
        if stop < len(self._first):
            drop = max(0, int(self._first[stop]) - self._start)
            held, self._start = held[:, drop:].clone(), self._start + drop
        self._held = held
        return out


class RowWriter:
    """Writes rows of values in [−1, 1] into an integer or float image, resized to its size if need be.

    Args:
        target: (height, width, channels) uint8, uint16, or float32 in [0, 1]; any memory layout.
        size: (height, width) of what will arrive.
    """

    def __init__(self, target: np.ndarray, size: tuple[int, int]) -> None:
        self.target = target
        self._top = 0
        height, width = target.shape[:2]
        self._rows = RowResizer(size[0], height) if size[0] != height else None
        self._columns = taps(size[1], width, width / size[1]) if size[1] != width else None

    def write(self, rows: Float[Tensor, "channels n width"]) -> None:
        """Put the next rows where they belong.

        Args:
            rows: (channels, n, width) in [−1, 1]; values beyond are clipped.
        """
        channels, count, width = rows.shape
        step = max(1, _CHUNK // (channels * width))
        for top in range(0, count, step):
            self._write(rows[:, top : top + step])

    def _write(self, rows: Tensor) -> None:
        if self._columns is not None:
            rows = resize_axis(rows, 2, *self._columns)
        if self._rows is not None:
            rows = self._rows.push(rows)
        stop = self._top + rows.shape[1]
        self.target[self._top : stop] = from_signed(rows, self.target.dtype).transpose(1, 2, 0)
        self._top = stop


def to_signed(pixels: np.ndarray) -> Float[Tensor, "channels height width"]:
    """Bring pixels of any sample type to what networks see: white = 1, black = −1.

    Args:
        pixels: (height, width, channels) uint8, uint16, or float32 in [0, 1].

    Returns:
        (channels, height, width) float32.
    """
    peak = 1.0 if pixels.dtype == np.float32 else float(np.iinfo(pixels.dtype).max)
    values = torch.from_numpy(pixels.astype(np.float32).transpose(2, 0, 1))
    return values.mul_(2.0 / peak).sub_(1.0).contiguous()


def from_signed(values: Float[Tensor, "channels height width"], dtype: np.dtype) -> np.ndarray:
    """Bring what networks make to pixels: clipped to [−1, 1] and rounded to nearest.

    Args:
        values: (channels, height, width).
        dtype: uint8, uint16 or float32.

    Returns:
        The same shape in `dtype`.
    """
    unit = values.float().clamp(-1.0, 1.0).add(1.0).mul_(0.5)
    if dtype == np.float32:
        return unit.numpy()
    return unit.mul_(float(np.iinfo(dtype).max)).round_().to(torch.int32).numpy().astype(dtype)
