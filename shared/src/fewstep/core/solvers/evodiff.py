"""EVODiff: second-order multistep whose weights are read off the samples."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.paths import Path
from fewstep.core.solvers.base import Ask, Listed, Report, StepwiseSolver, check_choice, levels

_MANY_STEPS = 20  # the published weight of the last correction changes above it


@dataclass(frozen=True)
class EVODiff(StepwiseSolver):
    """Entropy-aware variance-optimised inference, in ybar = z/a and kappa = sigma/a.

    From kappa_0 to kappa, with h = 1/kappa − 1/kappa_0, Euler's step e = (kappa/kappa_0)·ybar + kappa·h·m0,
    the network's answers m0, m1 and its answer m at the predicted state p:

        p = e + kappa·h/(2·r')·(m0 − rho1·m1),      next = e + kappa·h/(2·zeta)·B,
        B = (1 − eta)·r·(m − rho2·m0) − eta/r·(m0 − rho1·m1),  r = log(kappa_1/kappa_0)/log(kappa_0/kappa),

    where rho1, rho2, r', eta and zeta come from scalar products of the answers, one set for each sample and
    channel. The answer m serves the next step as m0, so a step costs one call; the first step is Euler's.

    The weights are heuristics that were tuned on EDM's noise levels: the method is of first order, depends on
    the noise levels themselves and not just on their ratios, and changes above 20 steps.

    Args:
        lower_order_final: end with the published extrapolated Euler step instead of one that asks the
            network once more at its end. A step to sigma = 0 only returns the last estimate; the step
            before it counts as the end then.
        over: what a scalar product sums over: the pixels of a "channel", or the whole "sample". Samples
            without pixels are always summed over as a whole.

    Raises:
        ValueError: if `over` is unknown.

    Reference: Li et al. 2025 (EVODiff), algorithm 1, in the form of the published demonstration for EDM.
    """

    lower_order_final: bool = True
    over: str = "channel"
    name = "evodiff"
    order = 1

    def __post_init__(self) -> None:
        check_choice("over", self.over, ("channel", "sample"))

    def integrate(
        self,
        ask: Ask,
        path: Path,
        grid: Sequence[float],
        z: Tensor,
        noise: Callable[[Tensor], Tensor],
        on_step: Report,
    ) -> Tensor:
        points = levels(path, grid)
        rule = _Rule([p.sigma / p.a if p.a > 0.0 else math.inf for p in points], self._axes(z))
        answers: list[Tensor] = []
        for i, (s, t) in enumerate(itertools.pairwise(points)):
            if i == rule.last or len(answers) == i:
                answers.append(ask(z, s.t))
            if i == rule.last:
                z = t.a * answers[-1]
            elif i == 0 or points[i - 1].a <= 0.0:  # no second answer, or one at an infinite noise level
                ratio = t.sigma / s.sigma
                z = ratio * z + (t.a - ratio * s.a) * answers[-1]
            elif i + 1 == rule.last and self.lower_order_final:
                z = t.a * rule.end(i, z / s.a, *answers[-2:])
            else:
                predicted = rule.predict(i, z / s.a, *answers[-2:])
                answers.append(ask(t.a * predicted.state, t.t))
                z = t.a * rule.correct(i, predicted, *answers[-3:])
            if not on_step(z, t.t, answers[-1]):
                return z
        return z

    def _axes(self, z: Tensor) -> tuple[int, ...]:
        return tuple(range(2 if self.over == "channel" and z.ndim > 2 else 1, z.ndim))


@dataclass(frozen=True)
class _Predicted:
    """The predicted state, and what the correction needs of the prediction."""

    state: Tensor
    euler: Tensor
    difference: Tensor  # m0 − rho1·m1
    spread: Tensor  # r'


class _Rule:
    """The published weights of a step, which goes from kappa[i] to kappa[i + 1]."""

    def __init__(self, kappa: list[float], axes: tuple[int, ...]) -> None:
        self.kappa, self.axes = kappa, axes
        self.last = len(kappa) - 1 - (kappa[-1] == 0.0)  # where the published grid would end

    def end(self, i: int, x: Tensor, m1: Tensor, m0: Tensor) -> Tensor:
        before, after = self.kappa[i : i + 2]
        ratio = after / before
        share = 1.0 - 0.5 * math.sqrt(ratio if ratio < 0.5 else ratio - 0.5)
        euler = ratio * x + (1.0 - ratio) * m0
        return (1.0 - math.sqrt(before * after)) * euler + 0.5 * (1.0 - ratio) * (m0 - share * m1)

    def predict(self, i: int, x: Tensor, m1: Tensor, m0: Tensor) -> _Predicted:
        ratio = self.kappa[i + 1] / self.kappa[i]
        gap = self._gap(i)
        rho = self._balance(i, self._projection(m0, m1))
        difference = m0 - rho * m1
        spread = (torch.sigmoid(0.25 * rho.abs()) * gap).clamp(0.25 * gap, 1.5 * gap)
        euler = ratio * x + (1.0 - ratio) * m0
        return _Predicted(euler + 0.5 * (1.0 - ratio) / spread * difference, euler, difference, spread)

    def correct(self, i: int, predicted: _Predicted, m1: Tensor, m0: Tensor, m: Tensor) -> Tensor:
        after = self.kappa[i + 1]
        h, gap = 1.0 / after - 1.0 / self.kappa[i], self._gap(i)
        newer = m - self._balance(i, self._projection(m, m0)) * m0
        older = predicted.difference
        slopes = older / (gap * h), newer * (gap / h)
        turn = self._projection(slopes[1] + slopes[0], slopes[1] - slopes[0])
        eta = 0.5 * torch.sigmoid(0.5 * turn.abs())
        blend = (1.0 - eta) * gap * newer - eta / gap * older
        rest = predicted.state - predicted.euler - 0.5 * after * h / predicted.spread * blend
        weight = (self._projection(rest, older) / (h * after)).abs() - 0.5
        if self.last > _MANY_STEPS:
            agreement = self._projection(m0, (m0 - m1) / h)
            ratio = after / self.kappa[i]
            weight = -weight * torch.sigmoid(agreement * (2.0 - ratio * ratio))
        return predicted.euler + 0.5 * after * h / torch.sigmoid(weight) * blend

    def _gap(self, i: int) -> float:
        """r: length of the step before in log kappa, divided by that of this one."""
        older, before, after = self.kappa[i - 1 : i + 2]
        return math.log(older / before) / math.log(before / after)

    def _balance(self, i: int, projection: Tensor) -> Tensor:
        """rho: from the ratio of the steps at high noise to the projection of the answers at low noise."""
        older, before, after = self.kappa[i - 1 : i + 2]
        elapsed = (after + self.kappa[self.last]) / (self.kappa[0] + self.kappa[self.last])
        weight = 0.5 * (1.0 - elapsed * elapsed)
        return (1.0 - weight) * math.sqrt(after / before / (before / older)) + weight * projection

    def _projection(self, of: Tensor, on: Tensor) -> Tensor:
        """<of, on>/<on, on>, between −2 and 2; 0 where `on` vanishes."""
        size = (on * on).sum(self.axes, keepdim=True)
        share = (of * on).sum(self.axes, keepdim=True) / size
        return torch.where(size > 0.0, share, 0.0).clamp(-2.0, 2.0)


SOLVERS = {
    "evodiff": Listed(EVODiff, "Li et al. 2025, EVODiff", "n", "images on EDM's noise levels"),
}
