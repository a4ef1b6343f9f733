"""Evolution over whatever a space can draw, cross and mutate: the search of AutoDiffusion and of S³."""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.search.clock import Clock
from fewstep.core.solvers import Solver

Genome = TypeVar("Genome")


@runtime_checkable
class Space(Protocol[Genome]):
    """What is searched. A genome is hashable; equal genomes are measured once."""

    def draw(self, rng: random.Random) -> Genome:
        """A random genome."""
        ...

    def cross(self, first: Genome, second: Genome, rng: random.Random) -> Genome:
        """A child of two."""
        ...

    def mutate(self, genome: Genome, rng: random.Random, rate: float, width: float) -> Genome:
        """A changed copy: genes change with probability `rate`, at least one, by `width` of their range."""
        ...


@dataclass(frozen=True)
class Scored(Generic[Genome]):
    """A genome and its score, smaller is better."""

    score: float
    genome: Genome


@dataclass(frozen=True)
class Evolution:
    """How much is tried, and how wildly.

    Args:
        generations: after the first one.
        population: genomes in the first generation, and in each later one.
        parents: the best so far, from which the next generation comes.
        crossovers: children of two parents, per generation.
        mutations: changed copies of a parent, per generation; what is left of `population` is drawn anew.
        rate: probability that a gene changes.
        width: size of a change in the first generation, as a share of the range; it shrinks geometrically.
        final_width: and in the last.
        screened: share of a generation that the cheap objective, if there is one, lets through.

    Raises:
        ValueError: if a number is out of range.

    Reference: Li et al. 2023 (AutoDiffusion), section 3.4 and appendix A: 50, 10, 25, 25, 0.1 and 20.
    """

    generations: int = 20
    population: int = 50
    parents: int = 10
    crossovers: int = 25
    mutations: int = 25
    rate: float = 0.1
    width: float = 0.1
    final_width: float = 0.01
    screened: float = 0.5

    def __post_init__(self) -> None:
        for name in ("population", "parents"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("generations", "crossovers", "mutations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, it is {getattr(self, name)}")
        if self.crossovers + self.mutations > self.population:
            raise ValueError(
                f"crossovers + mutations must not exceed population = {self.population}, "
                f"they are {self.crossovers} + {self.mutations}"
            )
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"rate must lie in [0, 1], not {self.rate}")
        if not 0.0 < self.screened <= 1.0:
            raise ValueError(f"screened must lie in (0, 1], not {self.screened}")
        if not (0.0 < self.final_width <= self.width):
            raise ValueError(f"final_width must lie in (0, width = {self.width}], not {self.final_width}")

    def width_at(self, generation: int) -> float:
        """Size of a change in generation 1 … generations."""
        share = (generation - 1) / max(self.generations - 1, 1)
        return self.width * (self.final_width / self.width) ** share


@dataclass(frozen=True)
class Progress(Generic[Genome]):
    """Where a search stands; it goes on from here.

    Attributes:
        generation: number of the last generation, 0 the first.
        best: the best so far, best first; as many as become parents.
        tried: genomes measured so far.
        history: the best score after every generation.
    """

    generation: int
    best: tuple[Scored[Genome], ...]
    tried: int
    history: tuple[float, ...]


def evolve(
    space: Space[Genome],
    objective: Callable[[Genome], float],
    settings: Evolution = Evolution(),
    *,
    seed: int = 0,
    start: Iterable[Genome] = (),
    screen: Callable[[Genome], float] | None = None,
    resume: Progress[Genome] | None = None,
    on_generation: Callable[[Progress[Genome]], bool | None] | None = None,
) -> Progress[Genome]:
    """Search a space for the genome with the smallest objective.

    Every generation has its own random numbers, made from `seed` and its number: an interrupted search that
    is resumed does the same as one that was not.

    Args:
        space: what is searched.
        objective: of a genome, smaller is better; not-a-number counts as infinite.
        settings: how much is tried.
        seed: of all random choices.
        start: genomes for the first generation.
        screen: a cheap objective that decides which children the true one measures.
        resume: go on from here instead of making a first generation.
        on_generation: called after every generation; returning False stops.

    Returns:
        Where the search stands at its end.

    Example:
        >>> from fewstep.core import paths, solvers
        >>> space = TimeSpace(paths.EDM(), solvers.get("ddim"), steps=3)
        >>> found = evolve(space, lambda times: abs(times[1] - 5.0), Evolution(generations=30))
        >>> abs(found.best[0].genome[1] - 5.0) < 0.05
        True

    Reference: Li et al. 2023 (AutoDiffusion), algorithm 1.
    """
    now = resume
    if now is None:
        rng = random.Random(f"{seed}/0")
        first = list(dict.fromkeys(start))
        first += [space.draw(rng) for _ in range(settings.population - len(first))]
        now = _after(0, (), first, objective, None, settings, 0, ())
        if on_generation is not None and on_generation(now) is False:
            return now
    for generation in range(now.generation + 1, settings.generations + 1):
        rng = random.Random(f"{seed}/{generation}")
        children = _children(space, now.best, settings, rng, settings.width_at(generation))
        now = _after(generation, now.best, children, objective, screen, settings, now.tried, now.history)
        if on_generation is not None and on_generation(now) is False:
            break
    return now


