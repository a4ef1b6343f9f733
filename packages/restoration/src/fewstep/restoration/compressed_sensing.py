"""Compressed sensing of images: fewer random projections than pixels, and files that hold them."""

import math
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from fewstep.core.files import atomic_path
from fewstep.core.guidance.operators import TightOperator

BLOCK = 32
MATRIX_SEED = 2025
ENTRIES = ("values", "matrix", "permutation", "size")


def rows_of(ratio: float, pixels: int = BLOCK**2) -> int:
    """Measurements of a block: ⌈ratio · pixels⌉.

    Raises:
        ValueError: the ratio is not in (0, 1].

    Example:
        >>> rows_of(0.1), rows_of(0.25), rows_of(1.0)
        (103, 256, 1024)
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio}")
    return math.ceil(ratio * pixels)


@lru_cache(maxsize=4)
def orthonormal(pixels: int, seed: int) -> Float[Tensor, "pixels pixels"]:
    """U Vᵀ of a Gaussian matrix G = U S Vᵀ: an orthonormal matrix without a preferred direction, float64."""
    gaussian = torch.randn(pixels, pixels, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    u, _, vt = torch.linalg.svd(gaussian)
    return u @ vt


def sensing_matrix(ratio: float, block: int = BLOCK, seed: int = MATRIX_SEED) -> Float[Tensor, "pixels rows"]:
    """First ⌈ratio · N⌉ columns of U Vᵀ of a seeded Gaussian N × N matrix, N = block²; float32.

    Args:
        ratio: measurements per pixel, in (0, 1].
        block: pixels that are measured together, as the side of a square.
        seed: of the matrix.

    Raises:
        ValueError: the ratio is not in (0, 1], or the block is below 1.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    rows = rows_of(ratio, block**2)
    return orthonormal(block**2, seed)[:, :rows].to(torch.float32)


