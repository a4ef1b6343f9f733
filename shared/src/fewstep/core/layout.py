"""Where overlapping N-d windows lie and with which weights their results are blended.

All windows of a layout have the same size (the last of an axis is shifted inside), so they stack into
batches. Along an axis the weights of all windows sum to one, and an N-d weight is the product over the axes:
nothing has to be divided afterwards, and finished rows may leave before the others are computed.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Ratio = int | Fraction | tuple[Fraction, ...]
Lengths = int | tuple[int, ...]

# Halving stops here: a network that cannot run 16 samples has another problem than the window.
SMALLEST_WINDOW = 16


class Window(NamedTuple):
    """One window: its first index and its length along each axis."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    def slices(self, scale: Ratio = 1) -> tuple[slice, ...]:
        """Index ranges of this window in a tensor that is `scale` times as large.

        >>> Window((64, 0), (128, 96)).slices(Fraction(1, 4))
        (slice(16, 48, None), slice(0, 24, None))
        """
        return tuple(
            slice(scaled(start, ratio), scaled(start + length, ratio))
            for start, length, ratio in zip(
                self.start, self.shape, ratios(scale, len(self.start)), strict=True
            )
        )

    def crop(self, tensor: Tensor, scale: Ratio = 1) -> Tensor:
        """View of this window in the last axes of a tensor that is `scale` times as large."""
        return tensor[(..., *self.slices(scale))]


