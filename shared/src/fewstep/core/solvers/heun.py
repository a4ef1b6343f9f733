"""Heun's method in sigma/a, with the optional churn of EDM."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.core.builder import PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, levels
from fewstep.core.solvers.first_order import first_order_step


@dataclass(frozen=True)
class Churn:
    """Going back to a higher noise level before a step, kappa·(1 + gamma), by adding noise.

    Args:
        strength: S_churn; gamma = min(strength/steps, √2 − 1).
        low: smallest kappa = sigma/a at which it is done (S_min).
        high: largest (S_max).
        noise_scale: factor on the added noise (S_noise).

    Raises:
        ValueError: if strength or noise_scale is negative.

    Reference: Karras et al. 2022 (EDM), algorithm 2.
    """

    strength: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.strength < 0.0 or self.noise_scale < 0.0:
            raise ValueError(
                f"churn and noise_scale must not be negative; they are {self.strength} and {self.noise_scale}"
            )

    def raised(self, build: PlanBuilder, x: Vector, t: Level, steps: int) -> tuple[Vector, Level]:
        """The state at the higher level, and the level; both as they were where nothing is added."""
        kappa = t.sigma / t.a if t.a else math.inf
        if self.strength == 0.0 or not (self.low <= kappa <= self.high and math.isfinite(kappa)):
            return x, t
        higher = kappa * (1.0 + min(self.strength / steps, math.sqrt(2.0) - 1.0))
        time = build.path.time_at(-math.log(higher))
        a, _, sigma = build.path.coefficients(time)
        if a == 0.0 or sigma / a <= kappa * (1 + 1e-9):  # the path ends here: nothing noisier to go back to
            return x, t
        spread = self.noise_scale * math.sqrt(sigma**2 - (a * kappa) ** 2)
        return build.step(time, {x: a / t.a}, noise=spread, inner=True), Level(time, a, sigma)


@dataclass(frozen=True)
class Heun(Solver):
    """Trapezoidal rule for d(z/a)/d(kappa) = eps, kappa = sigma/a.

    z'_s = a_s/a_t·z_t + a_s·(kappa_s − kappa_t)·eps_t, then
    z_s = a_s/a_t·z_t + a_s·(kappa_s − kappa_t)·(eps_t + eps'_s)/2.
    The step to sigma = 0 (and one from a = 0) is a DDIM step: 2N − 1 network calls for N steps.

    With churn each step first goes back to kappa·(1 + gamma), gamma = min(churn/N, √2 − 1), by adding noise.

    Args:
        churn: strength of the added noise (S_churn); 0 is deterministic.
        churn_min: churn only where sigma/a is at least this (S_min).
        churn_max: and at most this (S_max).
        noise_scale: factor on the added noise (S_noise).

    Raises:
        ValueError: if churn or noise_scale is negative.

    Reference: Karras, Aittala, Aila and Laine 2022 (EDM), algorithms 1 and 2.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        self._churn()  # raises where an option is wrong

    def _churn(self) -> Churn:
        return Churn(self.churn, self.churn_min, self.churn_max, self.noise_scale)

    @property
    def name(self) -> str:
        return "heun"

    @property
    def order(self) -> int:
        return 2

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        for t, s in itertools.pairwise(points):
            x, raised = self._churn().raised(build, x, t, len(points) - 1)
            x = self._step(build, x, raised, s)
        return build.build()

    def _step(self, build: PlanBuilder, x: Vector, t: Level, s: Level) -> Vector:
        first = build.ask(x)
        if s.sigma == 0.0 or t.a == 0.0:
            return first_order_step(build, x, first, t, s)
        scale = s.a / t.a
        change = s.sigma - s.a * t.sigma / t.a
        guess = build.step(s.t, {x: scale, first.e: change}, inner=True)
        second = build.ask(guess)
        return build.step(s.t, {x: scale, first.e: 0.5 * change, second.e: 0.5 * change})


SOLVERS = {
    "heun": Listed(Heun, "Karras et al. 2022, EDM", "2n − 1", "the EDM baseline; churn adds noise"),
}
