"""tune: the best plan for a number of network calls, found by search and measured on noise of its own."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path as File

import torch
from torch import Tensor

from fewstep.core.paths import Path
from fewstep.core.search.boss import boss_times, fine_grid
from fewstep.core.search.evolution import Evolution
from fewstep.core.search.objectives import (
    DataDistance,
    Objective,
    ReferenceDistance,
    Starts,
    energy_distance,
    sliced_wasserstein,
)
from fewstep.core.search.report import Tuned
from fewstep.core.search.stages import Clockwork, Search, TuneProgress, first_generation
from fewstep.core.search.state import State
from fewstep.core.search.unified import Steps, UnifiedSpace
from fewstep.core.search.untuned import Untuned, untuned_plans
from fewstep.core.statistics import ModelStatistics

OBJECTIVES = ("reference", "energy", "sliced-wasserstein")
_BOSS_SAMPLES = 64
_BOSS_POINTS = 100


EVOLUTION = Evolution(
    generations=60, population=100, parents=20, crossovers=50, mutations=50, width=0.1, final_width=0.003
)
"""Longer than AutoDiffusion's, which paid for every plan with thousands of images."""


@dataclass(frozen=True)
class TuneSettings:
    """How much is tried.

    Args:
        samples: start noises of the search; as many fresh ones choose among the best, and as many again
            measure what is reported.
        statistic: of the distances to the reference, a name of `objectives.STATISTICS`.
        reference_steps: of the reference.
        batch: samples that run at once; None: all.
        max_minutes: stop the search in time for the last measurements; None: no limit.
        evolution: of the per-step choices.
        reported: how many untuned plans the report measures: the best by a quarter of the search's noises.
        solvers: untuned solvers; None: all of `solvers.names()`.
        grids: untuned grids; None: all of `grids.names()`.

    Raises:
        ValueError: if a number is out of range.
    """

    samples: int = 256
    statistic: str = "mean"
    reference_steps: int = 128
    batch: int | None = None
    max_minutes: float | None = None
    evolution: Evolution = EVOLUTION
    reported: int = 100
    solvers: tuple[str, ...] | None = None
    grids: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError(f"samples must be at least 2, not {self.samples}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1, not {self.batch}")
        if self.reported < 1:
            raise ValueError(f"reported must be at least 1, not {self.reported}")
        if self.reference_steps < 8:
            raise ValueError(f"reference_steps must be at least 8, not {self.reference_steps}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes must be above 0, not {self.max_minutes}")


