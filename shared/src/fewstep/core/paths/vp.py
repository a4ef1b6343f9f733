"""Variance-preserving paths: a² + sigma² = 1 (Score-SDE, DDPM), and the sub-variance-preserving one."""

import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.core.paths import checks
from fewstep.core.paths.base import Path
from fewstep.core.paths.network_time import NETWORK_TIMES
from fewstep.core.paths.table import Table


class VP(Path):
    """Variance-preserving path: sigma(t) = sqrt(1 - a(t)²), b = 0; a family is one function log a(t).

    Example:
        >>> path = VP.linear()
        >>> a, b, sigma = path.coefficients(0.5)
        >>> round(a * a + sigma * sigma, 12)
        1.0

    Reference: Song et al. 2021, equation 11 and appendix C; Ho et al. 2020.
    """

    @staticmethod
    def linear(beta_min: float = 0.1, beta_max: float = 20.0) -> "LinearVP":
        """Return the continuous path with beta(t) linear from ``beta_min`` to ``beta_max`` on [0, 1]."""
        return LinearVP(beta_min, beta_max)

    @staticmethod
    def cosine(offset: float = 0.008, t_max: float = 0.9946) -> "CosineVP":
        """Return the continuous cosine path of Nichol and Dhariwal."""
        return CosineVP(offset, t_max)

    @staticmethod
    def from_betas(betas: Iterable[float] | Tensor) -> "TableVP":
        """Return the discrete path of a DDPM beta table (any sequence or 1-D tensor)."""
        return TableVP(_floats(betas))

    @abstractmethod
    def log_a(self, t: Tensor) -> Tensor:
        """Return log a at every time of ``t`` (float64)."""

    @abstractmethod
    def time_at_log_a(self, log_a: Tensor) -> Tensor:
        """Return the time at which log a takes the given value."""

    def evaluate(self, t):
        log_a = self.log_a(t.double())
        return log_a.exp(), torch.zeros_like(log_a), (-torch.expm1(2 * log_a)).sqrt()

    def start_weights(self):
        """Return (0, 1): the published samplers start from unit noise whatever sigma(t_max)."""
        return 0.0, 1.0

    def _time_at_ratio(self, ratio):
        return self.time_at_log_a(-0.5 * torch.log1p(ratio * ratio))


