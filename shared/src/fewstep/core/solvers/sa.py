"""SA-Solver: stochastic Adams predictor and corrector for the reverse SDE with a noise level of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from fewstep.core.builder import Call, Vector
from fewstep.core.solvers.base import Listed, Node, check_choice
from fewstep.core.solvers.dpm_step import FORMS, sde_spread, value
from fewstep.core.solvers.predictor_corrector import PredictorCorrector, Span, Update, rule_weights

PUBLISHED_INTERVAL = (0.571, 5.112)
"""sigma/a at t = 200 and t = 800 of Stable Diffusion's table, between which the published sampler draws."""


@dataclass(frozen=True)
class SASolver(PredictorCorrector):
    """SA-Solver from time t to s, with lam = log(a/sigma), h = lam_s − lam_t and H = (1 + tau²)·h:

    data   z_s = sigma_s/sigma_t·e^(−tau²·h)·z_t + a_s·H·sum_j w_j·x0_j + sigma_s·sqrt(1 − e^(−2·tau²·h))·n,
    noise  z_s = a_s/a_t·z_t − (1 + tau²)·sigma_s·h·sum_j w_j·eps_j + tau·sigma_s·sqrt(e^(2h) − 1)·n,

    the w_j integrals of polynomials against the exponential at z = −H and z = +h (`rule_weights`). The
    corrector makes the same step with the same draw n and the value at its end. tau = 0 is the
    probability-flow ODE, tau = 1 the reverse SDE. A step from a = 0 or to sigma = 0 has order 1.

    Args:
        predictor_order: values of the predictor, 1 to 4.
        corrector_order: values of the corrector, that at the end of the step among them, 1 to 4; 0 for none.
        tau: amount of noise, a number that holds inside `interval`, or a function of sigma/a at the start of
            a step that replaces both.
        interval: (low, high), the range of sigma/a in which the number `tau` holds; outside it is 0.
        form: "data", which the authors advise, or "noise", which is unstable with few steps.
        variant: "official", as in the published code, where rules of two values in data form have the simpler
            S = 1/2 of "bh1"; or "exact".
        lower_order_final: let the last steps have predictor orders …, 2, 1 and corrector orders …, 3, 2.

    Raises:
        ValueError: if an option is out of range.

    Reference: Xue et al. 2023 (SA-Solver), equations 15 and 18; appendix A.2.4 on the two forms.
    """

    predictor_order: int = 2
    corrector_order: int = 2
    tau: float | Callable[[float], float] = 1.0
    interval: tuple[float, float] = PUBLISHED_INTERVAL
    form: str = "data"
    variant: str = "official"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        if self.predictor_order not in range(1, 5):
            raise ValueError(f"predictor_order must be 1, 2, 3 or 4, not {self.predictor_order}")
        if self.corrector_order not in range(5):
            raise ValueError(f"corrector_order must be 0, 1, 2, 3 or 4, not {self.corrector_order}")
        if not callable(self.tau):
            _check_tau(self.tau)
        low, high = self.interval
        if not 0.0 <= low <= high:
            raise ValueError(f"interval must be (low, high) with 0 <= low <= high, not {self.interval}")
        check_choice("form", self.form, FORMS)
        check_choice("variant", self.variant, ("official", "exact"))

    @property
    def name(self) -> str:
        return "sa-solver"

    @property
    def order(self) -> int:
        """Of the ODE, tau = 0; draws limit a path to order 1."""
        if self.corrector_order == 0:
            return min(self.predictor_order, 2)
        return min(self.corrector_order, self.predictor_order + 1, 2 if self.lower_order_final else 3)

    def predict(self, span: Span, nodes: list[Node]) -> Update:
        left = span.steps - span.index if self.lower_order_final else self.predictor_order
        tau = self._tau(span)
        keep = span.s.a / span.t.a
        if self.form == "data":
            keep = span.s.sigma / span.t.sigma * math.exp(-(tau**2) * span.h)
        weights = self._weights(span, nodes[: min(self.predictor_order, left)])
        return Update(keep, weights, sde_spread(self.form, tau**2, span.s, span.h))

    def correct(self, span: Span, nodes: list[Node]) -> dict[Vector, float]:
        left = span.steps - span.index + 1 if self.lower_order_final else self.corrector_order
        count = min(self.corrector_order, left)
        return self._weights(span, nodes[:count]) if count else {}

    def _leap(self, span: Span, call: Call) -> Update:
        if self._tau(span) == 0.0:
            return super()._leap(span, call)
        return Update(0.0, {call.d: span.s.a}, span.s.sigma)

    def _weights(self, span: Span, nodes: list[Node]) -> dict[Vector, float]:
        more = 1.0 + self._tau(span) ** 2
        data = self.form == "data"
        length, z = (span.s.a, -more * span.h) if data else (-span.s.sigma, span.h)
        positions = [span.position(node) for node in nodes]
        rule = "bh1" if data and self.variant == "official" else "vary"
        found = rule_weights(positions, z, rule)
        return {
            value(self.form, node.call): more * span.h * length * w
            for node, w in zip(nodes, found, strict=True)
        }

    def _tau(self, span: Span) -> float:
        kappa = span.t.sigma / span.t.a if span.t.a > 0.0 else math.inf
        if callable(self.tau):
            return _check_tau(self.tau(kappa))
        return self.tau if self.interval[0] <= kappa <= self.interval[1] else 0.0


def _check_tau(tau: float) -> float:
    if not (math.isfinite(tau) and tau >= 0.0):
        raise ValueError(f"tau must be at least 0, not {tau}")
    return tau


SOLVERS = {
    "sa-solver": Listed(SASolver, "Xue et al. 2023, SA-Solver", "n", "15 calls on, draws noise"),
}
