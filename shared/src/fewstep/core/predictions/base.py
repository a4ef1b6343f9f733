"""Predictions: what a network's output means, as one linear relation to x0, eps and y."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from fewstep.core.paths import Path

Number = float | Tensor


class Affine(NamedTuple):
    """The weights of ``x·x_t + Σ out[h]·out_h + y·y``."""

    x: Any
    out: tuple[Any, ...]
    y: Any


class Weights(NamedTuple):
    """The weights of ``x0·x0 + eps·eps + y·y``."""

    x0: Any
    eps: Any
    y: Any


class Point(NamedTuple):
    """A path at a time: floats for one time, float64 tensors for one time per sample."""

    path: Path
    t: Any
    a: Any
    b: Any
    sigma: Any


def point_on(path: Path, t: float | Tensor) -> Point:
    """Return the point of ``path`` at ``t``."""
    return Point(path, t, *(path.evaluate(t) if isinstance(t, Tensor) else path.coefficients(t)))


class Relation(NamedTuple):
    """A network output as ``scale·out = x·x_t + x0·x0 + eps·eps + y·y``.

    A member that is a plain 0 is cancelled instead of divided by, which keeps a = 0 and sigma = 0 exact.
    """

    scale: Any = 1.0
    x: Any = 0.0
    x0: Any = 0.0
    eps: Any = 0.0
    y: Any = 0.0


class Prediction(ABC):
    """What a network predicts.

    The output is linear in the truth, out = u·x0 + w·eps + s·y, so x0 and eps are linear in (x_t, out, y).

    Attributes:
        name: the name under which ``predictions.get`` finds it.
        heads: 1, or 2 when the output holds two predictions, chunked along dimension 1.
        needs_y: the target itself contains y (see ``requires_y`` for what a conversion needs).
    """

    name: str
    heads: int = 1
    needs_y: bool = False

    @abstractmethod
    def targets_at(self, point: Point) -> tuple[Weights, ...]:
        """Return the target's weights, one triple per head."""

    @abstractmethod
    def x0_at(self, point: Point) -> Affine:
        """Return the weights that give x0."""

    @abstractmethod
    def eps_at(self, point: Point) -> Affine:
        """Return the weights that give eps."""

    def requires_y(self, path: Path) -> bool:
        """Whether x0 can only be had from (x_t, out) together with y on this path."""
        return self.needs_y or path.uses_y

    def target_weights(self, path: Path, t: float) -> tuple[Weights, ...]:
        """Return (u, w, s) of out = u·x0 + w·eps + s·y as floats, one triple per head."""
        return self._exact(self.targets_at, path, t, "a target")

    def x0_weights(self, path: Path, t: float) -> Affine:
        """Return the floats of x0 = x·x_t + Σ out[h]·out_h + y·y.

        Raises:
            ValueError: the output says nothing about x0 at this time (eps where a = 0, say).
        """
        return self._exact(self.x0_at, path, t, "x0")

    def eps_weights(self, path: Path, t: float) -> Affine:
        """Return the floats of eps = x·x_t + Σ out[h]·out_h + y·y.

        Raises:
            ValueError: eps is not determined at this time (sigma = 0).
        """
        return self._exact(self.eps_at, path, t, "eps")

    def target(
        self,
        path: Path,
        t: Shaped[Tensor, "batch"],
        x0: Float[Tensor, "batch *rest"],
        eps: Float[Tensor, "batch *rest"],
        y: Float[Tensor, "batch *rest"] | None = None,
    ) -> Tensor:
        """Return what the network should give for (x0, eps, y), one time per sample; heads on dimension 1."""
        if self.needs_y and y is None:
            raise ValueError(f"y is needed for the target of prediction {self.name!r}, got None")
        targets = [_sum((w.x0, x0), (w.eps, eps), (w.y, y)) for w in self.targets_at(point_on(path, t))]
        return targets[0] if len(targets) == 1 else torch.cat(targets, dim=1)

    def to_x0(
        self,
        path: Path,
        t: float | Shaped[Tensor, "batch"],
        x: Float[Tensor, "batch *rest"],
        out: Float[Tensor, "batch *outputs"],
        y: Float[Tensor, "batch *rest"] | None = None,
    ) -> Float[Tensor, "batch *rest"]:
        """Return the clean estimate from the state and the network's output."""
        return self._convert(self._exact(self.x0_at, path, t, "x0"), path, x, out, y)

    def to_eps(
        self,
        path: Path,
        t: float | Shaped[Tensor, "batch"],
        x: Float[Tensor, "batch *rest"],
        out: Float[Tensor, "batch *outputs"],
        y: Float[Tensor, "batch *rest"] | None = None,
    ) -> Float[Tensor, "batch *rest"]:
        """Return the noise estimate from the state and the network's output."""
        return self._convert(self._exact(self.eps_at, path, t, "eps"), path, x, out, y)

    def from_x0(
        self,
        path: Path,
        t: float | Shaped[Tensor, "batch"],
        x: Float[Tensor, "batch *rest"],
        x0: Float[Tensor, "batch *rest"],
        y: Float[Tensor, "batch *rest"] | None = None,
    ) -> Tensor:
        """Return the network output that stands for the clean estimate ``x0`` in the state ``x``."""
        weights = self._exact(self._from_x0_at, path, t, "an output")
        parts = [_sum((w.x, x), (w.out[0], x0), (w.y, self._given(w.y, y, path))) for w in weights]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _from_x0_at(self, point: Point) -> tuple[Affine, ...]:
        inverse = self.x0_at(point)
        out = 1 / inverse.out[0]
        return (Affine(-inverse.x * out, (out,), -inverse.y * out),)

    def _convert(self, weights: Affine, path: Path, x: Tensor, out: Tensor, y: Tensor | None) -> Tensor:
        heads = out.chunk(self.heads, dim=1) if self.heads > 1 else (out,)
        terms = zip(weights.out, heads, strict=True)
        return _sum((weights.x, x), *terms, (weights.y, self._given(weights.y, y, path)))

    def _given(self, weight: Number, y: Tensor | None, path: Path) -> Tensor | None:
        if y is None and not _is_zero(weight) and self.requires_y(path):
            raise ValueError(f"y is needed by prediction {self.name!r} on {type(path).__name__}, got None")
        return y

    def _exact(self, function: Callable[[Point], Any], path: Path, t: float | Tensor, what: str) -> Any:
        try:
            return function(point_on(path, t))
        except ZeroDivisionError:
            a, b, sigma = path.coefficients(t)  # type: ignore[arg-type]
            raise ValueError(
                f"prediction {self.name!r} does not determine {what} at t={t!r} of {type(path).__name__}, "
                f"where a={a:g}, b={b:g}, sigma={sigma:g}; choose another prediction or another time"
            ) from None


