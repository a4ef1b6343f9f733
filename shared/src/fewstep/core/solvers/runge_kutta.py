"""Explicit Runge-Kutta methods for d(z/a)/dkappa = eps, kappa = sigma/a."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from fewstep.core.builder import Call, PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, levels
from fewstep.core.solvers.first_order import first_order_step
from fewstep.core.solvers.noise_multistep import kappa, noise_step
from fewstep.core.solvers.singlestep import level_at


class Tableau(NamedTuple):
    """A Butcher tableau.

    Attributes:
        order: of the method.
        rows: weights of the earlier slopes in each stage after the first; their sum is the stage's place.
        weights: of all slopes in the step.
    """

    order: int
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]


TABLEAUX = {
    "euler": Tableau(1, (), (1.0,)),
    "midpoint2": Tableau(2, ((1 / 2,),), (0.0, 1.0)),
    "heun2": Tableau(2, ((1.0,),), (1 / 2, 1 / 2)),
    "kutta3": Tableau(3, ((1 / 2,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6)),
    "ralston3": Tableau(3, ((1 / 2,), (0.0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9)),
    "heun3": Tableau(3, ((1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4)),
    "houwen3": Tableau(3, ((8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0.0, 3 / 4)),
    "ssprk3": Tableau(3, ((1.0,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3)),
    "rk4": Tableau(4, ((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


@dataclass(frozen=True)
class RungeKutta(Solver):
    """rhoRK: z_s/a_s = z_t/a_t + h·sum_i b_i·eps_i, h = kappa_s − kappa_t, with the stages

    z_i/a_i = z_t/a_t + h·sum_j A_ij·eps_j  at  kappa_i = kappa_t + c_i·h.

    A step from a = 0 or to sigma = 0 is a DDIM step with one network call, as no slope is defined there.
    On a table of times the inner stages fall between its entries.

    Args:
        tableau: a key of `TABLEAUX`.

    Raises:
        ValueError: if the tableau is unknown.

    Reference: Zhang and Chen 2023 (DEIS), section 3.4 (rhoRK); Hairer, Norsett and Wanner 1993, section II.1.
    """

    tableau: str = "heun2"

    def __post_init__(self) -> None:
        if self.tableau not in TABLEAUX:
            raise ValueError(f"tableau must be one of {', '.join(TABLEAUX)}; not {self.tableau!r}")

    @property
    def name(self) -> str:
        return f"rho-{self.tableau}"

    @property
    def order(self) -> int:
        return TABLEAUX[self.tableau].order

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        for t, s in itertools.pairwise(points):
            if t.a == 0.0 or s.sigma == 0.0:
                x = first_order_step(build, x, build.ask(x), t, s)
            else:
                x = self._step(build, x, t, s)
        return build.build()

    def _step(self, build: PlanBuilder, x: Vector, t: Level, s: Level) -> Vector:
        tableau = TABLEAUX[self.tableau]
        h = kappa(s) - kappa(t)
        slopes: list[Call] = [build.ask(x)]
        for row in tableau.rows:
            place = sum(row)
            at = s if place == 1.0 else level_at(build.path, -math.log(kappa(t) + place * h))
            change = {call: h * weight for call, weight in zip(slopes, row, strict=True)}
            slopes.append(build.ask(noise_step(build, x, t, at, change, inner=True)))
        change = {call: h * weight for call, weight in zip(slopes, tableau.weights, strict=True)}
        return noise_step(build, x, t, s, change)


_SHINES = {
    "midpoint2": "no history to keep",
    "heun2": "EDM's Heun without churn",
    "kutta3": "third order without a history",
    "ralston3": "third order without a history",
    "heun3": "third order without a history",
    "houwen3": "third order, low storage",
    "ssprk3": "third order without a history",
    "rk4": "reference solutions",
}

SOLVERS = {
    f"rho-{name}": Listed(
        partial(RungeKutta, tableau=name),
        "Zhang and Chen 2023, rhoRK",
        f"{len(TABLEAUX[name].weights)}(n − 1) + 1",
        shines,
    )
    for name, shines in _SHINES.items()
}
