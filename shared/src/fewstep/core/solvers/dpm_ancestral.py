"""DPM-Solver++ SDE of k-diffusion: an ancestral step in the middle and one over the whole step."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.core.builder import PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, levels
from fewstep.core.solvers.singlestep import ancestral_split, inner_levels


@dataclass(frozen=True)
class DPMSolverPPSDE(Solver):
    """Two calls and two draws in a step from t to s: with m0 at t, first to the level u at lam_t + r·h,

        z_u = keep(u)·z_t + (a_u − keep(u)·a_t)·m0 + delta(u)·w,     m1 asked there, then
        z_s = keep(s)·z_t + (a_s − keep(s)·a_t)·((1 − c)·m0 + c·m1) + delta(s)·w',   c = 1/(2r),

    with lam = log(a/sigma), keep(u) = sqrt(sigma_u² − delta(u)²)/sigma_t and
    delta(u) = eta·sigma_u·sqrt(1 − kappa_u²/kappa_t²), kappa = sigma/a. The step to sigma = 0 and one from
    a = 0 have one call.

    Args:
        eta: share of fresh noise, 0 to 1.
        r: place of the second call.
        noise_scale: factor on the draws.

    Raises:
        ValueError: if an option is out of range.

    Reference: k-diffusion, "DPM++ SDE"; Lu et al. 2022 (DPM-Solver++), section 5.
    """

    eta: float = 1.0
    r: float = 0.5
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], not {self.eta}")
        if not 0.0 < self.r < 1.0:
            raise ValueError(f"r must lie between 0 and 1, not {self.r}")
        if not (math.isfinite(self.noise_scale) and self.noise_scale >= 0.0):
            raise ValueError(f"noise_scale must be at least 0, not {self.noise_scale}")

    @property
    def name(self) -> str:
        return "dpmpp-sde"

    @property
    def order(self) -> int:
        """2 for eta = 0; with draws each step is of strong order 1."""
        return 1 if self.eta else 2

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        inner = inner_levels(path, [(t, s, (self.r,)) for t, s in itertools.pairwise(points)])
        for (t, s), middle in zip(itertools.pairwise(points), inner, strict=True):
            x = self._step(build, x, t, s, middle)
        return build.build()

    def _step(self, build: PlanBuilder, x: Vector, t: Level, s: Level, middle: Sequence[Level]) -> Vector:
        first = build.ask(x)
        if not middle:
            return self._ancestral(build, x, t, s, {first.d: 1.0})
        guess = self._ancestral(build, x, t, middle[0], {first.d: 1.0}, inner=True)
        second = build.ask(guess)
        share = 0.5 / self.r
        return self._ancestral(build, x, t, s, {first.d: 1.0 - share, second.d: share})

    def _ancestral(
        self, build: PlanBuilder, x: Vector, t: Level, s: Level, x0: dict[Vector, float], inner: bool = False
    ) -> Vector:
        """The ancestral step with a mixture of calls as its x0."""
        down, delta = ancestral_split(t, s, self.eta)
        keep = down.sigma / t.sigma
        terms = {call: share * (s.a - keep * t.a) for call, share in x0.items()}
        return build.step(s.t, {x: keep} | terms, noise=self.noise_scale * delta, inner=inner)


SOLVERS = {
    "dpmpp-sde": Listed(DPMSolverPPSDE, "k-diffusion, DPM++ SDE", "2n − 1", "10 to 20 steps, draws noise"),
}
