"""First order: DDIM (equal to Euler in sigma/a) and ancestral sampling, one update for every path."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fewstep.core.builder import Call, PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, check_choice, levels


@dataclass(frozen=True)
class FirstOrder(Solver):
    """x_s = a_s·x0 + b_s·y + sqrt(sigma_s² − delta²)·eps + delta·w, from time t to the cleaner time s.

    DDIM (eta = 0) has delta = 0. Ancestral sampling (eta = 1) draws from the posterior of the forward chain,
        delta² = eta²·(sigma_s²/sigma_t²)·(sigma_t² − r²·sigma_s²),  r = path.transition(s, t),
    which is DDPM on VP paths, and the published samplers of ResShift, RDDM and Resfusion on theirs.

    Args:
        eta: share of fresh noise, 0 (deterministic) to 1 (posterior); above 1 only up to delta = sigma_s.
        variance: "small" the posterior's; "large" keeps its mean but draws with sigma_t² − r²·sigma_s².

    Raises:
        ValueError: if eta is negative, or the large variance is asked for without eta = 1.

    Reference: Song, Meng and Ermon 2021 (DDIM), equations 12 and 16; Ho et al. 2020 (DDPM), section 3.2.
    """

    eta: float = 0.0
    variance: str = "small"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and self.eta >= 0.0):
            raise ValueError(f"eta must be at least 0, not {self.eta}")
        check_choice("variance", self.variance, ("small", "large"))
        if self.variance == "large" and self.eta != 1.0:
            raise ValueError(f"variance 'large' belongs to eta = 1, not {self.eta}")

    @property
    def name(self) -> str:
        return "ancestral" if self.eta else "ddim"

    @property
    def order(self) -> int:
        return 1

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        for t, s in itertools.pairwise(points):
            x = first_order_step(build, x, build.ask(x), t, s, *self._spread(path, t, s))
        return build.build()

    def _spread(self, path: Path, t: Level, s: Level) -> tuple[float, float]:
        """(delta in the mean, standard deviation of the draw)."""
        if self.eta == 0.0:
            return 0.0, 0.0
        fresh = max(
            t.sigma**2 - (path.transition(s.t, t.t) * s.sigma) ** 2, 0.0
        )  # variance the forward chain adds
        delta = min(self.eta * math.sqrt(fresh) * s.sigma / t.sigma, s.sigma)
        if self.variance == "large":
            return delta, math.sqrt(
                fresh
            ) if s.sigma else 0.0  # the published samplers draw nothing in the last step
        return delta, delta


def first_order_step(
    build: PlanBuilder, x: Vector, call: Call, t: Level, s: Level, delta: float = 0.0, spread: float = 0.0
) -> Vector:
    """Add the step x_s = a_s·D + sqrt(sigma_s² − delta²)·(x − a_t·D)/sigma_t + spread·w.

    Written in x and D it is exact at a_t = 0 (pure noise) and at sigma_s = 0 (clean end).
    """
    keep = math.sqrt(max(s.sigma**2 - delta**2, 0.0)) / t.sigma
    return build.step(s.t, {x: keep, call.d: s.a - keep * t.a}, noise=spread)


SOLVERS = {
    "ddim": Listed(FirstOrder, "Song et al. 2021, DDIM", "n", "robust at any budget"),
    "euler": Listed(FirstOrder, "Euler's method in sigma/a", "n", "DDIM under its other name"),
    "ancestral": Listed(partial(FirstOrder, eta=1.0), "Ho et al. 2020, ancestral", "n", "many steps"),
    "ddpm": Listed(partial(FirstOrder, eta=1.0), "Ho et al. 2020, DDPM", "n", "many steps"),
}
