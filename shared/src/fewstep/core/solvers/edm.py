"""EDM's generalised sampler: Euler or a two-stage Runge-Kutta rule in the time of any noise schedule."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fewstep.core.builder import Call, PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, levels
from fewstep.core.solvers.first_order import first_order_step
from fewstep.core.solvers.heun import Churn

SCHEDULES, SCALINGS = ("linear", "vp", "ve", "path"), ("none", "vp", "path")


class _Point(NamedTuple):
    """A time u of the frame A(u)·x0 + S(u)·eps in which steps are straight, and the path's level there."""

    u: float
    a: float
    sigma: float
    level: Level

    @property
    def scale(self) -> float:
        """Frame state divided by the path's z."""
        return self.sigma / self.level.sigma if self.level.sigma else self.a / self.level.a


@dataclass(frozen=True)
class _Frame:
    """A noise schedule kappa(u) with a scaling s(u), or the path's own: A = s, S = s·kappa."""

    schedule: str
    scaling: str
    beta_d: float
    beta_min: float
    path: Path

    def at(self, level: Level) -> _Point:
        """The frame's point with the noise level of the path's."""
        if self.schedule == "path":
            return _Point(level.t, level.a, level.sigma, level)
        kappa = level.sigma / level.a
        a = self._scale(kappa)
        return _Point(self._time(kappa), a, a * kappa, level)

    def at_time(self, u: float) -> _Point:
        """The frame's point at its time u."""
        t = u
        if self.schedule != "path":
            t = self.path.time_at(-math.log(self._kappa(u)))
        a, _, sigma = self.path.coefficients(t)
        return self.at(Level(t, a, sigma))._replace(u=u)

    def rates(self, point: _Point) -> tuple[float, float]:
        """(dA/du, dS/du)."""
        if self.schedule == "path":
            da, _, dsigma = self.path.derivatives(point.u)
            return da, dsigma
        kappa = point.sigma / point.a
        slope = self._slope(point.u, kappa)
        scale = self._scale(kappa)
        fall = -kappa * slope * scale**3 if self.scaling == "vp" else 0.0
        return fall, scale * slope + fall * kappa

    def _scale(self, kappa: float) -> float:
        return 1.0 / math.hypot(1.0, kappa) if self.scaling == "vp" else 1.0

    def _time(self, kappa: float) -> float:
        if self.schedule == "vp" and kappa > 0.0:
            grown = 2.0 * math.log1p(kappa * kappa)
            return grown / (math.sqrt(self.beta_min**2 + self.beta_d * grown) + self.beta_min)
        return kappa * kappa if self.schedule == "ve" else kappa

    def _kappa(self, u: float) -> float:
        if self.schedule == "vp":
            return math.sqrt(math.expm1((0.5 * self.beta_d * u + self.beta_min) * u))
        return math.sqrt(u) if self.schedule == "ve" else u

    def _slope(self, u: float, kappa: float) -> float:
        if self.schedule == "vp":
            return 0.5 * (self.beta_min + self.beta_d * u) * (kappa + 1.0 / kappa)
        return 0.5 / kappa if self.schedule == "ve" else 1.0


