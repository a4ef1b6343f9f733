"""Schrödinger bridges between data and the degraded input, free of noise at both ends."""

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.paths import checks
from fewstep.core.paths.base import Path
from fewstep.core.paths.network_time import NETWORK_TIMES
from fewstep.core.paths.vp import quadratic_time


class SchrodingerBridge(Path):
    """Bridge x0 ↔ y of a reference process with scale alpha(t) and accumulated variance s²(t), t in [0, 1].

    With S² = s²(1): a = alpha·(S² - s²)/S², b = alpha/alpha(1)·s²/S², sigma = alpha·s·sqrt(S² - s²)/S. At
    t = 1 the state is y exactly (a = sigma = 0), at t = 0 it is x0. log(a/sigma) → -inf at t = 1.

    Reference: Chen et al. 2023 (Schrodinger bridges beat diffusion models on text-to-speech), proposition 3.1
    and table 1; Liu et al. 2023 (I2SB), proposition 3.3.
    """

    t_max = 1.0
    t_clean = 0.0
    uses_y = True

    @staticmethod
    def ve(k: float = 2.6, c: float = 0.4) -> "VEBridge":
        """Return the variance-exploding bridge of Jukić et al. 2024."""
        return VEBridge(k, c)

    @staticmethod
    def vp(beta_min: float = 0.01, beta_max: float = 20.0) -> "VPBridge":
        """Return the variance-preserving bridge."""
        return VPBridge(beta_min, beta_max)

    @staticmethod
    def gmax(beta_min: float = 0.01, beta_max: float = 50.0) -> "GmaxBridge":
        """Return the bridge whose squared diffusion grows linearly."""
        return GmaxBridge(beta_min, beta_max)

    @staticmethod
    def i2sb(beta_min: float = 0.1, beta_max: float = 0.3) -> "I2SBBridge":
        """Return the bridge of I2SB, whose diffusion is largest half-way."""
        return I2SBBridge(beta_min, beta_max)

    @abstractmethod
    def variance(self, t: Tensor) -> Tensor:
        """Return s²(t), the variance that the reference process has accumulated (divided by alpha²)."""

    @abstractmethod
    def time_at_variance(self, variance: Tensor) -> Tensor:
        """Return the time at which s² takes the given value."""

    def log_alpha(self, t: Tensor) -> Tensor:
        """Return log alpha(t); here 0."""
        return torch.zeros_like(t)

    def _parts(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (s², S² - s², S²)."""
        t = t.double()
        total = self.variance(torch.ones((), dtype=torch.float64, device=t.device))
        done = torch.where(t == 1, total, self.variance(t))
        return done, total - done, total

    def evaluate(self, t):
        t = t.double()
        done, left, total = self._parts(t)
        log_alpha = self.log_alpha(t)
        alpha = log_alpha.exp()
        to_end = (log_alpha - self.log_alpha(torch.ones_like(t))).exp()
        return alpha * left / total, to_end * done / total, alpha * (done * left).sqrt() / total.sqrt()

    def half_log_snr_at(self, t):
        """Return log(a/sigma) = ½·log((S² - s²)/(S²·s²)): finite on (0, 1), -inf at the pinned end t = 1."""
        done, left, total = self._parts(t)
        return 0.5 * (left.log() - total.log() - done.log())

    def start_weights(self):
        """Return (1, 0): a bridge starts at y itself."""
        return 1.0, 0.0

    def _time_at_ratio(self, ratio):
        total = self.variance(torch.ones((), dtype=torch.float64, device=ratio.device))
        # s² = S²·ratio²/(S² + ratio²), in a form that survives ratio = inf
        return self.time_at_variance(total / (1 + total / ratio.square()))


@dataclass(frozen=True)
class VEBridge(SchrodingerBridge):
    """Variance-exploding bridge: s²(t) = c·(k^(2t) - 1)/(2·ln k), alpha = 1.

    Reference: Jukić et al. 2024, table 1.
    """

    k: float = 2.6
    c: float = 0.4
    t_min: float = 1e-4
    time: str = "t"

    def __post_init__(self) -> None:
        checks.positive(c=self.c)
        checks.increasing(one=1.0, k=self.k)
        _check_times(self.t_min, self.time)

    def variance(self, t):
        rate = 2 * math.log(self.k)
        return self.c * torch.expm1(rate * t) / rate

    def time_at_variance(self, variance):
        rate = 2 * math.log(self.k)
        return torch.log1p(variance * (rate / self.c)) / rate


@dataclass(frozen=True)
class VPBridge(SchrodingerBridge):
    """Variance-preserving bridge: alpha = exp(-B/2), s² = exp(B) - 1, B(t) = ∫beta with beta linear in t.

    Reference: Chen et al. 2023, table 1.
    """

    beta_min: float = 0.01
    beta_max: float = 20.0
    t_min: float = 1e-4
    time: str = "t"

    def __post_init__(self) -> None:
        checks.positive(beta_min=self.beta_min, beta_max=self.beta_max)
        _check_times(self.t_min, self.time)

    def log_alpha(self, t):
        return -0.5 * _linear_integral(t, self.beta_min, self.beta_max)

    def variance(self, t):
        return torch.expm1(_linear_integral(t, self.beta_min, self.beta_max))

    def time_at_variance(self, variance):
        return quadratic_time(torch.log1p(variance), self.beta_min, self.beta_max)


@dataclass(frozen=True)
class GmaxBridge(SchrodingerBridge):
    """Bridge without drift and with a squared diffusion linear in t: s²(t) = ∫beta, alpha = 1.

    Reference: Chen et al. 2023, table 1.
    """

    beta_min: float = 0.01
    beta_max: float = 50.0
    t_min: float = 1e-4
    time: str = "t"

    def __post_init__(self) -> None:
        checks.positive(beta_min=self.beta_min, beta_max=self.beta_max)
        _check_times(self.t_min, self.time)

    def variance(self, t):
        return _linear_integral(t, self.beta_min, self.beta_max)

    def time_at_variance(self, variance):
        return quadratic_time(variance, self.beta_min, self.beta_max)


@dataclass(frozen=True)
class I2SBBridge(SchrodingerBridge):
    """I2SB: squared diffusion symmetric about t = ½, its root linear on each half; alpha = 1.

    sqrt(beta(t)) = sqrt(beta_min) + (sqrt(beta_max) - sqrt(beta_min))·min(t, 1-t).

    Reference: Liu et al. 2023 (I2SB), section 5 and proposition 3.3.
    """

    beta_min: float = 0.1
    beta_max: float = 0.3
    t_min: float = 1e-4
    time: str = "1000t"

    def __post_init__(self) -> None:
        checks.positive(beta_min=self.beta_min)
        checks.increasing(beta_min=self.beta_min, beta_max=self.beta_max)
        _check_times(self.t_min, self.time)

    @property
    def _roots(self) -> tuple[float, float]:
        """(sqrt(beta) at t = 0, its slope)."""
        first = self.beta_min**0.5
        return first, self.beta_max**0.5 - first

    def _half(self, t: Tensor) -> Tensor:
        """Return the integral of beta from 0 to t <= ½, free of cancellation."""
        first, slope = self._roots
        return t * (first**2 + slope * t * (first + slope * t / 3))

    def variance(self, t):
        half = self._half(torch.full_like(t, 0.5))
        return torch.where(
            t <= 0.5, self._half(t.clamp(max=0.5)), 2 * half - self._half((1 - t).clamp(max=0.5))
        )

    def time_at_variance(self, variance):
        first, slope = self._roots
        half = self._half(torch.full_like(variance, 0.5))
        mirrored = variance > half
        integral = torch.where(mirrored, 2 * half - variance, variance)
        t = ((first**3 + 3 * slope * integral) ** (1 / 3) - first) / slope
        return torch.where(mirrored, 1 - t, t)


def _linear_integral(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    return t * (beta_min + 0.5 * (beta_max - beta_min) * t)


def _check_times(t_min: float, time: str) -> None:
    checks.positive(t_min=t_min)
    checks.increasing(t_min=t_min, t_max=1.0)
    checks.one_of(NETWORK_TIMES, time=time)