def tune(
    denoise: Callable[..., Tensor],
    path: Path | None = None,
    budget: int = 5,
    objective: str | Objective = "reference",
    *,
    shape: Sequence[int] | None = None,
    data: Tensor | None = None,
    y: Tensor | None = None,
    statistics: ModelStatistics | None = None,
    settings: TuneSettings = TuneSettings(),
    seed: int = 0,
    state: str | File | None = None,
    on_progress: Callable[[TuneProgress], None] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tuned:
    """Search the plan that is best for a model at a number of network calls.

    All untuned plans are measured, and an evolution over the choices of `UnifiedSolver` begins with the grids
    of the best of them, a BOSS grid and, where given, the statistics of the model. The best plans of the
    search and the best untuned ones then compete on fresh start noises, and the reported scores come from yet
    other ones. For the same arguments the result is the same, also after an interruption.

    Args:
        denoise: a Denoiser, or any callable (x, t) -> x0.
        path: the path; the denoiser's own by default.
        budget: network calls.
        objective: "reference", the distance to a high-accuracy solution from the same noise; "energy" or
            "sliced-wasserstein", the distance to `data` as distributions; or any callable plan -> float,
            smaller is better, which then is its own held-out measure.
        shape: of one sample, (channels, ...); that of the data or of y by default.
        data: real samples (m, ...): the first half for the search, the second for the report.
        y: degraded inputs, at least 3·settings.samples of them, if the path uses them.
        statistics: of the network, as DPM-Solver-v3 estimates them: further starting points of the search.
        settings: how much is tried.
        seed: of the start noises and of the search.
        state: file in which the search keeps what it knows, and from which it goes on.
        on_progress: called now and then with a TuneProgress.
        device: where the samples are made.
        dtype: of the samples.

    Returns:
        The plan with its scores and those of the untuned plans.

    Raises:
        ValueError: if an argument is missing, unknown or inconsistent.
        TypeError: if denoise or objective is of the wrong kind.

    Reference: Liu et al. 2024 (unified sampling framework, S³); Li et al. 2023 (AutoDiffusion); Nguyen et al.
        2023 (BOSS).
    """
    started = time.monotonic()
    path = _checked_path(denoise, path, budget, objective)
    if data is not None and len(data) < 4:
        raise ValueError(f"data must hold at least 4 samples, it holds {len(data)}")
    sizes = _shape(shape, data, y)
    count = settings.samples
    if path.uses_y and (y is None or len(y) < 3 * count):
        raise ValueError(
            f"y must hold 3·samples = {3 * count} inputs for this path, it holds {0 if y is None else len(y)}"
        )

    tell = on_progress or (lambda info: None)
    split = _Split(denoise, path, sizes, y, data, objective, settings, seed, device, dtype)
    key = {
        "path": path.to_config(),
        "budget": budget,
        "objective": objective if isinstance(objective, str) else "callable",
        "shape": list(sizes),
        "seed": seed,
        "samples": count,
        "statistic": settings.statistic,
    }
    kept = State.open(key, None if state is None else File(state))
    tell(TuneProgress("plans", 0.0))
    space = UnifiedSpace(path, budget)
    clock = Clockwork(settings.max_minutes, started)
    search = Search(
        space=space,
        make=split.objective,
        untuned=untuned_plans(path, budget, settings.solvers, settings.grids, clock.is_past_tenth),
        settings=settings.evolution,
        reported=settings.reported,
        seed=seed,
        state=kept,
        clock=clock,
        tell=tell,
    )

    def seeds(ranked: list[Untuned]) -> list[Steps]:
        return first_generation(space, ranked, split.boss(budget), statistics)

    return search.run(seeds, _in_words(objective, settings))


@dataclass(frozen=True, eq=False)
class _Split:
    """The start noises and the data of the search (part 0), the choice (1) and the report (2)."""

    denoise: Callable[..., Tensor]
    path: Path
    shape: tuple[int, ...]
    y: Tensor | None
    data: Tensor | None
    measure: str | Objective
    settings: TuneSettings
    seed: int
    device: torch.device | str
    dtype: torch.dtype

    def starts(self, part: int) -> Starts:
        count = self.settings.samples
        y = None if self.y is None else self.y[part * count : (part + 1) * count].to(self.device, self.dtype)
        shape, seed = (count, *self.shape), self.seed + part * count
        return Starts.draw(
            self.denoise, self.path, shape, seed, y, self.settings.batch, self.device, self.dtype
        )

    def objective(self, part: int) -> Objective:
        if not isinstance(self.measure, str):
            return self.measure
        if self.measure == "reference":
            return ReferenceDistance(
                self.starts(part), self.settings.statistic, self.settings.reference_steps
            )
        if self.data is None:
            raise ValueError(f"data is missing: objective {self.measure!r} compares with it")
        half = len(self.data) // 2
        data = self.data[half:] if part == 2 else self.data[:half]
        distance = energy_distance if self.measure == "energy" else sliced_wasserstein
        return DataDistance(self.starts(part), data, distance)

    def boss(self, budget: int) -> list[tuple[float, ...]]:
        """The BOSS grid, where the path has enough times for one."""
        starts = self.starts(0).first(_BOSS_SAMPLES)
        points = min(_BOSS_POINTS, len(fine_grid(self.path, _BOSS_POINTS)) - 1)
        if budget >= points:
            return []
        return [boss_times(self.denoise, self.path, budget, starts.at(self.path.t_max), starts.y, points)]


def _checked_path(denoise: object, path: Path | None, budget: int, objective: str | Objective) -> Path:
    if not callable(denoise):
        raise TypeError(
            f"denoise must be a Denoiser or a callable (x, t) -> x0, not {type(denoise).__name__}"
        )
    if isinstance(objective, str) and objective not in OBJECTIVES:
        raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)} or a callable, not {objective!r}")
    if not isinstance(objective, str) and not callable(objective):
        raise TypeError(f"objective must be a name or a callable, not {type(objective).__name__}")
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"budget must be a number of network calls, at least 1, not {budget!r}")
    found = path if path is not None else getattr(denoise, "path", None)
    if found is None:
        raise ValueError("path is missing, and denoise is a plain callable without one")
    return found


def _shape(shape: Sequence[int] | None, data: Tensor | None, y: Tensor | None) -> tuple[int, ...]:
    if shape is not None:
        return tuple(shape)
    like = data if data is not None else y
    if like is None:
        raise ValueError("shape is missing: give shape=(channels, ...) of one sample, data or y")
    return tuple(like.shape[1:])


def _in_words(objective: str | Objective, settings: TuneSettings) -> str:
    if objective == "reference":
        return f"{settings.statistic} RMSE to the reference"
    return f"{objective} distance to the data" if isinstance(objective, str) else "objective"
