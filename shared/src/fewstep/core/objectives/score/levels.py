"""Which times a student's samples are noised to before teacher and fake score look at them."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.core.clock import clock_at, time_of_clock
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.objectives.score.base import Made
from fewstep.core.objectives.times import TimeSampler
from fewstep.core.paths import Path


@runtime_checkable
class Levels(Protocol):
    """Draws one time per sample, knowing how the sample was made."""

    def __call__(self, path: Path, made: Made, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Anywhere:
    """Times that do not depend on how the sample was made.

    Args:
        times: their distribution.
    """

    times: TimeSampler

    def __call__(self, path: Path, made: Made, generator: torch.Generator) -> Tensor:
        """The times (batch,)."""
        return self.times(path, len(made.x), generator, made.x.device)


@dataclass(frozen=True)
class BelowStart:
    """Uniform on the clock between the clean end and the time of the call that made the sample.

    What lies above is settled: the call got it in its input.

    Args:
        share: of that stretch, from the clean end.

    Reference: Liu et al. 2025, "Decoupled DMD", section 4 (its time runs from noise to data, so it has
        tau > t).
    """

    share: float = 1.0

    def __call__(self, path: Path, made: Made, generator: torch.Generator) -> Tensor:
        """The times (batch,)."""
        u = uniform(len(made.x), generator, made.x.device)
        tau = (self.share * u * clock_at(path, made.start)).clamp(1e-12, 1 - 1e-12)
        return within(path, time_of_clock(path, tau))


@dataclass(frozen=True)
class Karras:
    """kappa = sigma/a uniform in the rho-th root: kappa = (k0 + u·(k1 − k0))^rho, u in [first, last].

    Args:
        first: share of the way at which the range begins.
        last: and ends; SiD stops at 0.8, where kappa is 24.4, DMD2 draws from 0.02 to 0.98.
        lowest: kappa at u = 0.
        highest: kappa at u = 1.
        rho: of the grid.

    Raises:
        ValueError: the range is empty or leaves [0, 1].

    Reference: Karras et al. 2022, eq. 5; Zhou et al. 2024 (SiD), section 4; Yin et al. 2024 (DMD2).
    """

    first: float = 0.0
    last: float = 0.8
    lowest: float = 0.002
    highest: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 <= self.first < self.last <= 1:
            raise ValueError(f"first < last must lie in [0, 1], got {self.first} and {self.last}")
        if not 0 < self.lowest < self.highest:
            raise ValueError(f"lowest must lie in (0, highest), got {self.lowest} and {self.highest}")

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        """The times (count,)."""
        return self.at(path, self.first + (self.last - self.first) * uniform(count, generator, device))

    def at(self, path: Path, place: Tensor) -> Tensor:
        """The times at shares of the way, 0 the cleanest."""
        low, high = self.lowest ** (1 / self.rho), self.highest ** (1 / self.rho)
        kappa = (low + place.double() * (high - low)) ** self.rho
        return within(path, path.time_at(-kappa.log()))


def within(path: Path, t: Tensor) -> Tensor:
    """The nearest times at which a network may be asked."""
    t = t.clamp(path.t_min, path.t_max)
    return t.round() if path.is_discrete else t
