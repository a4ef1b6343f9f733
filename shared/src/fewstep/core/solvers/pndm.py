"""PNDM: pseudo numerical methods, and the classical multistep method that they improve on."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fewstep.core.builder import Call, PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, check_choice, levels
from fewstep.core.solvers.first_order import first_order_step
from fewstep.core.solvers.ipndm import equal_step_weights
from fewstep.core.solvers.noise_multistep import check_clean_step, kappa, noise_step

STARTS = ("improved-euler", "runge-kutta")


@dataclass(frozen=True)
class PNDM(Solver):
    """The DDIM map phi from t to s, fed with a combined noise estimate: z_s = phi(z_t, sum_j w_j·eps_j).

    Once there are enough estimates, w are the Adams-Bashforth weights of equal steps, a call a step. Before:

    "improved-euler" (S-PNDM, PLMS): in the first step (eps(z_t) + eps(phi(z_t, eps)))/2, two calls.
    "runge-kutta" (F-PNDM): in the first terms − 1 steps (eps_1 + 2·eps_2 + 2·eps_3 + eps_4)/6, four calls
    each, the inner ones at the middle of the times t and s (rounded down on a table).

    A step from a = 0 or to sigma = 0 is a DDIM step. The Runge-Kutta start depends on the path's clock,
    the improved Euler start does not. The weights are those of equal steps: order 2 on any smooth grid.

    Args:
        terms: number of estimates in a step, 2 to 4.
        start: "improved-euler" or "runge-kutta".
        clean_step: a step to sigma = 0, "ddim" returns the denoised estimate; "full" uses the weights too.
        stride: None, or the length in time of every step of the map phi, however the grid is spaced: the
            state that it leads to is then taken for one at the next grid time. diffusers does this with
            ⌊N/steps⌋, which differs from the grid unless its spacing is "leading".

    Raises:
        ValueError: if an option is out of range.

    Reference: Liu, Ren, Lin and Zhao 2022 (PNDM), equations 11 to 14 and algorithm 2.
    """

    terms: int = 4
    start: str = "runge-kutta"
    clean_step: str = "ddim"
    stride: float | None = None

    def __post_init__(self) -> None:
        if self.terms not in (2, 3, 4):
            raise ValueError(f"terms must be 2, 3 or 4, not {self.terms}")
        if self.start not in STARTS:
            raise ValueError(f"start must be 'improved-euler' or 'runge-kutta', not {self.start!r}")
        check_clean_step(self.clean_step)
        if self.stride is not None and not (math.isfinite(self.stride) and self.stride > 0.0):
            raise ValueError(f"stride must be a finite number above 0 or None, not {self.stride}")

    @property
    def name(self) -> str:
        if self.start == "runge-kutta":
            return "f-pndm" if self.terms == 4 else f"pndm-{self.terms}"
        return "s-pndm" if self.terms == 2 else f"plms-{self.terms}"

    @property
    def order(self) -> int:
        return 2

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        history: list[Call] = []
        for t, s in itertools.pairwise(points):
            call = build.ask(x)
            if t.a == 0.0 or (
                s.sigma == 0.0 and (self.clean_step == "ddim" or not self._is_started(history))
            ):
                x = first_order_step(build, x, call, t, s)
                continue
            history = [call, *history][: self.terms]
            if self._is_started(history[1:]):
                weights = dict(zip(history, equal_step_weights(len(history)), strict=True))
                x = self._transfer(build, x, t, s, weights)
            elif self.start == "improved-euler":
                x = self._improved_euler(build, x, call, t, s)
            else:
                x = self._runge_kutta(build, x, call, t, s)
        return build.build()

    def _is_started(self, earlier: list[Call]) -> bool:
        """Whether the estimates before the present one suffice for a step without inner stages."""
        return len(earlier) >= (1 if self.start == "improved-euler" else self.terms - 1)

    def _improved_euler(self, build: PlanBuilder, x: Vector, first: Call, t: Level, s: Level) -> Vector:
        second = build.ask(self._transfer(build, x, t, s, {first: 1.0}, inner=True))
        if self.stride is not None:
            t = _level(build.path, s.t + self.stride)
            x = _taken_for(build, x, t)
        return noise_step(build, x, t, s, _scaled({first: 0.5, second: 0.5}, t, s))

    def _runge_kutta(self, build: PlanBuilder, x: Vector, first: Call, t: Level, s: Level) -> Vector:
        if self.stride is None:
            middle = guess = _level(build.path, 0.5 * (t.t + s.t))
        else:
            middle = _level(build.path, s.t + 0.5 * self.stride)
            guess = _level(build.path, t.t - math.floor(0.5 * self.stride))
        state = noise_step(build, x, t, guess, _scaled({first: 1.0}, t, guess), inner=True)
        second = build.ask(_taken_for(build, state, middle))
        state = noise_step(build, x, t, middle, _scaled({second: 1.0}, t, middle), inner=True)
        third = build.ask(state)
        state = noise_step(build, x, t, s, _scaled({third: 1.0}, t, s), inner=True)
        fourth = build.ask(state)
        weights = {first: 1 / 6, second: 1 / 3, third: 1 / 3, fourth: 1 / 6}
        return noise_step(build, x, t, s, _scaled(weights, t, s))

    def _transfer(
        self,
        build: PlanBuilder,
        x: Vector,
        t: Level,
        s: Level,
        weights: dict[Call, float],
        inner: bool = False,
    ) -> Vector:
        """phi from t to s, or over the stride."""
        if self.stride is None:
            return noise_step(build, x, t, s, _scaled(weights, t, s), inner)
        target = _level(build.path, max(t.t - self.stride, build.path.t_min))
        moved = target.t != s.t
        x = noise_step(build, x, t, target, _scaled(weights, t, target), inner or moved)
        return build.step(s.t, {x: 1.0}, inner=inner) if moved else x


def _scaled(weights: dict[Call, float], t: Level, s: Level) -> dict[Call, float]:
    change = kappa(s) - kappa(t)
    return {call: change * weight for call, weight in weights.items()}


def _taken_for(build: PlanBuilder, x: Vector, at: Level) -> Vector:
    """The same z, said to stand at another time."""
    return x if x.t == at.t else build.step(at.t, {x: 1.0}, inner=True)


def _level(path: Path, time: float) -> Level:
    """The level at a time, rounded down on a table."""
    time = float(math.floor(time)) if path.is_discrete else time
    a, _, sigma = path.coefficients(time)
    return Level(time, a, sigma)


@dataclass(frozen=True)
class FON(Solver):
    """The classical fourth-order multistep method on dz/dt, z_s = z_t + (s − t)·sum_j w_j·f_j.

    Three Runge-Kutta steps of four calls each, then the weights (55, −59, 37, −9)/24. On PNDM's account it is
    what goes wrong when the curvature of the path itself is not taken out. It depends on the path's clock.

    "exact": f = a'·x0 + sigma'·eps, the slope of the probability-flow ODE. The weights are those of equal
    steps in time; on another smooth grid the order is 2.
    "official": f is the change of a DDIM step over one unit of time (one table entry, a thousandth of a
    continuous path), and the inner Runge-Kutta stages apply their noise to the state at t. This has order 1.

    A step from a = 0 or to sigma = 0 is a DDIM step.

    Args:
        variant: "exact" or "official".
        clean_step: a step to sigma = 0, "ddim" returns the denoised estimate; "full" uses the slopes too.

    Raises:
        ValueError: if an option is unknown.

    Reference: Liu, Ren, Lin and Zhao 2022 (PNDM), section 3.1 and appendix A.3.
    """

    variant: str = "exact"
    clean_step: str = "ddim"

    def __post_init__(self) -> None:
        check_choice("variant", self.variant, ("exact", "official"))
        check_clean_step(self.clean_step)

    @property
    def name(self) -> str:
        return "fon"

    @property
    def order(self) -> int:
        return 2 if self.variant == "exact" else 1

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        slopes: list[Vector] = []
        for t, s in itertools.pairwise(points):
            call = build.ask(x)
            ready = len(slopes) >= 3
            if t.a == 0.0 or (s.sigma == 0.0 and (self.clean_step == "ddim" or not ready)):
                x = first_order_step(build, x, call, t, s)
                continue
            slopes = [self._slope(build, x, call, t), *slopes][:4]
            if ready:
                weights = dict(zip(slopes, equal_step_weights(4), strict=True))
            else:
                weights = self._runge_kutta(build, x, slopes[0], t, s)
            x = build.step(s.t, {x: 1.0} | {f: (s.t - t.t) * w for f, w in weights.items()})
        return build.build()

    def _runge_kutta(
        self, build: PlanBuilder, x: Vector, first: Vector, t: Level, s: Level
    ) -> dict[Vector, float]:
        """Slopes of a classical Runge-Kutta step and their weights."""
        middle = _level(build.path, 0.5 * (t.t + s.t))
        found = [first]
        for at in (middle, middle, s):
            share = (s.t - t.t) * (1.0 if at is s else 0.5)
            state = build.step(at.t, {x: 1.0, found[-1]: share}, inner=True)
            call = build.ask(state)
            official = self.variant == "official"
            found.append(self._slope(build, x if official else state, call, t if official else at))
        return dict(zip(found, (1 / 6, 1 / 3, 1 / 3, 1 / 6), strict=True))

    def _slope(self, build: PlanBuilder, x: Vector, call: Call, t: Level) -> Vector:
        """dz/dt at the state x of level t with the noise estimate of a call: (a'/a)·z + a·kappa'·eps."""
        path = build.path
        if self.variant == "exact":
            rate_a, _, rate_sigma = path.derivatives(t.t)
            return build.vector({x: rate_a / t.a, call.e: rate_sigma - rate_a * t.sigma / t.a})
        unit = 1.0 if path.is_discrete else (path.t_max - path.t_clean) / 1000.0
        end = max(t.t - unit, path.t_clean)
        a, _, sigma = path.coefficients(end)
        keep = a / t.a
        length = end - t.t
        return build.vector({x: (keep - 1.0) / length, call.e: (sigma - keep * t.sigma) / length})


_PAPER = "Liu et al. 2022"

SOLVERS = {
    "s-pndm": Listed(
        partial(PNDM, terms=2, start="improved-euler"), f"{_PAPER}, S-PNDM", "n + 1", "ten calls on"
    ),
    "f-pndm": Listed(PNDM, f"{_PAPER}, F-PNDM", "n + 9", "twenty calls on"),
    "plms": Listed(
        partial(PNDM, start="improved-euler"), f"{_PAPER}, PLMS of latent diffusion", "n + 1", "ten calls on"
    ),
    "fon": Listed(FON, f"{_PAPER}, FON", "n + 9", "only to see what PNDM mends"),
}