@dataclass(frozen=True)
class Windowing:
    """Window length, overlap and halo, each one number for all axes or one for each axis.

    Neighbours share `overlap` samples. The outer `halo` of it on each side gets weight 0, the rest is a
    smooth ramp; overlap = 2·halo leaves no ramp but a hard cut. A purely convolutional network that looks at
    most `halo` samples to each side then gives exactly its un-tiled result.

    Args:
        window: length of a window; axes that are not longer than that stay whole.
        overlap: samples shared by two neighbours, less than `window` and at least 2·halo.
        halo: samples at an inner window edge that are not used.
        multiple: windows, overlaps and tiled axes must be multiples of this; 4 when a condition has 1/4 of
            the size, so that every window border falls on one of its samples.
    """

    window: Lengths
    overlap: Lengths = 0
    halo: Lengths = 0
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"multiple must be at least 1, not {self.multiple}")
        fields = (self.window, self.overlap, self.halo)
        for window, overlap, halo in self.axes(max(len(v) if isinstance(v, tuple) else 1 for v in fields)):
            if window < 1:
                raise ValueError(f"window must be at least 1, not {window}")
            if halo < 0 or not 2 * halo <= overlap < window:
                raise ValueError(
                    f"overlap must be at least twice the halo ({halo}) and less than the window ({window}), "
                    f"not {overlap}"
                )
            if window % self.multiple or overlap % self.multiple:
                raise ValueError(
                    f"window and overlap must be multiples of {self.multiple}, not {window} and {overlap}"
                )

    def axes(self, rank: int) -> list[tuple[int, int, int]]:
        """(window, overlap, halo) of each of `rank` axes."""
        columns = []
        for name, value in (("window", self.window), ("overlap", self.overlap), ("halo", self.halo)):
            column = value if isinstance(value, tuple) else (value,) * rank
            if len(column) != rank:
                raise ValueError(f"{name} must be one number or one for each of the {rank} axes, not {value}")
            columns.append(column)
        return list(zip(*columns, strict=True))

    def layout(self, size: Sequence[int]) -> "Layout":
        """Windows that cover `size`."""
        if not size or min(size) < 1:
            raise ValueError(f"size must be one or more positive lengths, not {tuple(size)}")
        axes = self.axes(len(size))
        for length, (window, _, _) in zip(size, axes, strict=True):
            if length > window and length % self.multiple:
                raise ValueError(
                    f"size must be a multiple of {self.multiple} along a tiled axis, not {length}"
                )
        return Layout(
            size=tuple(size),
            shape=tuple(min(length, axis[0]) for length, axis in zip(size, axes, strict=True)),
            starts=tuple(_starts(length, *axis[:2]) for length, axis in zip(size, axes, strict=True)),
            overlap=tuple(axis[1] for axis in axes),
            halo=tuple(axis[2] for axis in axes),
        )

    def halved(self, size: Sequence[int]) -> "Windowing | None":
        """Windows of half the length along every axis that allows it; None when no axis does."""
        axes = self.axes(len(size))
        halves = [self._half(length, *axis) for length, axis in zip(size, axes, strict=True)]
        if halves == axes:
            return None
        window, overlap, halo = zip(*halves, strict=True)
        return replace(self, window=window, overlap=overlap, halo=halo)

    def _half(self, length: int, window: int, overlap: int, halo: int) -> tuple[int, int, int]:
        half = min(length, window) // 2 // self.multiple * self.multiple
        less = min(overlap, max(2 * halo, half // 2))
        less = -(-less // self.multiple) * self.multiple
        possible = half >= SMALLEST_WINDOW and half > less and length % self.multiple == 0
        return (half, less, halo) if possible else (window, overlap, halo)


@dataclass(frozen=True)
class Layout:
    """Windows over one size: iterating gives them in row-major order, `len` counts them."""

    size: tuple[int, ...]
    shape: tuple[int, ...]
    starts: tuple[tuple[int, ...], ...]
    overlap: tuple[int, ...]
    halo: tuple[int, ...]

    def __len__(self) -> int:
        return math.prod(len(starts) for starts in self.starts)

    def __iter__(self) -> Iterator[Window]:
        return (Window(start, self.shape) for start in product(*self.starts))

    def weight(self, window: Window, scale: Ratio = 1) -> Float[Tensor, "*space"]:
        """Float64 weights of a window at `scale`; those of all windows sum to one everywhere."""
        weight = torch.ones((), dtype=torch.float64)
        for axis, ratio in enumerate(ratios(scale, len(self.size))):
            numbers = (self.shape[axis], self.overlap[axis], self.halo[axis])
            near = self._neighbours(axis, window.start[axis], ratio)
            weight = weight.unsqueeze(-1) * _axis_weight(*(scaled(n, ratio) for n in numbers), near)
        return weight

    def _neighbours(self, axis: int, start: int, ratio: int | Fraction) -> tuple[tuple[int, bool, bool], ...]:
        """(offset, has one before, has one after) of the windows that meet the one at `start`."""
        starts, length = self.starts[axis], self.shape[axis]
        near = starts[bisect_right(starts, start - length) : bisect_left(starts, start + length)]
        return tuple((scaled(s - start, ratio), s > 0, s + length < self.size[axis]) for s in near)


def ratios(scale: Ratio, rank: int) -> tuple[int | Fraction, ...]:
    """One ratio for each axis."""
    return scale if isinstance(scale, tuple) else (scale,) * rank


def scaled(length: int, ratio: int | Fraction) -> int:
    """`length·ratio`, which has to be a whole number."""
    if ratio == 1:
        return length
    exact = length * Fraction(ratio)
    if exact.denominator != 1:
        raise ValueError(f"a window border at {length} is not on a sample at scale {ratio}: set multiple=")
    return exact.numerator


def _starts(size: int, window: int, overlap: int) -> tuple[int, ...]:
    if size <= window:
        return (0,)
    return (*range(0, size - window, window - overlap), size - window)


@lru_cache(maxsize=256)
def _axis_weight(
    length: int, overlap: int, halo: int, neighbours: tuple[tuple[int, bool, bool], ...]
) -> Float[Tensor, " length"]:
    """Ramps of one window along one axis, divided by the sum over all windows that reach into it."""
    own = torch.zeros(length, dtype=torch.float64)
    total = torch.zeros(length, dtype=torch.float64)
    for offset, before, after in neighbours:
        ramps = _ramps(length, overlap, halo, before, after)
        total[max(offset, 0) : length + min(offset, 0)] += ramps[max(-offset, 0) : length - max(offset, 0)]
        if offset == 0:
            own = ramps
    return own / total


def _ramps(length: int, overlap: int, halo: int, before: bool, after: bool) -> Float[Tensor, " length"]:
    """Rises as sin² over the used part of the overlap where a neighbour is, 1 elsewhere."""
    # sin² and not linear: it gives less to the outermost samples, which suffer most from the window's border.
    inward = torch.arange(length, dtype=torch.float64) + 0.5 - halo
    ramp = (inward / (overlap - 2 * halo)).clamp(0, 1) if overlap > 2 * halo else (inward > 0).double()
    rising = torch.sin(ramp * (math.pi / 2)) ** 2
    flat = torch.ones(length, dtype=torch.float64)
    return (rising if before else flat) * (rising.flip(0) if after else flat)
