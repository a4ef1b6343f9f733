"""Pairs of neighbouring times: where a consistency loss compares two estimates."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from fewstep.core import grids
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.objectives.trajectory.curricula import Points, check_points, points_at
from fewstep.core.paths import Path
from fewstep.core.training import Moment


@runtime_checkable
class Pairs(Protocol):
    """Draws times t > r of the path, one pair per sample."""

    def __call__(
        self,
        path: Path,
        count: int,
        generator: torch.Generator,
        moment: Moment,
        device: torch.device | str = "cpu",
    ) -> tuple[Tensor, Tensor]: ...


def kappa_at(path: Path, t: Tensor) -> Float64[Tensor, "batch"]:
    """Return sigma/a at every time: the noise level on EDM's path, infinite where a = 0."""
    a, _, sigma = path.evaluate(t)
    return sigma / a


@lru_cache(maxsize=256)
def grid_of(path: Path, grid: str, points: int, device: str) -> Float64[Tensor, "points"]:
    """Return the decreasing times of a grid of so many points from t_max to t_min; it is kept.

    On a table they are whole numbers, of which there may be fewer.
    """
    make: Any = grids.get(grid)
    times = make(path, points - 1, "t_min")
    if path.is_discrete:
        times = tuple(dict.fromkeys(float(round(t)) for t in times))
    with torch.inference_mode(False):
        return torch.tensor(times, dtype=torch.float64, device=device)


def interval_shares(times: Tensor, path: Path, mean: float, std: float) -> Float64[Tensor, "intervals"]:
    """Return the share of ln(sigma/a) ~ N(mean, std²) that lies in every interval of a grid.

    p_i ∝ erf((ln kappa_{i+1} − mean)/(√2·std)) − erf((ln kappa_i − mean)/(√2·std)), whichever way i runs.

    Args:
        times: the grid (points,).
        path: of the times.
        mean: P_mean.
        std: P_std.

    Reference: Song and Dhariwal 2023, section 3.5.
    """
    place = torch.erf((kappa_at(path, times).log() - mean) / (math.sqrt(2) * std))
    mass = place.diff().abs()
    return mass / mass.sum()


@dataclass(frozen=True)
class GridPairs:
    """Neighbours of a grid, t_i and t_{i+1}, from t_max down to t_min.

    Args:
        points: N, or a curriculum of it.
        grid: a name of `grids.names()` that can end at t_min.
        density: (P_mean, P_std) of ln(sigma/a), discretised to the intervals; None: every interval alike.

    Raises:
        ValueError: too few points, an unknown grid, or a standard deviation that is not positive.

    Reference: Song, Dhariwal, Chen and Sutskever 2023, algorithm 2; with a density Song and Dhariwal 2023,
        section 3.5, where P_mean = −1.1 (code with +1.1 is around).
    """

    points: Points = 40
    grid: str = "karras"
    density: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_points(self.points)
        grids.get(self.grid)
        if self.density is not None and not self.density[1] > 0:
            raise ValueError(f"density must be (mean, positive standard deviation), got {self.density!r}")

    def times(
        self, path: Path, moment: Moment, device: torch.device | str = "cpu"
    ) -> Float64[Tensor, "points"]:
        """The grid at a moment."""
        return grid_of(path, self.grid, points_at(self.points, moment), str(device))

    def __call__(
        self,
        path: Path,
        count: int,
        generator: torch.Generator,
        moment: Moment,
        device: torch.device | str = "cpu",
    ) -> tuple[Tensor, Tensor]:
        times = self.times(path, moment, device)
        if self.density is None:
            index = (uniform(count, generator, device) * (len(times) - 1)).long()
        else:
            shares = interval_shares(times, path, *self.density)
            index = torch.multinomial(shares, count, replacement=True, generator=generator)
        return times[index], times[index + 1]
