"""DPM-Solver-fast: singlestep steps of several orders that use up a given number of network calls."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fewstep.core.builder import PlanBuilder
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, check_choice, levels
from fewstep.core.solvers.dpm_step import CORRECTIONS, FORMS, denoise_to_zero
from fewstep.core.solvers.first_order import first_order_step
from fewstep.core.solvers.singlestep import RATIOS, inner_levels, levels_at, single_step

BUDGETS = ("fast", "fixed")


@dataclass(frozen=True)
class FastSingleStep(Solver):
    """Singlestep DPM-Solver with exactly one network call for each interval of the grid.

    The orders of the steps are, for n intervals and solver_order 3,

        n = 3k       3, …, 3, 2, 1   (k − 1 times 3)
        n = 3k + 1   3, …, 3, 1      (k times 3)
        n = 3k + 2   3, …, 3, 2      (k times 3)

    and 2, …, 2 (then 1 if n is odd) for solver_order 2. With nodes = "logsnr" the steps are equal in
    log(a/sigma) between the ends of the grid, whose other times only count calls: the published
    DPM-Solver-fast. With nodes = "grid" a step of order k goes over k intervals of the grid and asks at its
    times. A step to sigma = 0 or from a = 0 takes one interval of the grid and has order 1; its neighbour
    gives up a call for it.

    Args:
        solver_order: the highest order, 1, 2 or 3.
        form: "data" or "noise", what is interpolated.
        correction: "midpoint" or "taylor"; see `SingleStep`.
        budget: "fast", the rule above; "fixed", solver_order all the way and the rest at the end; or the
            orders themselves, with the number of intervals as their sum.
        nodes: "logsnr" or "grid".
        stage: rule of the second inner stage, "taylor", or "midpoint" as diffusers has it.
        denoise_to_zero: one more call at the end of the grid, whose denoised sample is the result.

    Raises:
        ValueError: if an option is out of range, or given orders do not fit the grid.

    Reference: Lu et al. 2022 (DPM-Solver), section 3.4 and appendix D.3.
    """

    solver_order: int = 3
    form: str = "data"
    correction: str = "midpoint"
    budget: str | tuple[int, ...] = "fast"
    nodes: str = "logsnr"
    stage: str = "taylor"
    denoise_to_zero: bool = False

    def __post_init__(self) -> None:
        if self.solver_order not in RATIOS:
            raise ValueError(f"solver_order must be 1, 2 or 3, not {self.solver_order}")
        check_choice("form", self.form, FORMS)
        check_choice("correction", self.correction, CORRECTIONS)
        check_choice("nodes", self.nodes, ("logsnr", "grid"))
        check_choice("stage", self.stage, CORRECTIONS)
        if isinstance(self.budget, str):
            check_choice("budget", self.budget, BUDGETS)
        elif not self.budget or not all(k in RATIOS for k in self.budget):
            raise ValueError(f"budget must hold orders 1, 2 or 3, it is {self.budget}")

    @property
    def name(self) -> str:
        return f"{'dpmpp' if self.form == 'data' else 'dpm'}-fast"

    @property
    def order(self) -> int:
        """2 for the fast rule: its last step is of order 1 or 2."""
        return self.solver_order if self.budget == "fixed" else min(self.solver_order, 2)

    def orders(self, intervals: int) -> list[int]:
        """The orders of the steps over so many intervals.

        Raises:
            ValueError: if orders were given that do not sum up to it.
        """
        if not isinstance(self.budget, str):
            calls = sum(self.budget)
            if calls != intervals:
                raise ValueError(
                    f"budget {self.budget} makes {calls} calls, the grid has {intervals} intervals"
                )
            return list(self.budget)
        whole, rest = divmod(intervals, self.solver_order)
        if self.budget == "fast" and self.solver_order == 3 and rest == 0:
            return [3] * (whole - 1) + [2, 1]
        return [self.solver_order] * whole + [rest] * (rest > 0)

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        orders = self.orders(len(points) - 1)
        pure, clean = points[0].a <= 0.0, points[-1].sigma == 0.0
        if clean and orders[-1] > 1:
            orders[-1:] = [orders[-1] - 1, 1]
        if pure and orders[0] > 1:
            orders[:1] = [1, orders[0] - 1]
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        for t, s, inner in self._steps(path, points, orders, pure, clean):
            if t.a <= 0.0 or s.sigma == 0.0:
                x = first_order_step(build, x, build.ask(x), t, s)
            else:
                x = single_step(build, x, t, s, inner, self.form, self.correction, self.stage)
        if self.denoise_to_zero:
            denoise_to_zero(build, x, points[-1])
        return build.build()

    def _steps(
        self, path: Path, points: Sequence[Level], orders: list[int], pure: bool, clean: bool
    ) -> list[tuple[Level, Level, Sequence[Level]]]:
        """Start, end and inner levels of each step."""
        if self.nodes == "grid" or len(orders) == 1:
            ends = list(itertools.accumulate(orders, initial=0))
            outer = [points[i] for i in ends]
        else:
            outer = _equal(path, points, len(orders), pure, clean)
        steps = list(itertools.pairwise(outer))
        if self.nodes == "grid":
            inner = [points[i + 1 : j] for i, j in itertools.pairwise(ends)]
        else:
            inner = inner_levels(path, [(t, s, RATIOS[k]) for (t, s), k in zip(steps, orders, strict=True)])
        return [(t, s, between) for (t, s), between in zip(steps, inner, strict=True)]


def _equal(path: Path, points: Sequence[Level], steps: int, pure: bool, clean: bool) -> list[Level]:
    """Ends of steps that are equal in log(a/sigma), but for one from a = 0 and one to sigma = 0."""
    first, last = points[pure], points[len(points) - 1 - clean]
    count = steps - pure - clean
    span = last.half_log_snr - first.half_log_snr
    middle = levels_at(path, [first.half_log_snr + span * i / count for i in range(1, count)])
    ends = [first, *middle, last] if count else [first]
    return [points[0]] * pure + ends + [points[-1]] * clean


SOLVERS = {
    "dpm-fast": Listed(
        partial(FastSingleStep, form="noise"),
        "Lu et al. 2022, DPM-Solver-fast",
        "n",
        "unguided, 10 to 20 calls",
    ),
    "dpmpp-fast": Listed(
        FastSingleStep, "Lu et al. 2022, DPM-Solver++ singlestep", "n", "unguided, 10 to 20 calls"
    ),
}
