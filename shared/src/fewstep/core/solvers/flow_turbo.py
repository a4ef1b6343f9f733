"""FlowTurbo: Heun blocks, then pseudo-corrector blocks at half their price, then a small refiner."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from fewstep.core.builder import Call, PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Ask, Level, Listed, Report, Solver, StepwiseSolver, check_choice, levels
from fewstep.core.solvers.first_order import first_order_step

Refiner = Callable[[Tensor, float, Tensor], Tensor]


@dataclass(frozen=True)
class FlowTurbo(Solver):
    """Trapezoidal rule along the straight line between data and noise, with a reused first stage.

    Every path is that line in the frame z/(a + sigma) with u = sigma/(a + sigma) and velocity v = eps − x0:
        z'_s/g_s = z_t/g_t + (u_s − u_t)·v_t,                  g = a + sigma,
        z_s/g_s  = z_t/g_t + (u_s − u_t)·(v_t + v'_s)/2,       v'_s asked at z'_s.
    A Heun block asks for v_t and v'_s. A pseudo-corrector block takes the v' of the block before it as its
    v_t and asks once. That v' was asked at the predicted state, off by O(h²): the order stays 2.

    Args:
        n_heun: Heun blocks at the start; at least 1, since the chain needs a first velocity.
        n_pseudo: pseudo-corrector blocks after them; by default all other steps of the grid.
        last: the step to sigma = 0: "predict" asks once at its start and returns x0; "correct" as published
            asks at sigma = 0 too, which needs a network that predicts velocity or v.

    Raises:
        ValueError: if an option is out of range; on `compile` if the blocks do not fill the grid.

    Reference: Zhao, Shi, Yu, Zhou and Lu 2024, "FlowTurbo" (Heun and pseudo-corrector blocks).
    """

    n_heun: int = 1
    n_pseudo: int | None = None
    last: str = "predict"

    def __post_init__(self) -> None:
        _check(self.n_heun, self.n_pseudo)
        check_choice("last", self.last, ("predict", "correct"))

    @property
    def name(self) -> str:
        return "flow-turbo"

    @property
    def order(self) -> int:
        return 2

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        heun, _ = _blocks(self.n_heun, self.n_pseudo, len(points) - 1)
        build = PlanBuilder(path, self.name)
        x, before = build.start(points[0].t), None
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            if s.sigma == 0.0 and self.last == "predict":
                x = first_order_step(build, x, build.ask(x), t, s)
                continue
            first = build.ask(x) if i < heun or before is None else before
            guess = build.step(s.t, _move(x, t, s, {first: 1.0}), inner=True)
            before = build.ask(guess)
            x = build.step(s.t, _move(x, t, s, {first: 0.5, before: 0.5}))
        return build.build()


@dataclass(frozen=True)
class RefinedFlowTurbo(StepwiseSolver):
    """FlowTurbo whose last blocks ask a small refiner instead of the network.

    A refiner block corrects the velocity v that the block before it left,
        d = v + r(z_t, t, v),   d' = d + r(z'_s, s, v),   z'_s as predicted with d,
    and steps with (d + d')/2; it leaves d, and both its calls see v, as in the published code. State and
    velocity are those of `FlowTurbo`'s straight line: on a rectified flow without y the refiner sees x itself
    and v = noise − data.

    Args:
        refiner: `refiner(x, t, velocity)` returns what to add to the velocity.
        n_heun: Heun blocks at the start, at least 1.
        n_pseudo: pseudo-corrector blocks after them; by default all steps of the grid that are left.
        n_refine: refiner blocks at the end, at least 1.

    Raises:
        ValueError: if a number is out of range; in `sample` if the blocks do not fill the grid.

    Reference: Zhao, Shi, Yu, Zhou and Lu 2024, "FlowTurbo" (velocity refiner blocks).
    """

    refiner: Refiner
    n_heun: int = 1
    n_pseudo: int | None = None
    n_refine: int = 1

    def __post_init__(self) -> None:
        _check(self.n_heun, self.n_pseudo)
        if self.n_refine < 1:
            raise ValueError(f"n_refine must be at least 1, not {self.n_refine}; FlowTurbo has no refiner")

    @property
    def name(self) -> str:
        return "refined flow-turbo"

    @property
    def order(self) -> int:
        return 2

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
        heun, pseudo = _blocks(self.n_heun, self.n_pseudo, len(points) - 1 - self.n_refine)
        w = z / (points[0].a + points[0].sigma)
        velocity = w

        def asked(w: Tensor, t: Level) -> Tensor:
            x0 = ask((t.a + t.sigma) * w, t.t)
            return ((t.a + t.sigma) * w - t.a * x0) / t.sigma - x0

        for i, (t, s) in enumerate(itertools.pairwise(points)):
            change = _u(s) - _u(t)
            if i < heun + pseudo:
                first = asked(w, t) if i < heun else velocity
                second = left = asked(w + change * first, s)
            else:
                first = left = velocity + self.refiner(w, t.t, velocity)
                second = first + self.refiner(w + change * first, s.t, velocity)
            w, velocity = w + 0.5 * change * (first + second), left
            if not on_step((s.a + s.sigma) * w, s.t, w - _u(s) * second):
                return (s.a + s.sigma) * w
        return (points[-1].a + points[-1].sigma) * w


def _move(x: Vector, t: Level, s: Level, share: dict[Call, float]) -> dict[Vector, float]:
    """The terms of z_s = g_s/g_t·z_t + g_s·(u_s − u_t)·sum of share·(eps − x0)."""
    scale = s.a + s.sigma
    terms = {x: scale / (t.a + t.sigma)}
    for call, weight in share.items():
        terms[call.e] = scale * (_u(s) - _u(t)) * weight
        terms[call.d] = -terms[call.e]
    return terms


def _u(level: Level) -> float:
    return level.sigma / (level.a + level.sigma)


def _check(n_heun: int, n_pseudo: int | None) -> None:
    if n_heun < 1:
        raise ValueError(f"n_heun must be at least 1, not {n_heun}")
    if n_pseudo is not None and n_pseudo < 0:
        raise ValueError(f"n_pseudo must not be negative, it is {n_pseudo}")


def _blocks(n_heun: int, n_pseudo: int | None, steps: int) -> tuple[int, int]:
    """How many steps are Heun and how many are pseudo-corrector blocks."""
    if n_pseudo is None and steps >= 1:
        heun = min(n_heun, steps)
        return heun, steps - heun
    if n_pseudo is None or n_heun + n_pseudo != steps:
        raise ValueError(
            f"n_heun = {n_heun} and n_pseudo = {n_pseudo} must fill the {steps} steps of the grid "
            "that are not refined"
        )
    return n_heun, n_pseudo


SOLVERS = {
    "flow-turbo": Listed(
        FlowTurbo,
        "Zhao et al. 2024, FlowTurbo",
        "n + 1",
        "rectified flows; second order at one call a step",
    ),
}
