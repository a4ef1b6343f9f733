"""The stages of `tune`: rank the untuned plans, evolve, choose and report on fresh noise each."""

import contextlib
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from fewstep.core.plan import Plan
from fewstep.core.search.evolution import Evolution, Progress, evolve
from fewstep.core.search.objectives import Objective
from fewstep.core.search.report import Measured, Tuned, best_first
from fewstep.core.search.state import State
from fewstep.core.search.unified import Steps, UnifiedSpace
from fewstep.core.search.untuned import Untuned

SEEDED = 8
"""Grids of untuned plans from which the search begins."""
FINALISTS = 3
"""Untuned plans that compete with the best of the search on fresh noise."""
SAVED_EVERY = 20
"""Measurements after which the state is saved."""


@dataclass(frozen=True)
class TuneProgress:
    """What `on_progress` sees.

    Attributes:
        stage: what is being done, in words.
        fraction: how much of all is done, in [0, 1].
        best: the best score of the search so far, if there is one.
        untuned: that of the best untuned plan.
    """

    stage: str
    fraction: float
    best: float | None = None
    untuned: float | None = None


class OutOfTimeError(Exception):
    """The search has used its minutes."""


@dataclass
class Clockwork:
    """The minutes of a search.

    Args:
        minutes: how many there are; None: no limit.
        started: when it began, on the monotonic clock.
        reserved: seconds that the last measurements will take.
        cut: there was no time for some untuned plans.
    """

    minutes: float | None
    started: float = field(default_factory=time.monotonic)
    reserved: float = 0.0
    cut: bool = False

    @property
    def seconds(self) -> float:
        """All of them."""
        return math.inf if self.minutes is None else 60.0 * self.minutes

    @property
    def used(self) -> float:
        """Seconds gone."""
        return time.monotonic() - self.started

    def is_past_tenth(self) -> bool:
        """Whether to look for no further untuned plans."""
        self.cut = self.cut or self.used > 0.1 * self.seconds
        return self.cut

    def check(self) -> None:
        """Raise when only what is reserved for the last measurements is left."""
        if self.used > self.seconds - self.reserved:
            raise OutOfTimeError


