"""The loop of every multistep method that extrapolates the noise estimate over a step of sigma/a."""

import itertools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

from fewstep.core.builder import Call, PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Solver, levels
from fewstep.core.solvers.first_order import first_order_step

CLEAN_STEPS = ("ddim", "full")


@dataclass(frozen=True)
class NoiseMultistep(Solver):
    """z_s = a_s/a_t·z_t + a_s·sum_j w_j·eps_j, one network call a step, kappa = sigma/a.

    The probability-flow ODE is d(z/a)/dkappa = eps on every path. A member of the family says how the newest
    noise estimates are extrapolated over the step: the weights w_j, whose sum is kappa_s − kappa_t. The first
    steps use the estimates that there are, without more calls. A step from a = 0, where kappa is infinite, is
    a DDIM step and its estimate is not used again.

    Args:
        clean_step: a step to sigma = 0, "ddim" returns the denoised estimate; "full" extrapolates there too.
        lower_order_below: with fewer steps than this the last steps use at most …, 2, 1 estimates;
            0 switches it off.
    """

    clean_step: str = field(default="ddim", kw_only=True)
    lower_order_below: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_clean_step(self.clean_step)
        if self.lower_order_below < 0:
            raise ValueError(f"lower_order_below must not be negative, it is {self.lower_order_below}")

    @property
    @abstractmethod
    def estimates(self) -> int:
        """How many noise estimates a step uses when there are enough."""

    @abstractmethod
    def weights(self, path: Path, nodes: Sequence[Level], s: Level) -> list[float]:
        """The weights w_j of a step to s for estimates made at the levels `nodes`, the newest first."""

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        steps = len(points) - 1
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        history: list[tuple[Level, Call]] = []
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            call = build.ask(x)
            if t.a == 0.0 or (s.sigma == 0.0 and self.clean_step == "ddim"):
                x = first_order_step(build, x, call, t, s)
                continue
            history = [(t, call), *history][: self.estimates]
            left = steps - i if steps < self.lower_order_below else self.estimates
            used = history[:left]
            weights = self.weights(path, [level for level, _ in used], s)
            x = noise_step(build, x, t, s, dict(zip((call for _, call in used), weights, strict=True)))
        return build.build()


def noise_step(
    build: PlanBuilder, x: Vector, t: Level, s: Level, weights: dict[Call, float], inner: bool = False
) -> Vector:
    """Add z_s = a_s/a_t·z_t + a_s·sum_j w_j·eps_j, the step of all methods in z/a against sigma/a."""
    terms = {call.e: s.a * weight for call, weight in weights.items()}
    return build.step(s.t, {x: s.a / t.a} | terms, inner=inner)


def kappa(level: Level) -> float:
    """sigma/a, the time in which the ODE of z/a has the slope eps."""
    return level.sigma / level.a


def check_clean_step(value: str) -> None:
    """Refuse an unknown way to step to sigma = 0."""
    if value not in CLEAN_STEPS:
        raise ValueError(f"clean_step must be one of {', '.join(map(repr, CLEAN_STEPS))}, not {value!r}")
