"""Multistep predictor–corrector pairs with one network call a step, as plans of one row a step."""

import itertools
import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from fewstep.core.builder import Call, PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Node, Solver, levels
from fewstep.core.solvers.exponential import lagrange_weights, phi

RULES = ("bh1", "bh2", "vary")


class Update(NamedTuple):
    """z_s = keep·z_t + sum_j weights_j·value_j + noise·w."""

    keep: float
    weights: dict[Vector, float]
    noise: float = 0.0


class Span(NamedTuple):
    """One step of a grid: number `index` of `steps`, from level t to the cleaner level s.

    `start` is lam = log(a/sigma) at t, `h` the length in lam: infinite from pure noise and to the clean end.
    """

    index: int
    steps: int
    t: Level
    s: Level
    start: float
    h: float

    def position(self, node: Node) -> float:
        """Where a network call lies: 0 at the start of the step, 1 at its end, negative before it."""
        return (node.half_log_snr - self.start) / self.h


class PredictorCorrector(Solver):
    """A multistep method that makes each step twice, with one network call.

    From the corrected state c_k the predictor goes to p_{k+1} = A·c_k + sum_j u_j·m_j, the network is asked
    there for m_{k+1}, and the corrector makes the same step again with that value,
    c_{k+1} = A·c_k + sum_j v_j·m_j + v·m_{k+1}. The difference of the two has no state in it, so that

        p_{k+2} = A'·p_{k+1} + sum_j (A'·(v_j − u_j) + u'_j)·m_j + (A'·v + u')·m_{k+1}

    is one row: corrected states need not exist, and a corrector on the predictor's values and the new one
    costs one multiply-add a step. The states that `on_step` sees are the predicted ones, at which the network
    is asked. The last step has no corrector, since its end is not asked.

    Reference: Zhao et al. 2023 (UniPC), section 3, whose algorithms keep the corrected states.
    """

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        lams = [point.half_log_snr for point in points]
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        nodes: list[Node] = []  # newest first; a call at pure noise has no place on the lam axis
        last: tuple[Span, Update] | None = None
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            span = Span(i, len(points) - 1, t, s, lams[i], lams[i + 1] - lams[i])
            call = build.ask(x)
            if math.isfinite(span.start):
                nodes.insert(0, Node(call, span.start))
            update = self.predict(span, nodes) if math.isfinite(span.h) else self._leap(span, call)
            terms = {x: update.keep} | update.weights
            for vector, change in self._change(last, nodes).items():
                terms[vector] = terms.get(vector, 0.0) + update.keep * change
            x = build.step(span.s.t, terms, noise=update.noise)
            last = span, update
        return build.build()

    def _change(self, last: tuple[Span, Update] | None, nodes: list[Node]) -> dict[Vector, float]:
        """The corrected state minus the predicted one, at the newest call."""
        if last is None or not math.isfinite(last[0].h):
            return {}
        span, update = last
        corrected = self.correct(span, nodes)
        if not corrected:
            return {}
        vectors = update.weights | corrected
        return {v: corrected.get(v, 0.0) - update.weights.get(v, 0.0) for v in vectors}

    @abstractmethod
    def predict(self, span: Span, nodes: list[Node]) -> Update:
        """The step of finite length from what is known at its start, nodes[0] newest."""

    @abstractmethod
    def correct(self, span: Span, nodes: list[Node]) -> dict[Vector, float]:
        """Weights of the same step with the value at its end, nodes[0], or nothing for no corrector."""

    def _leap(self, span: Span, call: Call) -> Update:
        """The step of infinite length, with the newest value alone."""
        keep = span.s.sigma / span.t.sigma
        return Update(keep, {call.d: span.s.a - keep * span.t.a})


def rule_weights(positions: Sequence[float], z: float, rule: str) -> list[float]:
    """Weights of int_0^1 e^{(1 − u)·z}·m(u) du from the values of m at the positions.

    With one or with three and more values they are those of `lagrange_weights`. With two, at 0 and r, the
    published code takes w_r = S/r, w_0 = phi_1(z) − S/r with a simpler S than the exact phi_2(z):

        "bh1": S = 1/2,     "bh2": S = phi_1(z)/2,     "vary": S = phi_2(z).

    They differ in order 1 of z, which leaves the order of the method as it is.

    Args:
        positions: as in `lagrange_weights`; one of them is 0 or there is only one.
        z: −h in data form, +h in noise form.
        rule: "bh1", "bh2" or "vary".

    Returns:
        The weights, in the order of the positions.

    Reference: Zhao et al. 2023 (UniPC), the two choices of B(h).
    """
    if len(positions) != 2 or rule == "vary":
        return lagrange_weights(positions, z)
    first = phi(1, z)
    slope = 0.5 if rule == "bh1" else 0.5 * first
    end = positions.index(0.0)
    outer = slope / positions[1 - end]
    return [first - outer, outer] if end == 0 else [outer, first - outer]
