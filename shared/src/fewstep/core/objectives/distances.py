"""How far two estimates lie apart: one number per sample."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]
"""(batch, ...), (batch, ...) → (batch,)"""


@dataclass(frozen=True)
class SquaredError:
    """Mean (or sum) over the elements of (x − y)²."""

    total: bool = False

    def __call__(
        self, x: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch"]:
        squares = (x - y).square().flatten(1)
        return squares.sum(1) if self.total else squares.mean(1)


@dataclass(frozen=True)
class AbsoluteError:
    """Mean (or sum) over the elements of |x − y|."""

    total: bool = False

    def __call__(
        self, x: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch"]:
        sizes = (x - y).abs().flatten(1)
        return sizes.sum(1) if self.total else sizes.mean(1)


@dataclass(frozen=True)
class PseudoHuber:
    """sqrt(‖x − y‖² + c²) − c of the whole sample; c = None is 0.00054·sqrt(elements); c = 0 the norm.

    Reference: Song and Dhariwal 2023, "Improved Techniques for Training Consistency Models", eq. 7.
    """

    c: float | None = None

    def __call__(
        self, x: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch"]:
        squares = (x - y).square().flatten(1)
        c = 0.00054 * math.sqrt(squares.shape[1]) if self.c is None else self.c
        return (squares.sum(1) + c * c).sqrt() - c


@dataclass(frozen=True)
class AdaptiveError:
    """S/sg(S + c)^p with S = ‖x − y‖² summed over the sample: p = 1/2 resembles the norm, p = 1 its log.

    Reference: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", eq. 22.
    """

    p: float = 1.0
    c: float = 1e-3

    def __call__(
        self, x: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch"]:
        total = (x - y).square().flatten(1).sum(1)
        return total / (total.detach() + self.c) ** self.p


@dataclass(frozen=True)
class Mixture:
    """A weighted sum of distances."""

    parts: tuple[tuple[float, Distance], ...]

    def __call__(
        self, x: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch"]:
        return torch.stack([weight * distance(x, y) for weight, distance in self.parts]).sum(0)


DISTANCES: dict[str, Callable[[], Distance]] = {
    "squared": SquaredError,
    "absolute": AbsoluteError,
    "pseudo-huber": PseudoHuber,
    "adaptive": AdaptiveError,
}


def distance(name: str | Distance) -> Distance:
    """The distance of that name with its defaults (a distance is returned as it is).

    Raises:
        ValueError: unknown name.
    """
    if not isinstance(name, str):
        return name
    if name not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {name!r}")
    return DISTANCES[name]()
