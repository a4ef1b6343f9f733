"""The space of all per-step choices of the unified solver (USF/S³) at a fixed number of network calls."""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.search.clock import Clock
from fewstep.core.solvers.unified import PREDICTIONS, Split, StepChoice, UnifiedSolver
from fewstep.core.statistics import ModelStatistics

Steps = tuple[StepChoice, ...]
COMMON: tuple[StepChoice, ...] = tuple(
    StepChoice(prediction=split, order=order, corrector=corrector)
    for split in PREDICTIONS.values()
    for order in (1, 2, 3)
    for corrector in (False, True)
)
"""Choices of the published solvers; a search begins with them."""


@dataclass(frozen=True)
class UnifiedSpace:
    """Step sequences with exactly `budget` network calls; a genome is a tuple of StepChoice with times.

    A step of order 0 may stand before the others: a jump from pure noise that costs no call. The last step
    ends at the clean end or, where that is better, a little before it.

    Args:
        path: the path.
        budget: network calls.
        highest: the highest order of a step.
        jump: allow the first jump without a call.
        splits: also vary the pair (l, s) of a prediction continuously.

    Reference: Liu et al. 2024 (unified sampling framework), sections 3 and 4.
    """

    path: Path
    budget: int
    highest: int = 3
    jump: bool = True
    splits: bool = True

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget must be at least 1 network call, not {self.budget}")

    @property
    def _clock(self) -> Clock:
        return Clock(self.path)

    def plan(self, genome: Steps) -> Plan:
        """The plan of these steps from t_max on."""
        return UnifiedSolver(genome).plan(self.path)

    def seeds(self, times: Sequence[float], statistics: ModelStatistics | None = None) -> list[Steps]:
        """Genomes that ask at given times in the ways of the published solvers.

        Args:
            times: t_max first, the end last.
            statistics: of the network: also with its l and s, averaged over pixels and over each step.
        """
        genomes = [tuple(replace(choice, t=t) for t in times[1:]) for choice in COMMON]
        if statistics is None:
            return genomes
        splits = [mean_split(self.path, statistics, t, s) for t, s in itertools.pairwise(times)]
        pairs = list(zip(times[1:], splits, strict=True))
        for order, corrector in itertools.product((1, 2, 3), (False, True)):
            choice = StepChoice(order=order, corrector=corrector)
            genomes.append(tuple(replace(choice, t=t, prediction=split) for t, split in pairs))
        return genomes

    def draw(self, rng: random.Random) -> Steps:
        jump = self.jump and self._fits(self.budget + 1) and rng.random() < 0.5
        count = self.budget + jump
        choice = rng.choice(COMMON)
        genome = (StepChoice(order=0),) * jump + (choice,) * self.budget
        return self._timed(genome, [rng.random() for _ in range(count - 1)])

    def cross(self, first: Steps, second: Steps, rng: random.Random) -> Steps:
        if len(first) != len(second):
            first = second = rng.choice((first, second))
        chosen = [rng.choice(pair) for pair in zip(first, second, strict=True)]
        return self._timed(chosen, self._positions(chosen))

    def mutate(self, genome: Steps, rng: random.Random, rate: float, width: float) -> Steps:
        """Move times, vary predictions, flip choices; now and then add or drop the jump."""
        if self.jump and rng.random() < 0.1 * rate:
            return self._jumped(genome, rng)
        positions = self._positions(genome)
        if rng.random() < 0.2 * rate:  # end at the clean end, or before it
            whole = len(positions) == len(genome)
            positions = positions[:-1] if whole or not self._fits(len(genome) + 1) else [*positions, 1.0]
        sure = rng.randrange(max(len(positions), 1))
        positions = [
            rng.gauss(u, width) if rng.random() < max(rate, 0.3) or i == sure else u
            for i, u in enumerate(positions)
        ]
        changed = [self._changed(choice, rng, rate, width) if choice.order else choice for choice in genome]
        return self._timed(changed, positions)

    def _changed(self, choice: StepChoice, rng: random.Random, rate: float, width: float) -> StepChoice:
        genes: dict[str, Any] = {}
        if rng.random() < rate:
            genes["order"] = rng.randint(1, self.highest)
        if rng.random() < rate:
            genes["derivatives"] = rng.choice(("full", "low"))
        if rng.random() < rate:
            genes["corrector"] = rng.random() < 0.5
        if rng.random() < 0.3 * rate:
            genes["base"] = 1 - choice.base
        if rng.random() < rate:
            genes["prediction"] = rng.choice(tuple(PREDICTIONS.values()))
        elif self.splits and rng.random() < max(rate, 0.3):
            linear, growth = choice.split
            genes["prediction"] = (rng.gauss(linear, 2 * width), rng.gauss(growth, 2 * width))
        return replace(choice, **genes)

    def _jumped(self, genome: Steps, rng: random.Random) -> Steps:
        if genome[0].order == 0 or not self._fits(len(genome) + 1):
            return genome[1:] if genome[0].order == 0 else genome
        positions = self._positions(genome)
        first = rng.random() * (positions[0] if positions else 0.5)
        return self._timed((StepChoice(order=0), *genome), [first, *positions])

    def _fits(self, steps: int) -> bool:
        """Whether a discrete path has times for so many steps."""
        return not self.path.is_discrete or steps <= self.path.t_max - self.path.t_clean

    def _positions(self, genome: Sequence[StepChoice]) -> list[float]:
        """Where the steps end; without the last one where it ends at the clean end."""
        times = [choice.t for choice in genome if choice.t is not None]
        return self._clock.positions(times[:-1] if times[-1] == self.path.t_clean else times)

    def _timed(self, choices: Sequence[StepChoice], positions: Sequence[float]) -> Steps:
        """The choices at these positions; what has none ends at the clean end."""
        times = [*self._clock.times(positions[: len(choices)]), self.path.t_clean]
        return tuple(replace(choice, t=t) for choice, t in zip(choices, times, strict=False))


def mean_split(path: Path, statistics: ModelStatistics, t: float, s: float) -> Split:
    """Return the mean of l and s of DPM-Solver-v3 over pixels and over the step from t to s."""
    lam = statistics.half_log_snr
    inside = (lam >= path.half_log_snr(t)) & (lam <= path.half_log_snr(s))
    if not inside.any():
        inside = (lam - path.half_log_snr(t)).abs() == (lam - path.half_log_snr(t)).abs().min()
    return float(statistics.l[inside].double().mean()), float(statistics.s[inside].double().mean())
