"""What guidance wrappers share: estimates of x0 are combined, sometimes of two denoisers, at some levels."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import predictions
from fewstep.core.conditions import ConditionMap, Conditions
from fewstep.core.paths import Path
from fewstep.core.wrapping import BaseDenoiser, Time, Wrapper, as_denoiser

B = TypeVar("B", bound="Beside")


@dataclass(frozen=True)
class Interval:
    """The noise levels low <= sigma/a <= high at which a guidance acts.

    Args:
        low: smallest sigma/a.
        high: largest sigma/a; infinity includes pure noise.

    Raises:
        ValueError: if the interval is empty or negative.

    Reference: Kynkäänniemi et al. 2024, "Applying Guidance in a Limited Interval Improves Sample and
    Distribution Quality in Diffusion Models", equation 5.

    >>> from fewstep.core import paths
    >>> Interval(0.2, 5.0).contains(paths.EDM(), 1.0)
    True
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not 0.0 <= self.low < self.high:
            raise ValueError(f"interval must be 0 <= low < high in sigma/a, not ({self.low}, {self.high})")

    def contains(self, path: Path | None, t: Time) -> Any:
        """Whether t lies inside: a bool, or one for each sample."""
        if path is None:
            raise ValueError("an interval in sigma/a needs a denoiser that knows its path")
        a, _, sigma = path.evaluate(t) if isinstance(t, Tensor) and t.ndim else path.coefficients(float(t))
        inside = sigma >= self.low * a
        return inside if self.high == math.inf else inside & (sigma <= self.high * a)


def interval_of(given: "Interval | tuple[float, float] | None") -> Interval | None:
    """An interval from a pair of numbers."""
    return Interval(*given) if isinstance(given, tuple) else given


def weight_at(scale: float, interval: Interval | None, path: Path | None, t: Time, like: Tensor) -> Any:
    """The guidance weight at t: `scale` inside the interval and 1 outside, one for each sample if t is."""
    if interval is None:
        return scale
    inside = interval.contains(path, t)
    if not isinstance(inside, Tensor):
        return scale if inside else 1.0
    return torch.where(inside, scale, 1.0).to(like).view(-1, *[1] * (like.ndim - 1))


class EstimateWrapper(Wrapper):
    """A wrapper that changes the estimate of x0; its raw prediction is that estimate.

    Args:
        inner: the denoiser, or any callable (x, t) -> x0.
    """

    def __init__(self, inner: BaseDenoiser | Callable[..., Tensor]) -> None:
        super().__init__(inner)
        self.prediction = predictions.get("x0")

    @abstractmethod
    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """The changed x0."""

    def __call__(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """The changed x0."""
        return self.predict(x, t)


class Beside(EstimateWrapper):
    """A wrapper that also asks a second denoiser, which keeps conditions of its own.

    `given` binds a condition in the second one as well if it is bound there already, or is its path's y.

    Args:
        inner: the denoiser.
        other: the second one; None: there is none.
    """

    def __init__(
        self,
        inner: BaseDenoiser | Callable[..., Tensor],
        other: BaseDenoiser | Callable[..., Tensor] | None,
    ) -> None:
        super().__init__(inner)
        self.other = None if other is None else as_denoiser(other)

    @property
    def conditions(self) -> Conditions:
        """What is bound in either denoiser; where both bind a name, the first one's value."""
        if self.other is None:
            return self.inner.conditions
        values = {**self.other.bound, **self.inner.bound}
        return Conditions(values, self.inner.spatial | self.other.spatial)

    def given(self: B, *, spatial: Iterable[str] = (), **conditions: Any) -> B:
        """The same wrapper with these conditions bound as well."""
        changed = super().given(spatial=spatial, **conditions)
        if self.other is not None:
            known = {name: value for name, value in conditions.items() if self._other_takes(name)}
            changed.other = self.other.given(spatial=[name for name in spatial if name in known], **known)
        return changed

    def mapped(self: B, function: ConditionMap) -> B:
        """The same wrapper with a function applied to every bound tensor of both denoisers."""
        changed = super().mapped(function)
        changed.other = None if self.other is None else self.other.mapped(function)
        return changed

    def _other_takes(self, name: str) -> bool:
        assert self.other is not None
        path = self.other.path
        needs_y = path is not None and (path.uses_y or self.other.prediction.requires_y(path))
        return name in self.other.bound or (name == "y" and needs_y)


def estimate_elsewhere(
    denoise: BaseDenoiser, x: Float[Tensor, "batch *rest"], t: Time, path: Path | None, y: Tensor | None
) -> Float[Tensor, "batch *rest"]:
    """x0 by a denoiser for another path, asked about the same sample at the same sigma/a.

    x = a·x0 + b·y + sigma·eps becomes (x - b·y)·sigma'/sigma + b'·y at the time t' with sigma'/a' = sigma/a.

    Args:
        denoise: the denoiser; one without a path is asked at x and t.
        x: state on `path`.
        t: time on `path`.
        path: None: the path of `denoise`.
        y: degraded input, where a path uses it.
    """
    other = denoise.path
    if path is None or other is None or other == path:
        return denoise(x, t)
    if isinstance(t, Tensor) and t.ndim:
        there: Time = other.time_at(path.half_log_snr_at(t))
        _, b, sigma = (c.to(x).view(-1, *[1] * (x.ndim - 1)) for c in path.evaluate(t))
        _, b2, sigma2 = (c.to(x).view(-1, *[1] * (x.ndim - 1)) for c in other.evaluate(there))
    else:
        there = other.time_at(path.half_log_snr(float(t)))
        _, b, sigma = path.coefficients(float(t))
        _, b2, sigma2 = other.coefficients(there)
    z = x if y is None or not path.uses_y else x - b * y
    moved = z * (sigma2 / sigma)
    return denoise(moved if y is None or not other.uses_y else moved + b2 * y, there)
