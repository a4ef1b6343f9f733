"""DPM-Solver-v3: exponential multistep with the linear part that fits the network best."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

from fewstep.core.builder import Call, PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Ask, Level, Listed, Report, Solver, StepwiseSolver, check_choice, levels
from fewstep.core.solvers.dpm_v3_tables import DegenerateTables, StatisticsTables, Tables, Update
from fewstep.core.solvers.first_order import first_order_step
from fewstep.core.statistics import ModelStatistics


class _Move(NamedTuple):
    """One update from grid point `source` to `target`, with f at the source and at `others` (0: DDIM)."""

    source: int
    target: int
    others: tuple[int, ...] = ()
    pseudo: bool = False
    corrects: bool = False
    first_order: bool = False

    @property
    def order(self) -> int:
        return 0 if self.first_order else 1 + len(self.others)


@dataclass(frozen=True)
class _Script:
    """The moves over a grid, and the integrals they need."""

    points: list[Level]
    moves: list[_Move]
    tables: Tables
    skipped: int  # grid points before the first one with a finite half log-SNR

    def slope(self, i: int) -> float | Tensor:
        return self.tables.slope(i - self.skipped)

    def update(self, move: _Move) -> Update:
        others = [j - self.skipped for j in move.others]
        return self.tables.update(move.source - self.skipped, move.target - self.skipped, others, move.pseudo)

    def ends_step(self, k: int) -> bool:
        """Whether no correction of the same grid point follows move k."""
        return k + 1 == len(self.moves) or not self.moves[k + 1].corrects


@dataclass(frozen=True)
class _Method:
    """The options of DPM-Solver-v3 and what follows from them."""

    solver_order: int = 3
    statistics: ModelStatistics | None = None
    p_pseudo: bool = False
    corrector: str = "all"
    c_pseudo: bool = False
    lower_order_final: bool = True
    variant: str = "exact"

    def __post_init__(self) -> None:
        if self.solver_order not in (1, 2, 3):
            raise ValueError(f"solver_order must be 1, 2 or 3, not {self.solver_order}")
        if self.corrector not in ("all", "half", "none"):
            raise ValueError(f"corrector must be 'all', 'half' or 'none', not {self.corrector!r}")
        check_choice("variant", self.variant, ("official", "exact"))

    @property
    def name(self) -> str:
        return "dpm-v3"

    @property
    def order(self) -> int:
        """The first step and, with lower_order_final, the last one have order 1, which limits the chain."""
        return min(self.solver_order, 2)

    def _script(self, path: Path, grid: Sequence[float]) -> _Script:
        points = levels(path, grid)
        finite = [i for i, p in enumerate(points) if math.isfinite(p.half_log_snr)]
        skipped = finite[0] if finite else 0
        lams = [points[i].half_log_snr for i in finite]
        if self.statistics is None or len(finite) < 2:
            tables: Tables = DegenerateTables(lams)
        else:
            tables = StatisticsTables(self.statistics, lams, self.variant)
            for i, lam in zip(finite, tables.half_log_snr, strict=True):
                if lam != points[i].half_log_snr:
                    t = path.time_at(lam)
                    a, _, sigma = path.coefficients(t)
                    points[i] = Level(t, a, sigma)
        return _Script(points, list(self._moves(path, points, skipped)), tables, skipped)

    def _moves(self, path: Path, points: list[Level], skipped: int) -> Iterator[_Move]:
        """Correction of each point but the ends, then prediction of the next; orders as published."""
        steps = len(points) - 1
        before = _Move(0, 0, first_order=True)
        for i in range(steps):
            count = before.order + self.c_pseudo
            if i and count > 1 and before.order and self._corrects(path, points[i].t):
                older = range(i - 2, i - count, -1)
                yield _Move(i - 1, i, (i, *older), self.c_pseudo, corrects=True)
            count = min(self.solver_order, i - skipped + 1)
            if self.lower_order_final:
                count = min(count, steps - i)
            if count < 1 or not math.isfinite(points[i + 1].half_log_snr):
                before = _Move(i, i + 1, first_order=True)
            else:
                before = _Move(i, i + 1, tuple(range(i - 1, i - count, -1)), self.p_pseudo)
            yield before

    def _corrects(self, path: Path, t: float) -> bool:
        if self.corrector != "half":
            return self.corrector == "all"
        return (t - path.t_clean) / (path.t_max - path.t_clean) > 0.5


@dataclass(frozen=True)
class DPMSolverV3(_Method, Solver):
    """DPM-Solver-v3 with the same statistics for all pixels, which makes it a plan.

    In ybar = z/a and lam = log(a/sigma) the probability-flow ODE is d(ybar)/d(lam) = D − ybar. Its linear
    part l·ybar and the linear prediction s·f + b of the rate of f = (1 − l)·ybar − D are integrated exactly.
    What remains is interpolated by a polynomial in lam through the last points (exponential multistep), and
    each new point is corrected with the network's answer there, which costs no further call. Without
    statistics l = 1 and s = b = 0: exponential Adams in D with its corrector.

    Steps from a = 0 and to sigma = 0 are DDIM steps.

    Args:
        solver_order: of the predictor, 1, 2 or 3; the first steps have orders 1, 2, …
        statistics: of the network; None for l = 1, s = b = 0.
        p_pseudo: divided differences for the predictor's derivatives (recommended at 5 calls by the authors).
        corrector: "all" points, "none", or "half": only in the noisier half of the path's time (for strong
            guidance).
        c_pseudo: the same for the corrector, which then has one order more.
        lower_order_final: end with orders …, 2, 1.
        variant: how statistics are used, see `StatisticsTables`: "exact" keeps the grid, "official" moves its
            times to the points of the statistics and integrates by the trapezoidal rule.

    Raises:
        ValueError: if an option is out of range, or the statistics have an offset or differ between pixels
            (then `PixelDPMSolverV3` is the solver; `solvers.get("dpm-v3", statistics=…)` chooses).

    Reference: Zheng, Lu, Chen and Zhu 2023 (DPM-Solver-v3), algorithm 1 and appendices C and D.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.statistics is not None and not self.statistics.is_linear:
            raise ValueError(
                "statistics must have one number for all pixels and b = 0 for a plan; use PixelDPMSolverV3"
            )

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        script = self._script(path, grid)
        points = script.points
        build = PlanBuilder(path, self.name)
        found = {0: build.start(points[0].t)}  # the newest state at each grid point
        asked: dict[int, tuple[Vector, Call]] = {}
        for k, move in enumerate(script.moves):
            newest = move.target if move.corrects else move.source
            if newest not in asked:
                asked[newest] = found[newest], build.ask(found[newest])
            s, t = points[move.source], points[move.target]
            if move.first_order:
                found[move.target] = first_order_step(build, found[move.source], asked[move.source][1], s, t)
                continue
            terms = _linear(script, move, found[move.source], asked)
            found[move.target] = build.step(t.t, terms, inner=not script.ends_step(k))
        return build.build()


