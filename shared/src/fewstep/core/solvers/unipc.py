"""UniPC: one multistep exponential predictor and one corrector of the next order, orders 1 to 4."""

import math
from dataclasses import dataclass
from functools import partial

import numpy

from fewstep.core.builder import Vector
from fewstep.core.solvers.base import Listed, Node, check_choice
from fewstep.core.solvers.dpm_step import FORMS, value
from fewstep.core.solvers.exponential import phi
from fewstep.core.solvers.predictor_corrector import (
    RULES,
    PredictorCorrector,
    Span,
    Update,
    rule_weights,
)


@dataclass(frozen=True)
class UniPC(PredictorCorrector):
    """UniPC from time t to s, with lam = log(a/sigma), h = lam_s − lam_t and r_j = (lam_j − lam_t)/h:

        data form   z_s = sigma_s/sigma_t·z_t + a_s·h·sum_j w_j·x0_j,    weights at z = −h,
        noise form  z_s = a_s/a_t·z_t − sigma_s·h·sum_j w_j·eps_j,       weights at z = +h.

    The predictor takes the newest p values, the corrector the same ones and that at the end of the step
    (r = 1); the value is not computed again at the corrected state. The weights are the exact integrals of
    the polynomial through the values, except that with two values "bh1" and "bh2" have the published simpler
    ones (`rule_weights`). The first steps have lower orders; a step from a = 0 or to sigma = 0 has order 1.

    Args:
        solver_order: p, 1 to 4.
        variant: "bh1", "bh2" or "vary".
        form: "data" or "noise", what is interpolated.
        corrector: "unified", with the weights of the variant; "exact", with the exact integrals whatever the
            variant; "official", as in the published code, which differs for "vary" only: there the new value
            gets a wrong weight from p = 2 on, which leaves order 1; or "none".
        lower_order_final: let the last steps have orders …, 2, 1, which is more stable.

    Raises:
        ValueError: if an option is out of range.

    Reference: Zhao et al. 2023 (UniPC), section 3.
    """

    solver_order: int = 2
    variant: str = "bh2"
    form: str = "data"
    corrector: str = "unified"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if self.solver_order not in range(1, 5):
            raise ValueError(f"solver_order must be 1, 2, 3 or 4, not {self.solver_order}")
        check_choice("variant", self.variant, RULES)
        check_choice("form", self.form, FORMS)
        check_choice("corrector", self.corrector, ("unified", "exact", "official", "none"))

    @property
    def name(self) -> str:
        return f"{'unip' if self.corrector == 'none' else 'unipc'}-{self.solver_order}"

    @property
    def order(self) -> int:
        """A last or first step of order 1 limits the chain: 2 with lower_order_final, 3 without."""
        if self.corrector == "none":
            return min(self.solver_order, 2)
        if self.corrector == "official" and self.variant == "vary" and self.solver_order > 1:
            return 1
        return min(self.solver_order + 1, 2 if self.lower_order_final else 3)

    def predict(self, span: Span, nodes: list[Node]) -> Update:
        used = nodes[: self._count(span)]
        weights = rule_weights([span.position(node) for node in used], self._z(span), self.variant)
        keep = span.s.sigma / span.t.sigma if self.form == "data" else span.s.a / span.t.a
        return Update(keep, self._terms(span, used, weights))

    def correct(self, span: Span, nodes: list[Node]) -> dict[Vector, float]:
        if self.corrector == "none":
            return {}
        used = [*nodes[1 : 1 + self._count(span)], nodes[0]]
        positions = [span.position(node) for node in used[:-1]] + [1.0]
        if self.corrector == "official" and self.variant == "vary":
            weights = _published_vary(positions, self._z(span))
        else:
            rule = "vary" if self.corrector == "exact" else self.variant
            weights = rule_weights(positions, self._z(span), rule)
        return self._terms(span, used, weights)

    def _count(self, span: Span) -> int:
        left = span.steps - span.index if self.lower_order_final else self.solver_order
        return min(self.solver_order, left)

    def _z(self, span: Span) -> float:
        return -span.h if self.form == "data" else span.h

    def _terms(self, span: Span, nodes: list[Node], weights: list[float]) -> dict[Vector, float]:
        length = span.h * (span.s.a if self.form == "data" else -span.s.sigma)
        return {value(self.form, node.call): length * w for node, w in zip(nodes, weights, strict=True)}


def _published_vary(positions: list[float], z: float) -> list[float]:
    """The corrector weights of the published "vary_coeff", with what is wrong in them.

    Right would be sum_k phi_{k+2}(z)·V_kj/r_j over all rows k of the inverse V of (r_j^k/(k+1)!). Published
    is that sum without its last row for the old values, and for the new one phi_{K+1} times the last row but
    one.
    """
    outer = positions[1:]
    count = len(outer)
    powers = [[r**k / math.factorial(k + 1) for k in range(count)] for r in outer]
    inverse = numpy.linalg.inv(numpy.array(powers))
    slopes = [sum(phi(k + 2, z) * inverse[k, j] for k in range(count - 1)) for j in range(count - 1)]
    slopes.append(phi(count + 1, z) * inverse[max(count - 2, 0), -1])
    found = [float(slope) / r for slope, r in zip(slopes, outer, strict=True)]
    return [phi(1, z) - sum(found), *found]


_PAPER = "Zhao et al. 2023, UniPC"
SOLVERS = {
    "unipc-1": Listed(partial(UniPC, solver_order=1), _PAPER, "n", "DDIM with a corrector"),
    "unipc-2": Listed(partial(UniPC, solver_order=2), _PAPER, "n", "5 to 10 calls, also guided"),
    "unipc-3": Listed(partial(UniPC, solver_order=3), _PAPER, "n", "10 calls on, smooth problems"),
    "unipc-4": Listed(partial(UniPC, solver_order=4), _PAPER, "n", "many calls, very smooth problems"),
}