@dataclass(frozen=True)
class LinearPrediction(Prediction):
    """A prediction with one head, given by its relation.

    With scale·out = p·x + u·x0 + w·eps + s·y and D = u·sigma - w·a:
    x0 = (sigma·(scale·out - p·x - s·y) - w·(x - b·y))/D, eps = (u·(x - b·y) - a·(scale·out - p·x - s·y))/D.

    Attributes:
        relation: function of a ``Point`` that returns the ``Relation``.
        needs_y: the target contains y.
        is_direct: x0 follows from out and x alone, whatever the path.
    """

    name: str
    relation: Callable[[Point], Relation]
    needs_y: bool = False
    is_direct: bool = False

    def requires_y(self, path):
        return self.needs_y or (path.uses_y and not self.is_direct)

    def targets_at(self, point):
        r = self.relation(point)
        return (
            Weights(
                (r.x0 + r.x * point.a) / r.scale,
                (r.eps + r.x * point.sigma) / r.scale,
                (r.y + r.x * point.b) / r.scale,
            ),
        )

    def x0_at(self, point):
        r = self.relation(point)
        if _is_zero(r.eps):
            return Affine(-r.x / r.x0, (r.scale / r.x0,), -r.y / r.x0)
        d = r.x0 * point.sigma - r.eps * point.a
        return Affine(
            -(r.eps + r.x * point.sigma) / d,
            (r.scale * point.sigma / d,),
            (r.eps * point.b - r.y * point.sigma) / d,
        )

    def eps_at(self, point):
        r = self.relation(point)
        if _is_zero(r.x0) and not _is_zero(r.eps):
            return Affine(-r.x / r.eps, (r.scale / r.eps,), -r.y / r.eps)
        d = r.x0 * point.sigma - r.eps * point.a
        return Affine(
            (r.x0 + r.x * point.a) / d,
            (-r.scale * point.a / d,),
            (r.y * point.a - r.x0 * point.b) / d,
        )


def _is_zero(value: Number) -> bool:
    return not isinstance(value, Tensor) and value == 0


def _sum(*terms: tuple[Number, Tensor | None]) -> Tensor:
    """Return the sum of weight·tensor over the terms that have a tensor and a weight other than a plain 0."""
    total = None
    for weight, tensor in terms:
        if tensor is None or _is_zero(weight):
            continue
        if isinstance(weight, Tensor):
            weight = weight.to(tensor.dtype).reshape((-1,) + (1,) * (tensor.ndim - 1))
        term = tensor if not isinstance(weight, Tensor) and weight == 1 else weight * tensor
        total = term if total is None else total + term
    if total is None:
        return torch.zeros_like(next(tensor for _, tensor in terms if tensor is not None))
    return total
