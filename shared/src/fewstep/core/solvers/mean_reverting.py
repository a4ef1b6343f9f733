"""MR-Sampler: DPM-Solver and DPM-Solver++ on z = x − b·y, for mean-reverting diffusion."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch

from fewstep.core.builder import Call, PlanBuilder, Vector
from fewstep.core.paths import MeanReverting, Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Node, Solver, check_choice, levels
from fewstep.core.solvers.dpm_step import FORMS, exponential_step, linear_step, sde_spread
from fewstep.core.solvers.ir_sde import with_more_y


@dataclass(frozen=True)
class MRSampler(Solver):
    """Multistep exponential integrator of the mean-reverting SDE or its ODE; orders 1 to 3.

    On z = x − b·y the mean-reverting path is z = a·x0 + sigma·eps like any other, and with
    lam = log(a/sigma) the steps are those of DPM-Solver (noise form) and DPM-Solver++ (data form), whose
    formulas stand at `DPMSolver`. A network that predicts the velocity a·lambda·eps − (sigma/lambda)·(x0 − y)
    is served by either form through its prediction.

    Args:
        solver_order: number of network values in a step: 1, 2 or 3, for the SDE 1 or 2.
        equation: "ode" or "sde".
        form: "data" interpolates x0, "noise" eps.
        variant: below ten steps the published code lowers the order to 1 one step before the last and makes
            the last step with full order again, and its third order has half the weight of the second
            difference ("official"). "exact" lowers the order in the last steps and has the right weight.
        interp: between the times of a table, "consistent" interpolates log a and lets sigma and lam follow.
            "official" interpolates a, sigma and lam separately and linearly, as the published code does; they
            do not fit each other then, which moves the result of the data form by a few thousandths. It
            takes the network for a noise predictor, and wants `MeanReverting(subtract_first=False)`.

    Raises:
        ValueError: if an option is out of range, or (when compiled) the path has no such table.

    Reference: Li et al. 2025 (MR-Sampler), propositions 1 to 4 and algorithms 1 to 4.
    """

    solver_order: int = 2
    equation: str = "ode"
    form: str = "data"
    variant: str = "official"
    interp: str = "consistent"

    def __post_init__(self) -> None:
        check_choice("equation", self.equation, ("ode", "sde"))
        allowed = (1, 2, 3) if self.equation == "ode" else (1, 2)
        if self.solver_order not in allowed:
            raise ValueError(
                f"solver_order must be one of {allowed} for the {self.equation}, not {self.solver_order}"
            )
        check_choice("form", self.form, FORMS)
        check_choice("variant", self.variant, ("official", "exact"))
        check_choice("interp", self.interp, ("consistent", "official"))

    @property
    def name(self) -> str:
        return f"mrs-{'sde-' if self.equation == 'sde' else ''}{self.solver_order}"

    @property
    def order(self) -> int:
        return min(self.solver_order, 2)

    @property
    def _eta(self) -> float:
        return 1.0 if self.equation == "sde" else 0.0

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        if self.interp == "official":
            return self._official(path, points)
        steps = len(points) - 1
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        history: list[Node] = []
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            history.insert(0, Node(build.ask(x), t.half_log_snr))
            used = history[: self._most(i, steps)]
            nodes = [node for node in used if math.isfinite(node.half_log_snr)] or used[:1]
            x = exponential_step(build, x, t, s, nodes, self.form, self._rule(len(nodes)), self._eta)
            del history[self.solver_order - 1 :]
        return build.build()

    def _rule(self, count: int) -> str:
        return self.variant if count == 3 else "taylor"

    def _most(self, i: int, steps: int) -> int:
        """The highest order that step i may have."""
        if steps >= 10:
            return self.solver_order
        if self.variant == "exact":
            return min(self.solver_order, steps - i)
        return self.solver_order if i == steps - 1 else max(1, min(self.solver_order, steps - i - 1))

    def _official(self, path: Path, points: Sequence[Level]) -> Plan:
        tables = _Tables.of(path)
        steps = len(points) - 1
        build = PlanBuilder(tables, self.name)
        x = build.start(points[0].t)
        history: list[_Value] = []
        extra: dict[int, float] = {}
        for i, (t, s) in enumerate(itertools.pairwise([tables.level(point.t) for point in points])):
            history.insert(0, _Value(x, build.ask(x), t))
            used = history[: self._most(i, steps)]
            h = s.lam - t.lam
            keep, weights = linear_step(
                self.form, t, s, h, [(v.at.lam - t.lam) / h for v in used], self._rule(len(used)), self._eta
            )
            terms: dict[Vector, float] = {x: keep}
            for value, weight in zip(used, weights, strict=True):
                scale = 1.0
                if self.form == "data":  # x0 = (z − sigma·eps)/a, with the table's own a and sigma
                    terms[value.state] = terms.get(value.state, 0.0) + weight / value.at.a
                    scale = -value.at.sigma / value.at.a
                terms[value.call.e] = scale * weight
            noise = sde_spread(self.form, self._eta, Level(s.t, s.a, s.sigma), h)
            x = build.step(s.t, terms, noise=noise)
            if self.form == "data" and self._eta:  # published with a_s/a_t·e^(−2h) for the equal keep
                extra[x.index] = (keep - s.a / t.a * math.exp(-2.0 * h)) * (1.0 - t.a)
            del history[self.solver_order - 1 :]
        return replace(with_more_y(build.build(), extra), path=path)


class _Separate(NamedTuple):
    """A level whose lam is not log(a/sigma)."""

    t: float
    a: float
    sigma: float
    lam: float


class _Value(NamedTuple):
    """A remembered call, the state at which it was made and its level."""

    state: Vector
    call: Call
    at: _Separate


@dataclass(frozen=True)
class _Tables(Path):
    """A mean-reverting path whose a and sigma are linear between its times."""

    inner: MeanReverting
    t_clean = 0.0
    t_min = 1.0
    uses_y = True

    @staticmethod
    def of(path: Path) -> "_Tables":
        """The tables of a path that has them."""
        if not isinstance(path, MeanReverting) or path.subtract_first:
            raise ValueError(
                "interp 'official' needs MeanReverting(subtract_first=False), whose table has sigma > 0 at "
                f"time 0; the path is {path}"
            )
        return _Tables(path)

    @property
    def t_max(self) -> float:
        return self.inner.t_max

    def evaluate(self, t):
        low, weight = self._place(t)
        before, after = self.inner.evaluate(low), self.inner.evaluate(low + 1.0)
        a, sigma = (torch.lerp(before[k], after[k], weight) for k in (0, 2))
        return a, 1.0 - a, sigma

    def level(self, t: float) -> _Separate:
        """a, sigma and lam at a time, each interpolated by itself."""
        low, weight = self._place(torch.tensor(t))
        lam = torch.lerp(self.inner.half_log_snr_at(low), self.inner.half_log_snr_at(low + 1.0), weight)
        a, _, sigma = self.coefficients(t)
        return _Separate(t, a, sigma, float(lam))

    def _place(self, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        low = t.double().floor().clamp(0.0, self.t_max - 1.0)
        return low, t.double() - low


_PAPER = "Li et al. 2025, MR-Sampler"
SOLVERS = {
    "mrs-1": Listed(partial(MRSampler, solver_order=1), _PAPER, "n", "mean-reverting paths, robust"),
    "mrs-2": Listed(MRSampler, _PAPER, "n", "mean-reverting paths in 5 to 10 calls"),
    "mrs-3": Listed(partial(MRSampler, solver_order=3), _PAPER, "n", "mean-reverting paths, 10 calls on"),
    "mrs-sde-1": Listed(
        partial(MRSampler, solver_order=1, equation="sde"), _PAPER, "n", "mean-reverting paths, draws noise"
    ),
    "mrs-sde-2": Listed(
        partial(MRSampler, equation="sde"), _PAPER, "n", "mean-reverting paths, draws noise, 10 calls on"
    ),
}
