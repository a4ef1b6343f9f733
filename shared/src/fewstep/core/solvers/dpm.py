"""DPM-Solver: multistep exponential integrators in the noise, orders 1 to 3, ODE and SDE."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from fewstep.core.builder import PlanBuilder
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Node, Solver, check_choice, levels
from fewstep.core.solvers.dpm_step import CORRECTIONS, denoise_to_zero, exponential_step


@dataclass(frozen=True)
class DPMSolver(Solver):
    """Multistep DPM-Solver from time t to s, with lam = log(a/sigma), h = lam_s − lam_t and phi_k = phi_k(h):

    z_s = a_s/a_t·z_t − (1 + eta)·sigma_s·h·(phi_1·m0 + c·D1 + c'·D2) + sigma_s·sqrt(eta·(e^(2h) − 1))·w,

    D1 and D2 the divided differences of the noises m0, m1, m2 (newest first), which stand for the first and
    half the second derivative. Two values: c = phi_1/2 ("midpoint") or phi_2 ("taylor"). Three: c = phi_2
    and c' = 2·phi_3 ("exact") or phi_3 ("official", as in the published code: an error of order 2).
    The first steps use what values there are, so that a chain is of global order 2 at most; the step to
    sigma = 0 is z = a_s·x0 and a step from a = 0 has order 1.

    Args:
        solver_order: number of values in a step, 1, 2 or 3.
        correction: rule for two values, "midpoint" or "taylor".
        variant: rule for three values, "official" or "exact".
        eta: 0 the probability-flow ODE; 1 the SDE form; values between are allowed.
        lower_order_below: with fewer steps than this the last steps have orders …, 2, 1: more stable.
            10 is the rule of the published code, 15 that of diffusers; 0 switches it off.
        euler_at_final: the last step has order 1 however many there are.
        denoise_to_zero: one more call at the end of the grid, whose denoised sample is the result.
        noise_scale: factor on the draws.

    Raises:
        ValueError: if an option is out of range.

    Reference: Lu et al. 2022 (DPM-Solver), section 3; Lu et al. 2022 (DPM-Solver++), section 5.
    """

    form: ClassVar[str] = "noise"
    solver_order: int = 2
    correction: str = "midpoint"
    variant: str = "official"
    eta: float = 0.0
    lower_order_below: int = 10
    euler_at_final: bool = False
    denoise_to_zero: bool = False
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3):
            raise ValueError(f"solver_order must be 1, 2 or 3, not {self.solver_order}")
        check_choice("correction", self.correction, CORRECTIONS)
        check_choice("variant", self.variant, ("official", "exact"))
        for name in ("eta", "noise_scale"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0.0):
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")
        if self.lower_order_below < 0:
            raise ValueError(f"lower_order_below must not be negative, it is {self.lower_order_below}")

    @property
    def name(self) -> str:
        family = "dpmpp" if self.form == "data" else "dpm"
        return (
            f"{family}-{self.solver_order}{'m' if self.solver_order > 1 else ''}{' sde' if self.eta else ''}"
        )

    @property
    def order(self) -> int:
        return min(self.solver_order, 2)

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        return self._chain(path, levels(path, grid), self.name)

    def encode(self, path: Path, grid: Sequence[float]) -> Plan:
        """The plan that walks the grid from its last time to its first, from a sample to its noise.

        It is the same rule with h < 0, not the inverse map of `compile`: the two agree as the steps vanish.

        Args:
            path: the path.
            grid: strictly decreasing times; the network is asked at all but the first.

        Raises:
            ValueError: for eta > 0, or if sigma = 0 at the grid's end.

        Reference: the "inverse" of the published DPM-Solver code.
        """
        points = levels(path, grid)[::-1]
        if self.eta > 0.0 or self.denoise_to_zero:
            raise ValueError("encode needs eta = 0 and denoise_to_zero = False")
        if points[0].sigma == 0.0:
            raise ValueError(
                f"grid ends at t = {points[0].t}, where sigma = 0 and there is no noise to ask for; "
                "end it above, such as with final='t_min'"
            )
        return self._chain(path, points, f"{self.name} encode")

    def _chain(self, path: Path, points: Sequence[Level], name: str) -> Plan:
        steps = len(points) - 1
        build = PlanBuilder(path, name)
        x = build.start(points[0].t)
        history: list[Node] = []
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            history.insert(0, Node(build.ask(x), t.half_log_snr))
            used = history[: self._most(i, steps)]
            finite = [node for node in used if math.isfinite(node.half_log_snr)] or used[:1]
            rule = self.correction if len(finite) < 3 else self.variant
            x = exponential_step(build, x, t, s, finite, self.form, rule, self.eta, self.noise_scale)
            del history[self.solver_order - 1 :]
        if self.denoise_to_zero:
            denoise_to_zero(build, x, points[-1])
        return build.build()

    def _most(self, i: int, steps: int) -> int:
        """The highest order that step i may have."""
        if self.euler_at_final and i == steps - 1:
            return 1
        return min(self.solver_order, steps - i) if steps < self.lower_order_below else self.solver_order


SOLVERS = {
    "dpm-1": Listed(
        partial(DPMSolver, solver_order=1), "Lu et al. 2022, DPM-Solver-1", "n", "DDIM in noise form"
    ),
    "dpm-2m": Listed(
        partial(DPMSolver, solver_order=2), "Lu et al. 2022, DPM-Solver(2M)", "n", "unguided noise predictors"
    ),
    "dpm-3m": Listed(
        partial(DPMSolver, solver_order=3), "Lu et al. 2022, DPM-Solver(3M)", "n", "unguided, 15 calls on"
    ),
}