@dataclass(frozen=True)
class LinearVP(VP):
    """VP path with beta(t) = beta_min + t·(beta_max - beta_min), t in [0, 1].

    log a = -t²(beta_max - beta_min)/4 - t·beta_min/2.

    Reference: Song et al. 2021, appendix C, equation 33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    time: str = "1000t"
    t_clean = 0.0

    def __post_init__(self) -> None:
        checks.positive(beta_min=self.beta_min, beta_max=self.beta_max)
        checks.increasing(t_min=self.t_min, t_max=self.t_max)
        checks.one_of(NETWORK_TIMES, time=self.time)

    def log_a(self, t):
        return -t * (0.5 * self.beta_min + 0.25 * (self.beta_max - self.beta_min) * t)

    def time_at_log_a(self, log_a):
        return quadratic_time(-2 * log_a, self.beta_min, self.beta_max)


def quadratic_time(integral: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """Return t with beta_min·t + (beta_max - beta_min)·t²/2 = ``integral``, without cancellation."""
    slope = beta_max - beta_min
    return 2 * integral / (beta_min + (beta_min**2 + 2 * slope * integral).sqrt())


@dataclass(frozen=True)
class CosineVP(VP):
    """VP path with a(t) = cos(pi/2·(t+s)/(1+s)) / cos(pi/2·s/(1+s)), t in [0, 1].

    ``t_max=1`` is allowed: there a = 0 exactly and the half log-SNR is -inf.

    Reference: Nichol and Dhariwal 2021, equation 17; t_max of Lu et al. 2022, appendix D.
    """

    offset: float = 0.008
    t_max: float = 0.9946
    t_min: float = 1e-3
    time: str = "1000t"
    t_clean = 0.0

    def __post_init__(self) -> None:
        checks.positive(offset=self.offset)
        checks.increasing(t_min=self.t_min, t_max=self.t_max)
        checks.fraction(t_max=self.t_max)
        checks.one_of(NETWORK_TIMES, time=self.time)

    @property
    def _first_angle(self) -> float:
        return 0.5 * math.pi * self.offset / (1 + self.offset)

    def _a(self, t: Tensor) -> Tensor:
        # The sine of the complement: a(1) = sin(0) is exactly 0.
        a = torch.sin(0.5 * math.pi * (1 - t) / (1 + self.offset)) / math.cos(self._first_angle)
        return torch.where(t == 0, 1.0, a)

    def evaluate(self, t):
        t = t.double()
        # 1 - cos²(u)/cos²(u0) = sin(u - u0)·sin(u + u0)/cos²(u0) keeps its digits near the clean end.
        grown = 0.5 * math.pi * t / (1 + self.offset)
        product = torch.sin(grown) * torch.sin(grown + 2 * self._first_angle)
        return self._a(t), torch.zeros_like(t), product.sqrt() / math.cos(self._first_angle)

    def log_a(self, t):
        return self._a(t).log()

    def time_at_log_a(self, log_a):
        a = log_a.exp() * math.cos(self._first_angle)
        return 1 - (1 + self.offset) * torch.asin(a.clamp(max=1)) * (2 / math.pi)


@dataclass(frozen=True)
class TableVP(VP):
    """Discrete VP path of a DDPM beta table: log a = ½·Σ log(1 - beta), network times 0 … N-1, clean at -1.

    log a is linear between the table's times. A last beta of 1 (zero terminal SNR) gives a = 0 exactly; in
    that last interval a itself is linear.

    Reference: Ho et al. 2020, equation 4; the interpolation of Lu et al. 2022, appendix D.
    """

    betas: tuple[float, ...]
    time: str = "t"
    t_clean = -1.0
    t_min = 0.0
    is_discrete = True

    def __post_init__(self) -> None:
        if not self.betas:
            raise ValueError("betas must hold at least one value, got none")
        wrong = [b for b in self.betas[:-1] if not 0 < b < 1] + [b for b in self.betas[-1:] if not 0 < b <= 1]
        if wrong:
            raise ValueError(f"betas must lie in (0, 1) (the last may be 1), got {wrong[0]!r}")
        checks.one_of(NETWORK_TIMES, time=self.time)

    @property
    def t_max(self) -> float:
        return float(len(self.betas) - 1)

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the last state is pure noise, a = 0."""
        return self.betas[-1] == 1

    @cached_property
    def _table(self) -> Table:
        """log a from the clean end on; a zero last a is left out (its interval is handled apart)."""
        betas = torch.tensor(self.betas[:-1] if self.zero_terminal_snr else self.betas, dtype=torch.float64)
        log_a = 0.5 * torch.log1p(-betas).cumsum(0)
        return Table(torch.cat([log_a.new_zeros(1), log_a]), first=-1)

    def log_a(self, t):
        log_a = self._table(t)
        if self.zero_terminal_snr:
            log_a = log_a + torch.log1p(-(t - (self.t_max - 1)).clamp(0, 1))
        return log_a

    def time_at_log_a(self, log_a):
        t = self._table.inverse(log_a)
        if self.zero_terminal_snr:
            beyond = -torch.expm1(log_a - self._table.on(log_a.device)[-1])
            t = t + beyond.clamp(0, 1)
        return t


def zero_terminal_snr(betas: Iterable[float] | Tensor) -> tuple[float, ...]:
    """Return the beta table shifted and scaled so that its last state is pure noise (last beta 1).

    sqrt(abar) ← (sqrt(abar) - sqrt(abar_T))·sqrt(abar_1)/(sqrt(abar_1) - sqrt(abar_T)).

    Reference: Lin et al. 2024, algorithm 1.
    """
    root = torch.cumprod(1 - torch.tensor(_floats(betas), dtype=torch.float64), 0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    level = root.square()
    alphas = torch.cat([level[:1], level[1:] / level[:-1]])
    return tuple((1 - alphas).tolist())


def _floats(values: Iterable[float] | Tensor) -> tuple[float, ...]:
    return tuple(map(float, values.tolist() if isinstance(values, Tensor) else values))


@dataclass(frozen=True)
class SubVP(Path):
    """Sub-variance-preserving path: a as VP linear, sigma = 1 - a² (a standard deviation), b = 0.

    Reference: Song et al. 2021, section 3.4 and equation 29.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    time: str = "999t"
    t_max = 1.0
    t_clean = 0.0

    def __post_init__(self) -> None:
        checks.positive(beta_min=self.beta_min, beta_max=self.beta_max)
        checks.increasing(t_min=self.t_min, t_max=self.t_max)
        checks.one_of(NETWORK_TIMES, time=self.time)

    def evaluate(self, t):
        t = t.double()
        log_a = -t * (0.5 * self.beta_min + 0.25 * (self.beta_max - self.beta_min) * t)
        return log_a.exp(), torch.zeros_like(t), -torch.expm1(2 * log_a)

    def start_weights(self):
        """Return (0, 1): the prior is the unit normal."""
        return 0.0, 1.0

    def _time_at_ratio(self, ratio):
        # sigma/a = 1/a - a, so a = exp(-asinh(ratio/2)).
        return quadratic_time(2 * torch.asinh(0.5 * ratio), self.beta_min, self.beta_max)
