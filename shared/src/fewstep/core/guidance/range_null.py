"""DDNM: what is known about a linear observation is put into every estimate of x0."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.conditions import ConditionMap, expanded
from fewstep.core.guidance.base import EstimateWrapper
from fewstep.core.guidance.operators import LinearOperator
from fewstep.core.paths import Path
from fewstep.core.solvers.base import Ask, Level, Report, StepwiseSolver, levels
from fewstep.core.wrapping import BaseDenoiser, Time


class RangeNull(EstimateWrapper):
    """Replaces the part of x0 that the operator sees by what was observed: y = A·x_data.

    x0 <- x0 - strength·A⁺(A·x0 - y);  with strength 1, A·x0 = A·A⁺·y exactly and the null space of A is
    left to the denoiser.

    Works with every solver; with "ancestral" on a VP path it is the paper's algorithm. For a tight operator a
    smaller strength is a gradient step on |A·x0 - y|². Put it around `Tiled`, whose windows are too small for
    the observation. For a noisy observation see `NoisyRangeNull`.

    Args:
        inner: any denoiser.
        operator: the degradation.
        observed: y, one entry for each sample or one for all.
        strength: 1 projects.

    Raises:
        ValueError: (on a call) when the observation does not have the operator's shape.

    Reference: Wang, Yu and Zhang 2023, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space
    Model", equations 10 and 13.

    >>> from fewstep.core.guidance.operators import AveragePool
    >>> RangeNull(lambda x, t: x, AveragePool(2), torch.tensor([[[3.0]]]))(torch.tensor([[[0.0, 1.0]]]), 0.5)
    tensor([[[2.5000, 3.5000]]])
    """

    def __init__(
        self,
        inner: BaseDenoiser | Callable[..., Tensor],
        operator: LinearOperator,
        observed: Float[Tensor, "entries *observed"],
        strength: float = 1.0,
    ) -> None:
        super().__init__(inner)
        self.operator = operator
        self.observed = observed
        self.strength = float(strength)

    def mapped(self, function: ConditionMap) -> "RangeNull":
        """The same wrapper with a function applied to every bound tensor and the observation."""
        other = super().mapped(function)
        other.observed = function("observed", self.observed, False)
        return other

    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """Consistent x0."""
        x0 = self.inner(x, t)
        gap = residual(self.operator, x0, self.observed)
        return torch.sub(x0, self.operator.pseudo_inverse(gap), alpha=self.strength)


def residual(
    operator: LinearOperator, x0: Float[Tensor, "batch *rest"], observed: Float[Tensor, "entries *observed"]
) -> Float[Tensor, "batch *observed"]:
    """A·x0 - y.

    Raises:
        ValueError: when y does not have the shape of A·x0.
    """
    seen = operator.forward(x0)
    if observed.shape[1:] != seen.shape[1:]:
        raise ValueError(
            f"observed must have the shape (batch or 1, *{tuple(seen.shape[1:])}) that the operator gives "
            f"for x0 of {tuple(x0.shape)}, not {tuple(observed.shape)}"
        )
    return seen - expanded("observed", observed, x0.shape[0]).to(seen)


@dataclass(frozen=True, eq=False)
class NoisyRangeNull(StepwiseSolver):
    """DDNM+: a sampler for a noisy linear observation y = A·x_data + noise·n; with noise 0, DDNM itself.

    From time t to s, along each singular vector of A with singular value v (null space: v = 0),
        x0 <- x0 - l·A⁺(A·x0 - y),   x_s = a_s·x0 + f·w + k·eps,   eps = (x_t - a_t·x0_network)/sigma_t,
    where the noise of y counts as part of sigma_s: with u = a_s·noise/v its size in the state,
        sigma_s >= u:  l = 1,                              f² = sigma_s² - u²,     k = 0
        sigma_s <  u:  l = sqrt(1 - eta²)·sigma_s/u,       f = eta·sigma_s,        k = 0
        v = 0:                                             f = eta·sigma_s,        k = sqrt(1 - eta²)·sigma_s.
    With noise 0 every direction is treated like the last line, with l = 1.

    Time travel (travel > 1, repeats > 1) goes back by `travel` steps with fresh noise on the network's last
    estimate, `repeats` - 1 times at every `travel`-th step, which costs that many calls more.

    Args:
        operator: the degradation A.
        observed: y, one entry for each sample or one for all.
        noise: standard deviation of the noise in y.
        eta: share of fresh noise.
        travel: steps to go back.
        repeats: how often each stretch of `travel` steps is done.

    Raises:
        ValueError: for a noise, eta, travel or repeats out of range.

    Reference: Wang, Yu and Zhang 2023, equations 16 to 19, algorithm 2 (time travel) and appendix I.
    """

    operator: LinearOperator
    observed: Tensor
    noise: float = 0.0
    eta: float = 0.85
    travel: int = 1
    repeats: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.noise) and self.noise >= 0.0):
            raise ValueError(f"noise must be at least 0, not {self.noise}")
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], not {self.eta}")
        if self.travel < 1 or self.repeats < 1:
            raise ValueError(f"travel and repeats must be at least 1, not {self.travel} and {self.repeats}")

    @property
    def name(self) -> str:
        return "ddnm+" if self.noise else "ddnm"

    @property
    def order(self) -> int:
        return 1

    def calls(self, steps: int) -> int:
        """Network calls on a grid of this many steps."""
        return sum(after > before for before, after in itertools.pairwise(self._visits(steps)))

    def integrate(
        self,
        ask: Ask,
        path: Path,
        grid: Sequence[float],
        z: Tensor,
        noise: Callable[[Tensor], Tensor],
        on_step: Report,
    ) -> Tensor:
        points = levels(path, grid)
        x0 = z
        for before, after in itertools.pairwise(self._visits(len(points) - 1)):
            s = points[after]
            if after < before:
                z = s.a * x0 + s.sigma * noise(z)
                continue
            x0 = ask(z, points[before].t)
            z = self._step(z, x0, points[before], s, noise)
            if not on_step(z, s.t, x0):
                break
        return z

    def _step(self, z: Tensor, x0: Tensor, t: Level, s: Level, noise: Callable[[Tensor], Tensor]) -> Tensor:
        eps = (z - t.a * x0) / t.sigma
        fix = self.operator.pseudo_inverse(residual(self.operator, x0, self.observed))
        if self.noise:
            fix = self.operator.filtered(fix, lambda v: self._gains(v, s)[0])
        z = s.a * (x0 - fix)
        if s.sigma == 0.0:
            return z
        if not self.noise:
            fresh, kept = self.eta, math.sqrt(1 - self.eta**2)
            return z + s.sigma * (fresh * noise(z) + kept * eps)
        z = z + self.operator.filtered(noise(z), lambda v: self._gains(v, s)[1])
        return z + self.operator.filtered(eps, lambda v: self._gains(v, s)[2])

    def _gains(self, v: Tensor, s: Level) -> tuple[Tensor, Tensor, Tensor]:
        """(l, f, k) of each singular value."""
        seen = v > 0
        u = torch.where(seen, s.a * self.noise / v.clamp_min(1e-300), 0.0)
        kept = math.sqrt(1 - self.eta**2) * s.sigma
        above = seen & (s.sigma >= u)
        move = torch.where(above | ~seen, 1.0, kept / u.clamp_min(1e-300))
        fresh = torch.where(above, (s.sigma**2 - u**2).clamp_min(0).sqrt(), self.eta * s.sigma)
        return move, fresh, kept * (~seen).double()

    def _visits(self, steps: int) -> Iterator[int]:
        """Indices of the grid in the order in which they are visited."""
        left = dict.fromkeys(range(steps - 1, self.travel - 1, -self.travel), self.repeats - 1)
        i = 0
        yield i
        while i < steps:
            i += 1
            yield i
            if left.get(i, 0) > 0:
                left[i] -= 1
                i -= self.travel
                yield i