@dataclass(frozen=True)
class PixelDPMSolverV3(_Method, StepwiseSolver):
    """DPM-Solver-v3 with statistics that differ between pixels or have an offset; options of `DPMSolverV3`.

    Every sample follows the same coefficients, one tensor shaped like a sample for each.

    Raises:
        ValueError: if an option is out of range, or there are no statistics.

    Reference: Zheng, Lu, Chen and Zhu 2023 (DPM-Solver-v3), algorithm 1.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.statistics is None:
            raise ValueError("statistics are missing; DPMSolverV3 works without")

    def integrate(
        self,
        ask: Ask,
        path: Path,
        grid: Sequence[float],
        z: Tensor,
        noise: Callable[[Tensor], Tensor],
        on_step: Report,
    ) -> Tensor:
        assert self.statistics is not None
        _check_shape(self.statistics, z)
        script, exact = _prepared(self, path, tuple(map(float, grid)))
        points = script.points
        updates = [None if update is None else _like(update, z) for update in exact]
        found = {0: z}
        rest: dict[int, Tensor] = {}  # f at each grid point
        x0 = z
        for k, (move, update) in enumerate(zip(script.moves, updates, strict=True)):
            newest = move.target if move.corrects else move.source
            s, t = points[move.source], points[move.target]
            if newest not in rest:
                x0, level = ask(found[newest], points[newest].t), points[newest]
                rest[newest] = -x0
                if level.a > 0.0 and newest >= script.skipped:
                    gain = (1.0 - script.slope(newest)) / level.a
                    rest[newest] = _cast(gain, z) * found[newest] - x0
            if update is None:
                ratio = s.sigma and t.sigma / s.sigma
                found[move.target] = ratio * found[move.source] + (t.a - ratio * s.a) * x0
            else:
                total = update.keep * found[move.source] * (1.0 / s.a) + update.constant
                for j, weight in zip((move.source, *move.others), update.weights, strict=True):
                    total = total + weight * rest[j]
                found[move.target] = t.a * total
            if script.ends_step(k) and not on_step(found[move.target], t.t, x0):
                return found[move.target]
        return found[len(points) - 1]


def dpm_v3(
    solver_order: int = 3,
    statistics: ModelStatistics | None = None,
    p_pseudo: bool = False,
    corrector: str = "all",
    c_pseudo: bool = False,
    lower_order_final: bool = True,
    variant: str = "exact",
) -> Solver:
    """DPM-Solver-v3, as a plan where the statistics allow one; for the arguments see `DPMSolverV3`."""
    kind = DPMSolverV3 if statistics is None or statistics.is_linear else PixelDPMSolverV3
    return kind(solver_order, statistics, p_pseudo, corrector, c_pseudo, lower_order_final, variant)


def _linear(
    script: _Script, move: _Move, source: Vector, asked: dict[int, tuple[Vector, Call]]
) -> dict[Vector, float]:
    """Coefficients of a move in states and denoised samples, f = (1 − l)·z/a − D put in."""
    update, scale = script.update(move), script.points[move.target].a
    terms = {source: scale * float(update.keep) / script.points[move.source].a}
    for j, weight in zip((move.source, *move.others), update.weights, strict=True):
        state, call = asked[j]
        share = scale * float(weight)
        gain = share * (1.0 - float(script.slope(j))) / script.points[j].a
        terms[state] = terms.get(state, 0.0) + gain
        terms[call.d] = terms.get(call.d, 0.0) - share
    return terms


@lru_cache(maxsize=8)
def _prepared(
    solver: PixelDPMSolverV3, path: Path, grid: tuple[float, ...]
) -> tuple[_Script, list[Update | None]]:
    """The moves and their coefficients, which take longer than a small network: kept for the next batch."""
    script = solver._script(path, grid)
    return script, [None if move.first_order else script.update(move) for move in script.moves]


def _check_shape(statistics: ModelStatistics, z: Tensor) -> None:
    pixels = tuple(statistics.l.shape[1:])
    if pixels and pixels != tuple(z.shape[1:]):
        raise ValueError(f"statistics are for samples of shape {pixels}, x has {tuple(z.shape[1:])}")


def _cast(value: float | Tensor, like: Tensor) -> float | Tensor:
    return value.to(like) if isinstance(value, Tensor) else value


def _like(update: Update, z: Tensor) -> Update:
    keep, weights, constant = update
    return Update(_cast(keep, z), [_cast(w, z) for w in weights], _cast(constant, z))


SOLVERS = {
    "dpm-v3": Listed(
        dpm_v3, "Zheng et al. 2023, DPM-Solver-v3", "n", "5 to 20, with statistics of the network"
    ),
}
