"""GM-A: the mixture on which the accuracy of samplers is compared, its three tracks and their exact ends."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from tests.core.goldens import Golden
from torch import Tensor

from fewstep.core import grids, paths
from fewstep.core.sample import sample
from fewstep.core.solvers import Solver, StepwiseSolver
from fewstep.core.solvers.teleported import Teleported
from fewstep.core.starts.teleport import GaussianModel
from fewstep.core.statistics import ModelStatistics, estimate_statistics

GOLDEN = Golden("gm_accuracy")
MIXTURE = GOLDEN.mixture()
BUDGETS = (5, 8, 10, 15, 20)


class Error(NamedTuple):
    """Root mean square over all samples, and median, of the per-sample RMSE."""

    rms: float
    median: float
    calls: int = 0

    def __str__(self) -> str:
        return f"{self.rms:.1e} / {self.median:.1e}"


@dataclass(frozen=True)
class Track:
    """A path with a start state and the exact solutions from there.

    Attributes:
        first: time of the start state.
        scale: start state divided by the stored noise.
        ends: name of the exact solution for each way in which a grid may end.
    """

    name: str
    path: paths.Path
    first: float
    scale: float
    ends: dict[str, str]

    @property
    def start(self) -> Tensor:
        return self.scale * GOLDEN.z

    def times(self, grid: str, steps: int, final: str = "clean") -> tuple[float, ...]:
        """A grid by name whose first time is that of the start state."""
        return (self.first, *grids.get(grid)(self.path, steps, final=final)[1:])  # type: ignore[call-arg]

    def error(self, x: Tensor, final: str, calls: int = 0) -> Error:
        each = (x - GOLDEN.tensors[f"out.{self.ends[final]}"]).square().flatten(1).mean(1).sqrt()
        return Error(each.square().mean().sqrt().item(), each.median().item(), calls)

    def denoiser(self) -> "Counted":
        return Counted(MIXTURE.denoiser(self.path))


class Counted:
    """A denoiser that counts its calls and gives up beyond a limit."""

    def __init__(self, denoise: Callable[[Tensor, float | Tensor], Tensor], limit: float = math.inf) -> None:
        self._denoise, self.limit, self.calls = denoise, limit, 0

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        self.calls += 1
        if self.calls > self.limit:
            raise OverBudget
        return self._denoise(x, t)


class OverBudget(Exception):
    """The solver wants more calls than it may have."""


class Stochastic(Exception):
    """The solver draws noise, so that it has no exact trajectory to compare with."""


TRACKS = {
    track.name: track
    for track in (
        Track("edm", paths.EDM(), 80.0, 80.0, {"t_min": "edm80_to_0.002", "clean": "edm80_to_1e-6"}),
        Track(
            "vp",
            paths.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)),
            999.0,
            1.0,
            {"clean": "ddpm_linear_t999_to_x0"},
        ),
        Track("flow", paths.RectifiedFlow(), 0.999, 1.0, {"clean": "flow_0.999_to_x0"}),
    )
}


def measured(track: Track, solver: Solver, grid: str, budget: int, final: str = "clean") -> Error | None:
    """The error with at most `budget` calls: with the most steps that they allow, None if none do.

    Raises:
        Stochastic: if the solver draws noise.
    """
    adaptive = isinstance(solver, StepwiseSolver) and _tried(track, solver, grid, 1, final, budget) is None
    for steps in range(budget, 0, -1):
        if adaptive:  # too many calls even over one step of the grid
            return None
        if not isinstance(solver, StepwiseSolver):
            plan = solver.compile(track.path, track.times(grid, steps, final))
            if plan.draws:
                raise Stochastic
            if plan.nfe > budget:
                continue
        found = _tried(track, solver, grid, steps, final, budget)
        if found is not None:
            return found
    return None


def _tried(track: Track, solver: Solver, grid: str, steps: int, final: str, budget: int) -> Error | None:
    denoise = track.denoiser()
    denoise.limit = budget
    try:
        times = track.times(grid, steps, final)
        x = sample(denoise, track.path, solver, grid=times, x=track.start, noise=_refuse)
    except OverBudget:
        return None
    return track.error(x, final, denoise.calls)


def _refuse(like: Tensor) -> Tensor:
    raise Stochastic


@cache
def statistics(track: str = "edm", intervals: int = 120, samples: int = 2048) -> ModelStatistics:
    """Statistics of the exact denoiser on a track, estimated from draws of the mixture."""
    path = TRACKS[track].path
    return estimate_statistics(
        MIXTURE.denoiser(path),
        path,
        lambda count, generator: MIXTURE.draw(count, (3, 4, 4), generator),
        intervals=intervals,
        samples=samples,
        batch=512,
    )


@cache
def gaussian() -> GaussianModel:
    """Mean and covariance of draws of the mixture."""
    return GaussianModel.from_data(MIXTURE.draw(4096, (3, 4, 4), torch.Generator().manual_seed(1)))


def teleported(track: Track, solver: Solver, kappa: float, grid: str, budget: int, final: str) -> Error:
    """The error after a jump to sigma/a = kappa, with all calls spent below it."""
    whole = Teleported(solver, gaussian(), until=-math.log(kappa))
    below = whole.grid(lambda path, steps: grids.get(grid)(path, steps, final=final))  # type: ignore[call-arg]
    times = (track.first, *below(track.path, budget)[1:])
    denoise = track.denoiser()
    x = sample(denoise, track.path, whole, grid=times, x=track.start, noise=_refuse)
    return track.error(x, final, denoise.calls)