@dataclass(frozen=True)
class EDMSampler(Solver):
    """Straight steps in the time u of a noise schedule kappa(u) with a scaling s(u), whatever the path is.

    The state s·z/a moves with d = (s·kappa)'/(s·kappa)·state + (s' − s·(s·kappa)'/(s·kappa))·D. From u to w,
    h = w − u,

        state' = state + alpha·h·d,      next = state + h·((1 − 1/(2·alpha))·d + d'/(2·alpha)),

    with d' at state'. The step to sigma = 0 is Euler's: N steps have 2N − 1 network calls, N at order 1.

    With the linear schedule, no scaling and alpha = 1 it is Heun's method (`heun`). Only there, or in the
    path's own frame if that is straight, is the last Euler step free of noise: others leave what the
    published sampler leaves. A step from a = 0 is a DDIM step where the frame has no finite time for it.

    Args:
        order: 2, or 1 for Euler.
        alpha: place of the second stage: 1 Heun, 2/3 Ralston, 1/2 midpoint.
        schedule: "linear" kappa = u; "vp" kappa² = e^(beta_d·u²/2 + beta_min·u) − 1; "ve" kappa² = u; "path"
            the path's own time and scaling.
        scaling: "none", or "vp" s = 1/sqrt(1 + kappa²); "path" goes with the schedule "path".
        beta_d: of the schedule "vp"; `grids.edm.vp_betas` finds both for a range of noise levels.
        beta_min: of the schedule "vp"; a fitted one may be a little below 0.
        churn: strength of the noise that is added before each step (S_churn); 0 is deterministic.
        churn_min: churn only where sigma/a is at least this (S_min).
        churn_max: and at most this (S_max).
        noise_scale: factor on the added noise (S_noise).

    Raises:
        ValueError: if an option is out of range.

    Reference: Karras, Aittala, Aila and Laine 2022 (EDM), equation 4, algorithm 3 (appendix D.2), table 1.
    """

    order: int = 2
    alpha: float = 1.0
    schedule: str = "linear"
    scaling: str = "none"
    beta_d: float = 19.9
    beta_min: float = 0.1
    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    noise_scale: float = 1.0
    name = "edm"

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, not {self.order}")
        if not 0.0 < self.alpha <= 1.0:
            raise ValueError(f"alpha must lie in (0, 1], not {self.alpha}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if self.scaling not in SCALINGS or (self.scaling == "path") != (self.schedule == "path"):
            raise ValueError(
                f"scaling must be 'none' or 'vp', and 'path' for the schedule 'path', not {self.scaling!r} "
                f"for {self.schedule!r}"
            )
        if not (self.beta_d > 0.0 and math.isfinite(self.beta_d + self.beta_min)):
            raise ValueError(
                f"beta_d must be positive and beta_min finite, they are {self.beta_d} and {self.beta_min}"
            )
        self._churn()  # raises where an option is wrong

    def _churn(self) -> Churn:
        return Churn(self.churn, self.churn_min, self.churn_max, self.noise_scale)

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        frame = _Frame(self.schedule, self.scaling, self.beta_d, self.beta_min, path)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        for t, s in itertools.pairwise(points):
            x, raised = self._churn().raised(build, x, t, len(points) - 1)
            if raised.a == 0.0 and (self.schedule != "path" or s.sigma == 0.0):
                x = first_order_step(build, x, build.ask(x), raised, s)
            else:
                x = self._step(build, frame, x, frame.at(raised), frame.at(s))
        return build.build()

    def _step(self, build: PlanBuilder, frame: _Frame, x: Vector, u: _Point, w: _Point) -> Vector:
        h = w.u - u.u
        first = _slope_terms(frame, x, build.ask(x), u)
        if self.order == 1 or w.level.sigma == 0.0:
            return build.step(w.level.t, _moved(x, u, w, [(h, first)]))
        middle = w if self.alpha == 1.0 else frame.at_time(u.u + self.alpha * h)
        guess = build.step(middle.level.t, _moved(x, u, middle, [(self.alpha * h, first)]), inner=True)
        second = _slope_terms(frame, guess, build.ask(guess), middle)
        late = 0.5 / self.alpha
        return build.step(w.level.t, _moved(x, u, w, [(h * (1.0 - late), first), (h * late, second)]))


def _slope_terms(frame: _Frame, x: Vector, call: Call, at: _Point) -> dict[Vector, float]:
    """The frame's slope d in the path's state and the denoised sample."""
    da, dsigma = frame.rates(at)
    growth = dsigma / at.sigma
    return {x: growth * at.scale, call.d: da - at.a * growth}


def _moved(
    x: Vector, start: _Point, end: _Point, slopes: Sequence[tuple[float, dict[Vector, float]]]
) -> dict[Vector, float]:
    """The path's state at the end: start state plus weighted slopes, all in the frame."""
    terms = {x: start.scale / end.scale}
    for weight, slope in slopes:
        for vector, value in slope.items():
            terms[vector] = terms.get(vector, 0.0) + weight * value / end.scale
    return terms


SOLVERS = {
    "edm": Listed(EDMSampler, "Karras et al. 2022, EDM", "2n − 1", "comparing schedules, scalings and rules"),
}