@dataclass
class Search:
    """One run of `tune`.

    Args:
        space: what is searched.
        make: the objective on the start noises of part 0 (search), 1 (choice) or 2 (report).
        untuned: the untuned plans.
        settings: of the evolution.
        reported: how many untuned plans the report measures.
        seed: of the evolution.
        state: what is known already; kept up to date.
        clock: the minutes.
        tell: called with a TuneProgress.
        made: objectives made so far.
    """

    space: UnifiedSpace
    make: Callable[[int], Objective]
    untuned: list[Untuned]
    settings: Evolution
    reported: int
    seed: int
    state: State
    clock: Clockwork
    tell: Callable[[TuneProgress], None]
    made: dict[int, Objective] = field(default_factory=dict)

    def run(self, seeds: Callable[[list[Untuned]], Iterable[Steps]], words: str) -> Tuned:
        """All stages; `seeds` makes the first generation of the untuned plans, best first."""
        self.tell(TuneProgress("reference", 0.0))
        objective = self._objective(0)
        cheap = getattr(objective, "cheap", lambda: objective)()
        self._check_state(objective)
        ranked = self._rank(cheap, objective)
        start = seeds(ranked) if self.state.progress is None else ()
        self._evolve(objective, cheap if cheap is not objective else None, start)
        finalists = self._finalists(ranked)
        scores = self._scores(1, self.state.chosen, finalists, "choice", 0.8, 0.82)
        winner = finalists[scores.index(min(scores))]
        return self._report(winner, ranked, words)

    def _objective(self, part: int) -> Objective:
        if part not in self.made:
            self.made[part] = self.make(part)
        return self.made[part]

    def _check_state(self, objective: Objective) -> None:
        """A state file must not belong to another model."""
        if self.state.progress is None:
            return
        best = self.state.progress.best[0]
        again = _score(objective, self.space.plan(best.genome))
        if not math.isclose(best.score, again, rel_tol=0.01):
            raise ValueError(
                f"{self.state.file} belongs to another model: its best plan has {best.score:.4g} there and "
                f"{again:.4g} here; remove it or name another file"
            )

    def _rank(self, cheap: Objective, objective: Objective) -> list[Untuned]:
        """The untuned plans by a cheap score; with a time limit as many as there is time for."""
        began = time.monotonic()
        if self.untuned:
            _score(objective, self.untuned[0].plan)
        each = time.monotonic() - began  # what a measurement of the report will take
        known = self.state.untuned
        for k, one in enumerate(self.untuned):
            name = f"{one.solver}, {one.grid}"
            if name in known:
                continue
            if k and self.clock.used > 0.2 * self.clock.seconds:
                self.clock.cut = True
                break
            known[name] = _score(cheap, one.plan)
            self.tell(TuneProgress("untuned plans", 0.2 * (k + 1) / len(self.untuned)))
            if k % SAVED_EVERY == 0:
                self.state.save()
        self.state.save()
        names = {f"{one.solver}, {one.grid}": one for one in self.untuned}
        ranked = [names[name] for name in sorted(known, key=lambda name: known[name]) if name in names]
        ranked = ranked[: self.reported]
        if math.isfinite(self.clock.seconds):
            ranked = ranked[: max(FINALISTS, int(0.35 * self.clock.seconds / max(each, 1e-9)))]
            self.clock.reserved = 1.2 * each * (len(ranked) + self.settings.parents + FINALISTS)
        return ranked

    def _evolve(self, objective: Objective, cheap: Objective | None, seeds: Iterable[Steps]) -> None:
        untuned = min(self.state.untuned.values(), default=None)

        def scored(by: Objective) -> Callable[[Steps], float]:
            def score(genome: Steps) -> float:
                self.clock.check()
                try:
                    plan = self.space.plan(genome)
                except (ValueError, ArithmeticError):  # coefficients that no float holds
                    return math.inf
                return _score(by, plan)

            return score

        def after(progress: Progress[Steps]) -> None:
            self.state.progress = progress
            self.state.save()
            share = (progress.generation + 1) / (self.settings.generations + 1)
            self.tell(
                TuneProgress(
                    f"generation {progress.generation}", 0.2 + 0.6 * share, progress.history[-1], untuned
                )
            )

        with contextlib.suppress(OutOfTimeError):  # the state holds the last whole generation
            evolve(
                self.space,
                scored(objective),
                self.settings,
                seed=self.seed,
                start=seeds,
                screen=None if cheap is None else scored(cheap),
                resume=self.state.progress,
                on_generation=after,
            )

    def _finalists(self, ranked: list[Untuned]) -> list[Untuned]:
        best = self.state.progress.best if self.state.progress is not None else ()
        found = [
            Untuned("tuned", "tuned", self.space.plan(one.genome)) for one in best if math.isfinite(one.score)
        ]
        found += ranked[:FINALISTS]
        if not found:
            raise ValueError(
                f"no plan with {self.space.budget} network calls could be measured on this path; "
                "allow more minutes or other solvers and grids"
            )
        return found

    def _scores(
        self, part: int, known: dict[str, float], plans: list[Untuned], stage: str, low: float, high: float
    ) -> list[float]:
        """Scores on the start noises of a part; the state is saved now and then."""
        self.tell(TuneProgress(stage, low))
        objective = self._objective(part)
        names = [hashlib.sha256(one.plan.to_json().encode()).hexdigest()[:16] for one in plans]
        for k, (name, one) in enumerate(zip(names, plans, strict=True)):
            if name in known:
                continue
            known[name] = _score(objective, one.plan)
            self.tell(TuneProgress(stage, low + (high - low) * (k + 1) / len(plans)))
            if k % SAVED_EVERY == 0:
                self.state.save()
        self.state.save()
        return [known[name] for name in names]

    def _report(self, winner: Untuned, ranked: list[Untuned], words: str) -> Tuned:
        plans = [winner, *ranked]
        scores = self._scores(2, self.state.report, plans, "held-out noise", 0.82, 1.0)
        best, *others = (
            Measured(one.solver, one.grid, one.plan.nfe, score, one.same)
            for one, score in zip(plans, scores, strict=True)
        )
        own_error: Any = getattr(self._objective(2), "own_error", None)
        progress = self.state.progress
        return Tuned(
            plan=winner.plan,
            budget=self.space.budget,
            measured=best,
            untuned=best_first(others),
            objective=words,
            reference_error=None if own_error is None else own_error(),
            history=() if progress is None else progress.history,
            tried=0 if progress is None else progress.tried,
            ranked=len(self.state.untuned),
            finished=not self.clock.cut
            and progress is not None
            and progress.generation >= self.settings.generations,
            seconds=round(self.clock.used, 1),
        )


def first_generation(
    space: UnifiedSpace, ranked: list[Untuned], more: Iterable[tuple[float, ...]], splits: Any = None
) -> list[Steps]:
    """The choices of the published solvers on the grids of the best untuned plans and on further ones."""
    own = (grid for one in ranked if (grid := asked_times(one.plan)) is not None)
    chosen = [*itertools.islice(dict.fromkeys(own), SEEDED), *more]
    return [genome for times in chosen for genome in space.seeds(times, splits)]


def asked_times(plan: Plan) -> tuple[float, ...] | None:
    """The times at which a plan asks, and its end; None if they do not decrease or it starts elsewhere."""
    times = (*(row.t for row in plan.rows if row.ask), plan.rows[-1].t)
    if any(not isinstance(t, float) for t in times) or times[0] != plan.path.t_max:
        return None
    return times if all(t > s for t, s in itertools.pairwise(times)) else None  # type: ignore[operator]


def _score(objective: Objective, plan: Plan) -> float:
    value = float(objective(plan))
    return math.inf if math.isnan(value) else value
