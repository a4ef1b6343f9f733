"""Linear degradations y = A·x: forward, adjoint, pseudo-inverse, and filters along the singular vectors."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

Gain = Callable[[Tensor], Tensor]


class LinearOperator(ABC):
    """A linear map A of single samples with singular value decomposition A = U·S·Vᵀ."""

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch *observed"]:
        """A·x."""

    @abstractmethod
    def adjoint(self, y: Float[Tensor, "batch *observed"]) -> Float[Tensor, "batch channels *space"]:
        """Aᵀ·y, so that <A·x, y> = <x, Aᵀ·y>."""

    @abstractmethod
    def pseudo_inverse(self, y: Float[Tensor, "batch *observed"]) -> Float[Tensor, "batch channels *space"]:
        """A⁺·y, the Moore–Penrose inverse: A·A⁺·A = A, and A⁺·A projects onto the range of Aᵀ."""

    @abstractmethod
    def filtered(
        self, x: Float[Tensor, "batch channels *space"], gain: Gain
    ) -> Float[Tensor, "batch channels *space"]:
        """V·gain(S)·Vᵀ·x.

        Args:
            x: samples.
            gain: factors of given singular values (float64, 1-d); the value 0 stands for the null space.
        """

    def project(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        """A⁺·A·x: the part of x that A sees."""
        return self.pseudo_inverse(self.forward(x))


class TightOperator(LinearOperator):
    """An operator whose singular values other than 0 are all the same s, so that A⁺ = Aᵀ/s²."""

    @abstractmethod
    def singular_value(self, axes: int) -> float:
        """s, for samples with this number of spatial axes."""

    def pseudo_inverse(self, y: Float[Tensor, "batch *observed"]) -> Float[Tensor, "batch channels *space"]:
        """A⁺·y."""
        return self.adjoint(y) / self.singular_value(y.ndim - 2) ** 2

    def filtered(
        self, x: Float[Tensor, "batch channels *space"], gain: Gain
    ) -> Float[Tensor, "batch channels *space"]:
        """V·gain(S)·Vᵀ·x."""
        values = torch.tensor([0.0, self.singular_value(x.ndim - 2)], dtype=torch.float64)
        null, seen = gain(values).tolist()
        return null * x if null == seen else torch.add(null * x, self.project(x), alpha=seen - null)


class Mask(TightOperator):
    """Keeps some values and sets the others to 0 (inpainting).

    Args:
        known: 1 (or True) where a value is kept, shape (channels or 1, *space) or with a batch first.

    Raises:
        ValueError: if it holds other values than 0 and 1.

    >>> Mask(torch.tensor([[1, 0, 1]])).forward(torch.ones(1, 1, 3))
    tensor([[[1., 0., 1.]]])
    """

    def __init__(self, known: Tensor) -> None:
        if not bool(((known == 0) | (known == 1)).all()):
            raise ValueError("known must hold only 0 and 1")
        self.known = known

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        """The kept values, 0 elsewhere."""
        return x * self.known.to(x)

    def adjoint(self, y: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        """The same as `forward`."""
        return self.forward(y)

    def singular_value(self, axes: int) -> float:
        """1."""
        return 1.0


class AveragePool(TightOperator):
    """Means over blocks of any number of spatial axes (super-resolution); s = factor^(-axes/2).

    Args:
        factor: side of a block.

    Raises:
        ValueError: if the factor is below 1, or (on a call) does not divide the size.

    >>> AveragePool(2).forward(torch.arange(4.0).reshape(1, 1, 4))
    tensor([[[0.5000, 2.5000]]])
    """

    def __init__(self, factor: int) -> None:
        if factor < 1:
            raise ValueError(f"factor must be at least 1, not {factor}")
        self.factor = factor

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *small"]:
        """Mean of each block."""
        return _in_blocks(x, self.factor).mean(-1)

    def adjoint(self, y: Float[Tensor, "batch channels *small"]) -> Float[Tensor, "batch channels *space"]:
        """Each value over its block, divided by the size of the block."""
        size = self.factor ** (y.ndim - 2)
        return _from_blocks((y / size).unsqueeze(-1).expand(*y.shape, size), self.factor)

    def singular_value(self, axes: int) -> float:
        """factor^(-axes/2)."""
        return self.factor ** (-axes / 2)


class Grayscale(TightOperator):
    """Weighted sum of the channels (colourisation); s = |weights|.

    Args:
        weights: one for each channel; the published colourisation weighs all alike.

    Raises:
        ValueError: if there is none or all are 0.

    >>> Grayscale().forward(torch.tensor([[[3.0], [0.0], [6.0]]]))
    tensor([[[3.]]])
    """

    def __init__(self, weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3)) -> None:
        if not any(weights):
            raise ValueError(f"weights must hold a number other than 0, not {tuple(weights)}")
        self.weights = tuple(map(float, weights))

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch 1 *space"]:
        """The weighted sum."""
        return (x * self._column(x)).sum(1, keepdim=True)

    def adjoint(self, y: Float[Tensor, "batch 1 *space"]) -> Float[Tensor, "batch channels *space"]:
        """The value times each weight."""
        return y * self._column(y)

    def singular_value(self, axes: int) -> float:
        """|weights|."""
        return math.hypot(*self.weights)

    def _column(self, like: Tensor) -> Tensor:
        weights = torch.tensor(self.weights, dtype=like.dtype, device=like.device)
        return weights.view(-1, *[1] * (like.ndim - 2))


class BlockSensing(TightOperator):
    """Compressed sensing of blocks: each block of each channel is seen through a few orthonormal rows; s = 1.

    Args:
        block: side of a block.
        ratio: measurements per value, above 0 and at most 1.
        axes: number of spatial axes.
        seed: of the random rows.

    Raises:
        ValueError: if the ratio leaves no row or more than all.
    """

    def __init__(self, block: int = 32, ratio: float = 0.25, axes: int = 2, seed: int = 0) -> None:
        size = block**axes
        rows = int(size * ratio)
        if not 1 <= rows <= size:
            raise ValueError(f"ratio must give 1 to {size} measurements of a block, not {rows} ({ratio})")
        self.block = block
        draw = torch.randn(size, rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        self.rows = torch.linalg.qr(draw).Q.T.contiguous()

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch measured *blocks"]:
        """The measurements of a channel after each other along the channels."""
        seen = _in_blocks(x, self.block) @ self.rows.to(x).T
        return seen.movedim(-1, 2).flatten(1, 2)

    def adjoint(self, y: Float[Tensor, "batch measured *blocks"]) -> Float[Tensor, "batch channels *space"]:
        """The rows weighted by their measurements."""
        seen = y.unflatten(1, (-1, len(self.rows))).movedim(2, -1)
        return _from_blocks(seen @ self.rows.to(y), self.block)

    def singular_value(self, axes: int) -> float:
        """1."""
        return 1.0


class Dense(LinearOperator):
    """Any matrix on flattened samples, by its singular value decomposition.

    Args:
        matrix: shape (observed, channels·space).
        shape: of one sample, (channels, *space).
        tolerance: singular values up to this share of the largest count as 0.

    Raises:
        ValueError: if matrix and shape do not fit.
    """

    def __init__(
        self, matrix: Float[Tensor, "observed values"], shape: Sequence[int], tolerance: float = 1e-10
    ) -> None:
        if math.prod(shape) != matrix.shape[1]:
            raise ValueError(
                f"matrix has {matrix.shape[1]} columns, a sample {tuple(shape)} has other values"
            )
        self.matrix = matrix.double()
        self.shape = tuple(shape)
        _, s, vt = torch.linalg.svd(self.matrix, full_matrices=False)
        kept = s > tolerance * s.max()
        self.values, self.basis = s[kept], vt[kept]
        self._inverse = torch.linalg.pinv(self.matrix, rtol=tolerance)

    def forward(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch observed"]:
        """A·x."""
        return x.flatten(1) @ self.matrix.to(x).T

    def adjoint(self, y: Float[Tensor, "batch observed"]) -> Float[Tensor, "batch channels *space"]:
        """Aᵀ·y."""
        return (y @ self.matrix.to(y)).reshape(-1, *self.shape)

    def pseudo_inverse(self, y: Float[Tensor, "batch observed"]) -> Float[Tensor, "batch channels *space"]:
        """A⁺·y."""
        return (y @ self._inverse.to(y).T).reshape(-1, *self.shape)

    def filtered(
        self, x: Float[Tensor, "batch channels *space"], gain: Gain
    ) -> Float[Tensor, "batch channels *space"]:
        """V·gain(S)·Vᵀ·x."""
        null = gain(self.values.new_zeros(1))
        basis = self.basis.to(x)
        change = (x.flatten(1) @ basis.T) * (gain(self.values) - null).to(x)
        return null.to(x) * x + (change @ basis).reshape(x.shape)


def _in_blocks(x: Tensor, side: int) -> Tensor:
    """(batch, channels, *blocks, side^axes): the values of each block at the end."""
    axes = x.ndim - 2
    if any(length % side for length in x.shape[2:]):
        raise ValueError(f"blocks of {side} must divide the size {tuple(x.shape[2:])}")
    for axis in range(axes):
        x = x.unflatten(2 + 2 * axis, (-1, side))
    inside = [3 + 2 * axis for axis in range(axes)]
    return x.movedim(inside, list(range(-axes, 0))).flatten(-axes) if axes else x.unsqueeze(-1)


def _from_blocks(x: Tensor, side: int) -> Tensor:
    """The inverse of `_in_blocks`."""
    axes = x.ndim - 3
    if not axes:
        return x.squeeze(-1)
    x = x.unflatten(-1, (side,) * axes).movedim(list(range(-axes, 0)), [3 + 2 * a for a in range(axes)])
    for axis in range(axes):
        x = x.flatten(2 + axis, 3 + axis)
    return x
