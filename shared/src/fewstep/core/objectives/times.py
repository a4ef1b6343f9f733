"""Which times a loss looks at."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from fewstep.core.clock import time_of_clock
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.paths import Path


@runtime_checkable
class TimeSampler(Protocol):
    """Draws one time of the path per sample."""

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Float64[Tensor, "count"]: ...


def _normal(count: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    return torch.randn(count, dtype=torch.float64, device=device, generator=generator)


def _inside(path: Path, t: Tensor) -> Tensor:
    t = t.clamp(path.t_min, path.t_max)
    return t.round() if path.is_discrete else t


@dataclass(frozen=True)
class Uniform:
    """Uniform between two times of the path; the defaults are its ends.

    Args:
        low: None: t_min.
        high: None: t_max.
    """

    low: float | None = None
    high: float | None = None

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        low = path.t_min if self.low is None else self.low
        high = path.t_max if self.high is None else self.high
        if path.is_discrete:  # every time of the table as likely as any other
            return (low + (uniform(count, generator, device) * (high - low + 1)).floor()).clamp(low, high)
        return low + (high - low) * uniform(count, generator, device)


@dataclass(frozen=True)
class UniformClock:
    """tau uniform on the normalised clock: rectified flow's uniform time, on any path.

    Args:
        low: smallest tau; None: that of t_min.
        high: largest tau; None: that of t_max.

    Reference: Liu, Gong and Liu 2023, "Flow Straight and Fast", equation 1.
    """

    low: float | None = None
    high: float | None = None

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        low, high = clock_ends(path)
        low, high = low if self.low is None else self.low, high if self.high is None else self.high
        tau = low + (high - low) * uniform(count, generator, device)
        return _inside(path, time_of_clock(path, tau))


def clock_ends(path: Path) -> tuple[float, float]:
    """Return tau at t_min and at t_max."""
    (a, _, sigma), (a_end, _, sigma_end) = path.coefficients(path.t_min), path.coefficients(path.t_max)
    return sigma / (a + sigma), sigma_end / (a_end + sigma_end)


@dataclass(frozen=True)
class LogNormal:
    """ln(sigma/a) ~ N(mean, std²).

    Reference: Karras et al. 2022, table 1 (P_mean, P_std).
    """

    mean: float = -1.2
    std: float = 1.2

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        log_kappa = self.mean + self.std * _normal(count, generator, device)
        return _inside(path, path.time_at(-log_kappa))


@dataclass(frozen=True)
class LogitNormal:
    """logit(tau) ~ N(mean, std²) on the normalised clock, which is the time of rectified flow.

    As logit(tau) = ln(sigma/a) this is `LogNormal`; both names are in use.

    Reference: Esser et al. 2024, "Scaling Rectified Flow Transformers", section 3.1.
    """

    mean: float = 0.0
    std: float = 1.0

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        return LogNormal(self.mean, self.std)(path, count, generator, device)


@dataclass(frozen=True)
class UShaped:
    """Density ∝ exp(a·tau) + exp(a·(1 − tau)): both ends of the clock are seen more often.

    Reference: Lee, Lin and Fanti 2024, "Improving the Training of Rectified Flows", section 4.1; the density
        is that of the published code, where a = 4 is the value of the paper.
    """

    a: float = 4.0

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        # The density is that of cosh(a·u), u = tau − 1/2, whose integral from −1/2 is sinh(a·u) + sinh(a/2).
        position = 2 * uniform(count, generator, device) - 1
        tau = 0.5 + torch.asinh(position * math.sinh(self.a / 2)) / self.a
        return _inside(path, time_of_clock(path, tau.clamp(1e-12, 1 - 1e-12)))


@dataclass(frozen=True)
class Fixed:
    """Always the same time (None: t_max)."""

    t: float | None = None

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        t = path.t_max if self.t is None else self.t
        return torch.full((count,), t, dtype=torch.float64, device=device)


@dataclass(frozen=True)
class Choice:
    """One of several times, with given probabilities (None: all alike)."""

    times: tuple[float, ...]
    shares: tuple[float, ...] | None = None

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        shares = torch.tensor(self.shares or (1.0,) * len(self.times), device=device)
        chosen = torch.multinomial(shares, count, replacement=True, generator=generator)
        return torch.tensor(self.times, dtype=torch.float64, device=device)[chosen]


TIMES: dict[str, Callable[[], TimeSampler]] = {
    "uniform": Uniform,
    "uniform-clock": UniformClock,
    "log-normal": LogNormal,
    "logit-normal": LogitNormal,
    "u-shaped": UShaped,
}


def time_sampler(name: str | TimeSampler) -> TimeSampler:
    """The sampler of that name with its defaults (a sampler is returned as it is).

    Raises:
        ValueError: unknown name.
    """
    if not isinstance(name, str):
        return name
    if name not in TIMES:
        raise ValueError(f"times must be one of {', '.join(TIMES)}, got {name!r}")
    return TIMES[name]()
