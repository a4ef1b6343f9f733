"""Heavy-ball momentum on the exponential solvers in data form: UniPC and DPM-Solver++(2M)."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fewstep.core.builder import PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Node, Solver, check_choice, levels
from fewstep.core.solvers.dpm_step import linear_step
from fewstep.core.solvers.first_order import first_order_step
from fewstep.core.solvers.momentum import advance, blend
from fewstep.core.solvers.predictor_corrector import Span
from fewstep.core.solvers.unipc import UniPC


@dataclass(frozen=True)
class UniPCHeavyBall(Solver):
    """UniPC in data form whose predictor and corrector step along velocities,

    z_s = sigma_s/sigma_t·z_t + (a_s − sigma_s·a_t/sigma_t)·v,   v ← (1 − beta)·v + beta·sum_j w_j·x0_j,

    the w_j the weights of UniPC divided by their sum. Predictor and corrector have a velocity each, which
    starts as their first mean. beta = 1 is UniPC; smaller beta damps more and has order 1.

    Args:
        solver_order: values of the predictor, 1 to 4.
        variant: "bh1", "bh2" or "vary", as in `UniPC`.
        beta: weight of the newest mean in the velocity, in (0, 1].
        momentum: "exact" is the method above. "official" is the published code, which overwrites the
            predictor's velocity with its mean, so that beta does nothing there, and keeps the corrector's in
            units of x0/sigma, so that even a constant x0 is not reproduced.
        lower_order_final: let the last steps have orders …, 2, 1.

    Raises:
        ValueError: if an option is out of range.

    Reference: Wizadwongsa et al. 2024 (Diffusion Sampling with Momentum), heavy ball on UniPC.
    """

    solver_order: int = 2
    variant: str = "bh2"
    beta: float = 0.8
    momentum: str = "exact"
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        check_choice("momentum", self.momentum, ("exact", "official"))
        _check_beta(self.beta)
        _ = self._unipc  # checks the options that both share

    @property
    def name(self) -> str:
        return f"unipc-{self.solver_order}-hb"

    @property
    def order(self) -> int:
        return self._unipc.order if self.beta == 1.0 else 1

    @property
    def _unipc(self) -> UniPC:
        return UniPC(self.solver_order, self.variant, lower_order_final=self.lower_order_final)

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        unipc = self._unipc
        build = PlanBuilder(path, self.name)
        state = x = build.start(points[0].t)  # corrected and predicted
        nodes: list[Node] = []
        predicting: Vector | None = None
        correcting: Vector | None = None
        last: Span | None = None
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            start = t.half_log_snr
            span = Span(i, len(points) - 1, t, s, start, s.half_log_snr - start)
            call = build.ask(x)
            if math.isfinite(start):
                nodes.insert(0, Node(call, start))
            if last is not None and math.isfinite(last.h):
                keep, gain = advance("data", last.t, last.s)
                mean = _divided(unipc.correct(last, nodes), gain)
                correcting = blend(build, correcting, mean, self.beta, self._fade(points, i))
                x = build.step(t.t, {state: keep, correcting: gain}, inner=True)
            state, last = x, span
            if not math.isfinite(span.h):
                x = first_order_step(build, state, call, t, s)
                continue
            keep, gain = advance("data", t, s)
            mean = _divided(unipc.predict(span, nodes).weights, gain)
            if self.momentum == "exact":
                predicting = blend(build, predicting, mean, self.beta)
                mean = {predicting: 1.0}
            x = build.step(s.t, {state: keep} | {vector: gain * w for vector, w in mean.items()})
        return build.build()

    def _fade(self, points: Sequence[Level], i: int) -> float:
        """What the published units do to the old velocity of the corrector at points[i]."""
        return points[i].sigma / points[i - 1].sigma if self.momentum == "official" else 1.0


@dataclass(frozen=True)
class DPMSolverPPHeavyBall(Solver):
    """DPM-Solver++(2M) whose steps of order 2 go along a velocity, with lam = log(a/sigma):

    z_s = sigma_s/sigma_t·z_t + (a_s − sigma_s·a_t/sigma_t)·v,   v ← (1 − beta)·v + beta·(m0 + D1/2),

    m0 the newest x0 and D1 its divided difference over the step. Steps of order 1 (the first one, and as in
    `DPMSolverPP` the last one of few steps) leave v alone. beta = 1 is DPM-Solver++(2M).

    Args:
        beta: weight of the newest mean in the velocity, in (0, 1].
        lower_order_below: with fewer steps than this the last one has order 1; 0 switches it off.

    Raises:
        ValueError: if an option is out of range.

    Reference: Wizadwongsa et al. 2024 (Diffusion Sampling with Momentum), heavy ball on DPM-Solver++.
    """

    beta: float = 0.8
    lower_order_below: int = 15

    def __post_init__(self) -> None:
        _check_beta(self.beta)
        if self.lower_order_below < 0:
            raise ValueError(f"lower_order_below must not be negative, it is {self.lower_order_below}")

    @property
    def name(self) -> str:
        return "dpmpp-2m-hb"

    @property
    def order(self) -> int:
        return 2 if self.beta == 1.0 else 1

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        steps = len(points) - 1
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        before: Node | None = None
        velocity: Vector | None = None
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            here = Node(build.ask(x), t.half_log_snr)
            h = s.half_log_snr - here.half_log_snr
            last = i == steps - 1 and steps < self.lower_order_below
            if before is None or last or not math.isfinite(h):
                x = first_order_step(build, x, here.call, t, s)
            else:
                keep, gain = advance("data", t, s)
                gap = (before.half_log_snr - here.half_log_snr) / h
                _, weights = linear_step("data", t, s, h, [0.0, gap], "midpoint")
                mean = _divided(dict(zip((here.call.d, before.call.d), weights, strict=True)), gain)
                velocity = blend(build, velocity, mean, self.beta)
                x = build.step(s.t, {x: keep, velocity: gain})
            before = here if math.isfinite(here.half_log_snr) else None
        return build.build()


def _divided(weights: Mapping[Vector, float], gain: float) -> dict[Vector, float]:
    return {vector: w / gain for vector, w in weights.items()}


def _check_beta(beta: float) -> None:
    if not 0.0 < beta <= 1.0:
        raise ValueError(f"beta must be above 0 and at most 1, not {beta}")


_PAPER = "Wizadwongsa et al. 2024"
SOLVERS = {
    "unipc-hb": Listed(UniPCHeavyBall, f"{_PAPER}, UniPC with heavy ball", "n", "strong guidance"),
    "dpmpp-2m-hb": Listed(
        DPMSolverPPHeavyBall, f"{_PAPER}, DPM-Solver++(2M) with heavy ball", "n", "strong guidance"
    ),
}
