"""BDIA: a two-state map around DDIM that can be run backwards exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.core.builder import PlanBuilder
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Listed, Solver, levels
from fewstep.core.solvers.first_order import first_order_step


@dataclass(frozen=True)
class BDIA(Solver):
    """z_k+1 = gamma·(z_k−1 − phi(z_k, t_k → t_k−1)) + phi(z_k, t_k → t_k+1), phi the DDIM map.

    The first step is DDIM's. The bracket is how far the DDIM step back misses the state before; it corrects
    the first-order error of the last step. With gamma = 1 the method is of order 2 (a leapfrog), below it of
    order 1. Given the last two states every earlier one follows without an approximation, see `Plan.inverse`
    and `fewstep.core.encoding`.

    The bracket is taken in z and not in z/a, so the trajectory depends on the scaling of the path. A step to
    sigma = 0 is no exception, as it would not be invertible: it does not return the denoised estimate.

    Args:
        gamma: 0 (DDIM) to 1. The authors recommend 0.5 for 10 steps and 1 for 40. Backwards, rounding errors
            grow as gamma^−n in n steps.

    Raises:
        ValueError: if gamma lies outside [0, 1].

    Reference: Zhang, Lewis and Kleijn 2024 (BDIA), section 4, equations 12 to 15.
    """

    gamma: float = 1.0
    name = "bdia"

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma must lie in [0, 1], not {self.gamma}")

    @property
    def order(self) -> int:
        return 2 if self.gamma == 1.0 else 1

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        older = build.start(points[0].t)
        newer = first_order_step(build, older, build.ask(older), points[0], points[1])
        for before, t, s in zip(points, points[1:], points[2:], strict=False):
            call = build.ask(newer)
            # phi to an end is ratio·z + (a_end − ratio·a_t)·D, ratio = sigma_end/sigma_t
            on, back = s.sigma / t.sigma, before.sigma / t.sigma
            terms = {
                older: self.gamma,
                newer: on - self.gamma * back,
                call.d: (s.a - on * t.a) - self.gamma * (before.a - back * t.a),
            }
            older, newer = newer, build.step(s.t, terms)
        return build.build()


SOLVERS = {
    name: Listed(BDIA, "Zhang et al. 2024, BDIA-DDIM", "n", "exact inversion, editing")
    for name in ("bdia", "bdia-ddim")
}