def _children(
    space: Space[Genome],
    best: tuple[Scored[Genome], ...],
    settings: Evolution,
    rng: random.Random,
    width: float,
) -> list[Genome]:
    parents = [scored.genome for scored in best]
    crossed = [space.cross(rng.choice(parents), rng.choice(parents), rng) for _ in range(settings.crossovers)]
    mutated = [
        space.mutate(rng.choice(parents), rng, settings.rate, width) for _ in range(settings.mutations)
    ]
    fresh = settings.population - settings.crossovers - settings.mutations
    return crossed + mutated + [space.draw(rng) for _ in range(fresh)]


def _after(
    generation: int,
    best: tuple[Scored[Genome], ...],
    genomes: list[Genome],
    objective: Callable[[Genome], float],
    screen: Callable[[Genome], float] | None,
    settings: Evolution,
    tried: int,
    history: tuple[float, ...],
) -> Progress[Genome]:
    """Measure a generation and keep the best of it and of the earlier ones."""
    known = {scored.genome for scored in best}
    new = [genome for genome in dict.fromkeys(genomes) if genome not in known]
    if screen is not None:
        new = sorted(new, key=lambda genome: _number(screen(genome)))
        new = new[: math.ceil(settings.screened * len(new))]
    found = [Scored(_number(objective(genome)), genome) for genome in new]
    kept = tuple(sorted([*best, *found], key=lambda scored: scored.score)[: settings.parents])
    return Progress(generation, kept, tried + len(new), (*history, kept[0].score))


def _number(score: float) -> float:
    return math.inf if math.isnan(score) else score


@dataclass(frozen=True)
class TimeSpace:
    """Time sequences for one solver: a genome is the tuple of times from t_max to the clean end.

    Args:
        path: the path.
        solver: what makes a plan of the times.
        steps: number of steps.

    Reference: Li et al. 2023 (AutoDiffusion), section 3.2.
    """

    path: Path
    solver: Solver
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 2:
            raise ValueError(f"steps must be at least 2, or there is no time to choose, not {self.steps}")

    @property
    def _clock(self) -> Clock:
        return Clock(self.path)

    def plan(self, genome: tuple[float, ...]) -> Plan:
        """The solver's plan on these times."""
        return self.solver.compile(self.path, genome)

    def draw(self, rng: random.Random) -> tuple[float, ...]:
        return self._genome([rng.random() for _ in range(self.steps - 1)])

    def cross(
        self, first: tuple[float, ...], second: tuple[float, ...], rng: random.Random
    ) -> tuple[float, ...]:
        pairs = zip(self._positions(first), self._positions(second), strict=True)
        return self._genome([rng.choice(pair) for pair in pairs])

    def mutate(
        self, genome: tuple[float, ...], rng: random.Random, rate: float, width: float
    ) -> tuple[float, ...]:
        positions = self._positions(genome)
        sure = rng.randrange(len(positions))
        return self._genome(
            [rng.gauss(u, width) if rng.random() < rate or i == sure else u for i, u in enumerate(positions)]
        )

    def _positions(self, genome: tuple[float, ...]) -> list[float]:
        return self._clock.positions(genome[1:-1])

    def _genome(self, positions: list[float]) -> tuple[float, ...]:
        return (self.path.t_max, *self._clock.times(positions), self.path.t_clean)
