"""Data consistency: a result that, degraded again, is the photograph it was made from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.linalg import solveh_banded
from scipy.sparse import csr_array

from .canvas import canvas
from .compressed_sensing import Measurement, groups
from .images import Picture
from .methods.idm import from_planes, to_planes
from .resize import taps
from .rows import from_signed, to_signed

# Values that are in float64 at a time.
_CHUNK = 2**22
_ROUNDS = 24
# Of a sample value: a difference that rounding the result makes anyway.
_ENOUGH = 0.02


@dataclass(frozen=True)
class Residual:
    """How far a result, degraded again, is from the photograph, on the scale 0 … 255.

    Args:
        before: largest difference before the correction.
        largest: largest difference after it.
        root_mean_square: of all differences after it.
        rounds: corrections that were made.
    """

    before: float
    largest: float
    root_mean_square: float
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        """The numbers, rounded for a report."""
        return {
            "residual_before": float(f"{self.before:.4g}"),
            "residual_largest": float(f"{self.largest:.4g}"),
            "residual_rms": float(f"{self.root_mean_square:.4g}"),
            "rounds": self.rounds,
        }


@runtime_checkable
class Measuring(Protocol):
    """A model that measures photographs before it restores them."""

    config: Any

    def measure(self, image: Any, seed: int = 0) -> Measurement:
        """Measure planes in [0, 1]."""
        ...


class Reduction:
    """Antialiased bicubic reduction A of images, A x = R x Cᵀ with sparse R and C, as `resize.imresize_to`.

    Args:
        large: (height, width) before.
        small: (height, width) after.
    """

    def __init__(self, large: tuple[int, int], small: tuple[int, int]) -> None:
        self.large, self.small = large, small
        self.rows, self.columns = (_matrix(n, m) for n, m in zip(large, small, strict=True))

    def reduce(self, image: np.ndarray) -> np.ndarray:
        """A x.

        Args:
            image: (height, width, channels) of any sample type.

        Returns:
            (small height, small width, channels) float64, in units of the input.
        """
        channels = image.shape[2]
        out = np.empty((*self.small, channels))
        step = max(1, _CHUNK * self.small[0] // image.size)
        for top in range(0, self.small[0], step):
            part = self.rows[top : top + step]
            first, last = int(part.indices.min()), int(part.indices.max()) + 1
            lines = part[:, first:last] @ image[first:last].reshape(last - first, -1).astype(np.float64)
            out[top : top + step] = _along_columns(self.columns, lines.reshape(-1, self.large[1], channels))
        return out

    def solve(self, difference: np.ndarray) -> np.ndarray:
        """(A Aᵀ)⁻¹ of an image of the small size: what `add_adjoint` turns into A⁺ of it."""
        shape = difference.shape
        half = solveh_banded(self._row_gram, difference.reshape(shape[0], -1)).reshape(shape)
        turned = half.transpose(1, 0, 2)
        whole = solveh_banded(self._column_gram, turned.reshape(shape[1], -1)).reshape(turned.shape)
        return whole.transpose(1, 0, 2)

    def add_adjoint(self, image: np.ndarray, small: np.ndarray) -> None:
        """x ← clip(x + Aᵀ s) to [0, 1], in place.

        Args:
            image: (height, width, channels) float32; written.
            small: s, of the small size.
        """
        upwards, sideways = self.rows.T.tocsr(), self.columns.T.tocsr()
        for rows in _bands(image):
            part = upwards[rows]
            first, last = int(part.indices.min()), int(part.indices.max()) + 1
            wide = _along_columns(sideways, small[first:last])
            lines = part[:, first:last] @ wide.reshape(last - first, -1)
            image[rows] = np.clip(image[rows] + lines.reshape(-1, *image.shape[1:]), 0, 1)

    @cached_property
    def _row_gram(self) -> np.ndarray:
        return _banded(self.rows)

    @cached_property
    def _column_gram(self) -> np.ndarray:
        return _banded(self.columns)


def make_consistent(result: np.ndarray, source: np.ndarray, rounds: int = _ROUNDS) -> Residual:
    """Correct an enlarged image in place, so that its antialiased bicubic reduction is the photograph.

    x ← clip(z + Aᵀ (A Aᵀ)⁻¹ (y − A z)), z ← x + β_k (x − last x), until the largest |y − A z| is far less
    than a sample value. Without the clipping the first round would be the exact projection onto A x = y; near
    black and white it takes some, which the momentum β_k = (t_k − 1)/t_{k+1}, where
    t_{k+1} = (1 + √(1 + 4 t_k²))/2, makes fewer.

    Args:
        result: (height, width, channels) uint8, uint16, or float32 in [0, 1]; written.
        source: the photograph, smaller, with the same sample type and channels.
        rounds: corrections at most.

    Returns:
        What is left, rounding to the samples of the result included.

    Raises:
        ValueError: the result is smaller than the photograph along an axis.

    Reference: Irani & Peleg 1991, "Improving resolution by image registration", for back-projection; Beck &
        Teboulle 2009, "A fast iterative shrinkage-thresholding algorithm", section 4, for the momentum.
    """
    large, small = result.shape[:2], source.shape[:2]
    if large[0] < small[0] or large[1] < small[1]:
        raise ValueError(
            f"consistent: expected a result at least as large as the photograph, {small[1]}×{small[0]}, "
            f"got {large[1]}×{large[0]} pixels"
        )
    reduction = Reduction((large[0], large[1]), (small[0], small[1]))
    peak = 1.0 if result.dtype == np.float32 else float(np.iinfo(result.dtype).max)
    x, z = (canvas(result.shape, np.dtype(np.float32)) for _ in range(2))
    for rows in _bands(result):
        x[rows] = z[rows] = result[rows] / np.float32(peak)
    y = source / peak
    difference = y - reduction.reduce(z)
    before = float(np.abs(difference).max())
    done, t = 0, 1.0
    while done < rounds and float(np.abs(difference).max()) > _ENOUGH / max(peak, 255.0):
        reduction.add_adjoint(z, reduction.solve(difference))
        t, last = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        _extrapolate(x, z, (last - 1) / t)
        difference = y - reduction.reduce(z)
        done += 1
    for rows in _bands(result):
        result[rows] = x[rows] if peak == 1.0 else np.rint(x[rows] * peak)
    return _residual(before, y - reduction.reduce(result) / peak, 255.0, done)


def _extrapolate(x: np.ndarray, z: np.ndarray, share: float) -> None:
    """x ← z, z ← z + share · (z − x), in place."""
    for rows in _bands(x):
        change = z[rows] - x[rows]
        x[rows] = z[rows]
        z[rows] += np.float32(share) * change


def _bands(image: np.ndarray) -> Iterator[slice]:
    """Rows that are worked on at a time."""
    step = max(1, _CHUNK * len(image) // image.size)
    return (slice(top, top + step) for top in range(0, len(image), step))


def _residual(before: float, difference: np.ndarray, unit: float, rounds: int) -> Residual:
    root = float(np.sqrt(np.mean(np.square(difference))))
    return Residual(unit * before, unit * float(np.abs(difference).max()), unit * root, rounds)


def make_measured(
    result: np.ndarray, picture: Picture, model: Measuring, seed: int, rounds: int = 12
) -> Residual:
    """Correct a reconstruction in place, so that its measurements are those of the photograph.

    x ← clip(x − Aᵀ (A x − y)) for luma and both chroma planes, with the operators of the reconstruction.

    Args:
        result: (height, width, channels), as large as the photograph; alpha is left as it is; written.
        picture: the photograph that was measured, not in tiles.
        model: that measured it.
        seed: of the reconstruction.
        rounds: how often, since clipping and rounding disturb what was measured.

    Returns:
        The difference of the measurements, which have the units of pixels.
    """
    colours = picture.colour.shape[2]
    y, x = (
        to_planes(to_signed(image).expand(3, -1, -1)[None])
        for image in (picture.colour, result[:, :, :colours])
    )
    differences: list[float] = []
    left = torch.empty(0)
    for _ in range(rounds + 1):
        parts = []
        for index, where in enumerate(groups(x.shape[-2], x.shape[-1], model.config.group)):
            at = (slice(None), slice(None), *where)
            taken, again = (model.measure(planes[at], seed + index) for planes in (y, x))
            parts.append((again.values - taken.values).flatten())
            if len(differences) < rounds:
                extended = torch.nn.functional.pad(
                    x[at], (0, taken.sensing.size[1] - taken.width, 0, taken.sensing.size[0] - taken.height)
                )
                x[at] = taken.sensing.consistent(extended, taken.values)[..., : taken.height, : taken.width]
        left = torch.cat(parts)
        differences.append(float(left.abs().max()))
        if len(differences) <= rounds:
            image = from_planes(x)[0]
            made = from_signed(image if colours == 3 else image.mean(0, keepdim=True), result.dtype)
            result[:, :, :colours] = made.transpose(1, 2, 0)
            x = to_planes(to_signed(result[:, :, :colours]).expand(3, -1, -1)[None])
    return _residual(differences[0], left.numpy(), 255.0, rounds)


def _matrix(size: int, out_size: int) -> csr_array:
    indices, weights = taps(size, out_size, out_size / size)
    rows = np.repeat(np.arange(out_size), indices.shape[1])
    matrix = csr_array((weights.ravel(), (rows, indices.ravel())), shape=(out_size, size))
    matrix.sum_duplicates()
    return matrix


def _banded(matrix: csr_array) -> np.ndarray:
    """M Mᵀ as `solveh_banded` wants it: its main diagonal in the last row, those above it further up."""
    gram = (matrix @ matrix.T).tocoo()
    width = int(np.abs(gram.row - gram.col).max())
    upper = gram.col >= gram.row
    row, column = gram.row[upper], gram.col[upper]
    bands = np.zeros((width + 1, int(column.max()) + 1))
    bands[width + row - column, column] = gram.data[upper]
    return bands


def _along_columns(matrix: csr_array, image: np.ndarray) -> np.ndarray:
    """Apply a matrix to the columns of (rows, columns, channels)."""
    turned = image.transpose(1, 0, 2)
    out = matrix @ turned.reshape(turned.shape[0], -1)
    return out.reshape(-1, *turned.shape[1:]).transpose(1, 0, 2)
