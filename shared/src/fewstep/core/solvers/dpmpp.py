"""DPM-Solver++: multistep exponential integrators in the denoised sample, orders 1 to 3, ODE and SDE."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fewstep.core.builder import PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Node, Solver, levels
from fewstep.core.solvers.exponential import phi
from fewstep.core.solvers.first_order import first_order_step


@dataclass(frozen=True)
class DPMSolverPP(Solver):
    """Multistep DPM-Solver++ from time t to s, with lam = log(a/sigma) and h = lam_s − lam_t:

    z_s = sigma_s/sigma_t·e^(−eta·h)·z_t + a_s·H·(phi_1·m0 + c·D1 + c'·D2) + sigma_s·sqrt(1 − e^(−2·eta·h))·w,

    H = (1 + eta)·h, phi_k = phi_k(−H), D1 and D2 the divided differences of the denoised samples m0, m1, m2
    (newest first). Second order: c = phi_1/2 ("midpoint") or phi_2 ("taylor"). Third order: c = phi_2 and
    c' = 2·phi_3 ("exact") or phi_3 ("official", as in the published code, which leaves an error of order 2).
    The first steps have lower order; the step to sigma = 0 is z = a_s·m0 and a step from a = 0 has order 1.

    Args:
        order: 1, 2 or 3.
        correction: second-order rule, "midpoint" or "taylor".
        variant: third-order rule, "official" or "exact".
        eta: 0 the probability-flow ODE; 1 the SDE form; values between are allowed.
        lower_order_below: with fewer steps than this the last steps have orders …, 2, 1: more stable.
            10 is the rule of the published code, 15 that of diffusers; 0 switches it off.

    Raises:
        ValueError: if an option is out of range.

    Reference: Lu et al. 2022 (DPM-Solver++), algorithm 2, sections 4 and 5, appendix B.
    """

    order: int = 2
    correction: str = "midpoint"
    variant: str = "official"
    eta: float = 0.0
    lower_order_below: int = 10

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, not {self.order}")
        if self.correction not in ("midpoint", "taylor"):
            raise ValueError(f"correction must be 'midpoint' or 'taylor', not {self.correction!r}")
        if self.variant not in ("official", "exact"):
            raise ValueError(f"variant must be 'official' or 'exact', not {self.variant!r}")
        if not (math.isfinite(self.eta) and self.eta >= 0.0):
            raise ValueError(f"eta must be at least 0, not {self.eta}")
        if self.lower_order_below < 0:
            raise ValueError(f"lower_order_below must not be negative, it is {self.lower_order_below}")

    @property
    def name(self) -> str:
        return f"dpmpp-{self.order}{'m' if self.order > 1 else ''}{' sde' if self.eta else ''}"

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        steps = len(points) - 1
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        history: list[Node] = []
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            history.insert(0, Node(build.ask(x), t.half_log_snr))
            left = steps - i if steps < self.lower_order_below else self.order
            x = self._step(build, x, history[: min(self.order, left)], t, s)
            del history[self.order - 1 :]
        return build.build()

    def _step(self, build: PlanBuilder, x: Vector, history: list[Node], t: Level, s: Level) -> Vector:
        h = s.half_log_snr - t.half_log_snr
        if not math.isfinite(h) and self.eta == 0.0:
            return first_order_step(build, x, history[0].call, t, s)
        ratio = math.exp(-h) if math.isfinite(h) else 0.0
        keep = s.sigma / t.sigma * ratio**self.eta
        spread = s.sigma * math.sqrt(1.0 - ratio ** (2.0 * self.eta))
        if not math.isfinite(h):
            return build.step(s.t, {x: keep, history[0].call.d: s.a}, noise=spread)
        whole = (1.0 + self.eta) * h
        weights = [
            s.a * whole * w
            for w in self._weights([n for n in history if math.isfinite(n.half_log_snr)], h, whole)
        ]
        terms = {x: keep} | {node.call.d: w for node, w in zip(history, weights, strict=False)}
        return build.step(s.t, terms, noise=spread)

    def _weights(self, nodes: list[Node], h: float, whole: float) -> list[float]:
        """Weights of m0, m1, m2 for the integral over the step, divided by its length."""
        first = phi(1, -whole)
        gaps = [(a.half_log_snr - b.half_log_snr) / h for a, b in itertools.pairwise(nodes)]
        if not gaps:
            return [first]
        if len(gaps) == 1:
            slope = (0.5 * first if self.correction == "midpoint" else phi(2, -whole)) / gaps[0]
            return [first + slope, -slope]
        r0, r1 = gaps
        third = phi(3, -whole) * (2.0 if self.variant == "exact" else 1.0)
        # D1 = d0 + r0/(r0+r1)·(d0 − d1), D2 = (d0 − d1)/(r0+r1), d0 = (m0 − m1)/r0, d1 = (m1 − m2)/r1
        bend = (phi(2, -whole) * r0 + third) / (r0 + r1)
        d0, d1 = phi(2, -whole) + bend, -bend
        return [first + d0 / r0, -d0 / r0 + d1 / r1, -d1 / r1]


SOLVERS = {
    "dpmpp-1": Listed(
        partial(DPMSolverPP, order=1), "Lu et al. 2022, DPM-Solver++", "n", "DDIM in data form"
    ),
    "dpmpp-2m": Listed(
        partial(DPMSolverPP, order=2),
        "Lu et al. 2022, DPM-Solver++(2M)",
        "n",
        "the safe default",
    ),
    "dpmpp-3m": Listed(
        partial(DPMSolverPP, order=3),
        "Lu et al. 2022, DPM-Solver++(3M)",
        "n",
        "unguided, 15 calls on",
    ),
}
