"""Adams–Bashforth–Moulton in sigma/a: the textbook predictor and corrector, one network call per step."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.core.builder import PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, levels
from fewstep.core.solvers.exponential import lagrange_weights
from fewstep.core.solvers.first_order import first_order_step


@dataclass(frozen=True)
class AdamsMoulton(Solver):
    """d(z/a)/d(kappa) = eps, kappa = sigma/a: predict from the last two values, correct with the new one.

    z_s = a_s/a_t·z_t + a_s·(kappa_s − kappa_t)·sum_j w_j·eps_j, w_j the integrals of the Lagrange polynomials
    of the two newest calls (predictor), and of these and the call at the prediction (corrector). The network
    is not asked again at the corrected state (PEC mode).

    Reference: Hairer, Nørsett and Wanner 1993, "Solving Ordinary Differential Equations I", section III.1.
    """

    name = "abm-3"
    order = 3

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        call, base = build.ask(x), x
        history: dict[Vector, float] = {}  # noise of a call -> its kappa, newest first
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            if t.a <= 0.0 or s.sigma == 0.0:  # pure noise has no kappa; a clean end is the estimate itself
                x = base = first_order_step(build, base, call, t, s)
            else:
                history = {call.e: t.sigma / t.a} | dict(list(history.items())[:1])
                x = build.step(s.t, self._terms(base, history, t, s))
            if i + 2 < len(points):
                call = build.ask(x)
                nodes = history | {call.e: s.sigma / s.a}
                base = build.step(s.t, self._terms(base, nodes, t, s), inner=True) if history else x
        return build.build()

    def _terms(self, base: Vector, nodes: dict[Vector, float], t: Level, s: Level) -> dict[Vector, float]:
        start, length = t.sigma / t.a, s.sigma / s.a - t.sigma / t.a
        weights = lagrange_weights([(kappa - start) / length for kappa in nodes.values()], 0.0)
        return {base: s.a / t.a} | {e: s.a * length * w for e, w in zip(nodes, weights, strict=True)}


SOLVERS = {"abm-3": Listed(AdamsMoulton, "Hairer et al. 1993, Adams–Bashforth–Moulton", "n", "smooth models")}