class BlockSensing(TightOperator):
    """A z = P(z) Φ: the pixels of a whole image are permuted, cut into blocks of N, and each is projected.

    The columns of Φ are orthonormal, so A Aᵀ = I and Aᵀ A is a projection. Channels are measured alike.

    Args:
        matrix: Φ, shape (N, rows).
        permutation: place in the image of each permuted pixel, row by row; as many as the image has.
        size: height and width of the images.

    Raises:
        ValueError: shapes that do not fit each other.

    Example:
        >>> sensing = BlockSensing(sensing_matrix(0.5, block=2), torch.arange(8), (2, 4))
        >>> y = sensing.forward(torch.rand(1, 1, 2, 4))
        >>> y.shape, torch.allclose(sensing.forward(sensing.adjoint(y)), y, atol=1e-6)
        (torch.Size([1, 1, 2, 2]), True)

    Reference: Chen et al. 2025, "Invertible Diffusion Models for Compressed Sensing", section 4.1.
    """

    def __init__(
        self,
        matrix: Float[Tensor, "pixels rows"],
        permutation: Int[Tensor, "all_pixels"],
        size: tuple[int, int],
    ) -> None:
        pixels, rows = matrix.shape
        if rows > pixels:
            raise ValueError(f"matrix must not have more columns than rows, got {tuple(matrix.shape)}")
        if math.prod(size) % pixels or len(permutation) != math.prod(size):
            raise ValueError(
                f"size must have a multiple of {pixels} pixels and one place in the permutation for each, "
                f"got {size[0]}×{size[1]} and {len(permutation)} places"
            )
        self.matrix, self.permutation, self.size = matrix, permutation, size
        self.inverse = torch.empty_like(permutation)
        self.inverse[permutation] = torch.arange(len(permutation), device=permutation.device)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels blocks rows"]:
        """The measurements of images, in the precision of the matrix whatever autocast says."""
        with torch.autocast(x.device.type, enabled=False):
            return self._mixed(x.to(self.matrix.dtype)) @ self.matrix

    def adjoint(self, y: Float[Tensor, "batch channels blocks rows"]) -> Float[Tensor, "batch channels h w"]:
        """Aᵀ y, the smallest images with these measurements, in the precision of the matrix."""
        with torch.autocast(y.device.type, enabled=False):
            return self._unmixed(y.to(self.matrix.dtype) @ self.matrix.T)

    def gram(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """Aᵀ A x, in the precision that autocast chooses."""
        return self._unmixed((self._mixed(x) @ self.matrix) @ self.matrix.T)

    def _mixed(self, x: Tensor) -> Tensor:
        """Blocks of permuted pixels."""
        return x.flatten(2).index_select(2, self.permutation).unflatten(2, (-1, len(self.matrix)))

    def _unmixed(self, blocks: Tensor) -> Tensor:
        """Images of blocks of permuted pixels."""
        return blocks.flatten(2).index_select(2, self.inverse).unflatten(2, self.size)

    def consistent(
        self, x: Float[Tensor, "batch channels h w"], y: Float[Tensor, "batch channels blocks rows"]
    ) -> Float[Tensor, "batch channels h w"]:
        """The images nearest to x that have exactly the measurements y: x − Aᵀ (A x − y)."""
        return x - self.adjoint(self.forward(x) - y)

    def singular_value(self, axes: int) -> float:
        """1."""
        return 1.0

    def to(self, like: Tensor) -> "BlockSensing":
        """The same operator where another tensor is, in its precision."""
        return BlockSensing(self.matrix.to(like), self.permutation.to(like.device), self.size)


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a compressing camera gives: the values, and how they were taken.

    Args:
        values: y, shape (batch, channels, blocks, rows).
        sensing: A, for images extended to whole blocks.
        height: of the images that were measured.
        width: of the images that were measured.

    Raises:
        ValueError: values that are not finite or do not fit the operator.

    Example:
        >>> taken = measure(torch.rand(1, 1, 40, 30), ratio=0.25)
        >>> taken.values.shape, taken.sensing.size, round(taken.ratio, 3)
        (torch.Size([1, 1, 2, 256]), (64, 32), 0.25)
    """

    values: Float[Tensor, "batch channels blocks rows"]
    sensing: BlockSensing
    height: int
    width: int

    def __post_init__(self) -> None:
        pixels, rows = self.sensing.matrix.shape
        expected = (math.prod(self.sensing.size) // pixels, rows)
        if self.values.ndim != 4 or self.values.shape[2:] != expected:
            raise ValueError(
                f"values must have shape (batch, channels, {expected[0]}, {expected[1]}), "
                f"got {tuple(self.values.shape)}"
            )
        if not bool(torch.isfinite(self.values).all()):
            raise ValueError("values must be finite, got NaN or infinity")
        fits = (0 < a <= b for a, b in zip((self.height, self.width), self.sensing.size, strict=True))
        if not all(fits):
            raise ValueError(
                f"height and width must lie in 1 … {self.sensing.size}, got {self.height} and {self.width}"
            )

    @property
    def ratio(self) -> float:
        """Measurements per pixel of a block."""
        pixels, rows = self.sensing.matrix.shape
        return rows / pixels

    def save(self, path: str | Path) -> None:
        """Write a .npz file with the values and all that a reconstruction needs."""
        with atomic_path(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                values=self.values.cpu().numpy(),
                matrix=self.sensing.matrix.cpu().numpy(),
                permutation=self.sensing.permutation.cpu().numpy().astype(np.int32),
                size=np.array([*self.sensing.size, self.height, self.width]),
            )

    @classmethod
    def load(cls, path: str | Path) -> "Measurement":
        """Read what `save` wrote. Nothing in the file is executed.

        Raises:
            ValueError: no such file, or one that is damaged or holds something else.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                values, matrix, permutation, size = (np.asarray(file[name]) for name in ENTRIES)
            order = torch.from_numpy(permutation.astype(np.int64))
            if not torch.equal(order.sort().values, torch.arange(order.numel())):
                raise ValueError("its permutation does not name every pixel once")
            height, width, *real = (int(number) for number in size)
            sensing = BlockSensing(torch.from_numpy(matrix), order, (height, width))
            return cls(torch.from_numpy(values), sensing, *real)
        except (OSError, KeyError, IndexError, TypeError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is not a measurement (.npz with {', '.join(ENTRIES)}): {error}"
            ) from error


def measure(
    image: Float[Tensor, "batch channels h w"],
    ratio: float,
    *,
    block: int = BLOCK,
    seed: int = 0,
    matrix_seed: int = MATRIX_SEED,
) -> Measurement:
    """Measure images, all with the same operator; zeros extend them to whole blocks.

    Args:
        image: values in [0, 1].
        ratio: measurements per pixel, in (0, 1].
        block: side of the square with as many pixels as are measured together.
        seed: of the permutation.
        matrix_seed: of Φ.

    Returns:
        The measurement.

    Raises:
        ValueError: a ratio out of its range, or an image that is empty, not four-dimensional or not finite.
    """
    if image.ndim != 4 or 0 in image.shape:
        raise ValueError(f"image must have shape (batch, channels, h, w), got {tuple(image.shape)}")
    if not bool(torch.isfinite(image).all()):
        raise ValueError("image must be finite, got NaN or infinity")
    height, width = image.shape[-2:]
    extended = F.pad(image, (0, -width % block, 0, -height % block))
    size = (extended.shape[-2], extended.shape[-1])
    order = torch.randperm(math.prod(size), generator=torch.Generator().manual_seed(seed))
    sensing = BlockSensing(sensing_matrix(ratio, block, matrix_seed), order, size).to(extended)
    return Measurement(sensing.forward(extended), sensing, height, width)


def groups(height: int, width: int, side: int) -> Sequence[tuple[slice, slice]]:
    """Cut an image into near-equal rectangles of at most side × side pixels that are measured one by one.

    Example:
        >>> [(rows.start, rows.stop) for rows, _ in groups(900, 100, 512)]
        [(0, 450), (450, 900)]
    """

    def cuts(length: int) -> list[slice]:
        parts = math.ceil(length / side)
        edges = [length * i // parts for i in range(parts + 1)]
        return [slice(a, b) for a, b in pairwise(edges)]

    return [(rows, columns) for rows in cuts(height) for columns in cuts(width)]
