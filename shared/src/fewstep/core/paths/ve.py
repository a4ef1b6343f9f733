"""Variance-exploding paths: a = 1 and only the noise grows (Score-SDE VE, EDM)."""

import math
from dataclasses import dataclass

import torch

from fewstep.core.paths import checks
from fewstep.core.paths.base import Path
from fewstep.core.paths.network_time import NETWORK_TIMES


@dataclass(frozen=True)
class VE(Path):
    """Geometric noise levels: sigma(t) = sigma_min·(sigma_max/sigma_min)^t on (0, 1], a = 1, b = 0.

    sigma(0) = 0 by convention: a step to t = 0 is the final denoising of the published samplers.

    Reference: Song et al. 2021, appendix C, equation 31.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    time: str = "sigma"
    t_max = 1.0
    t_clean = 0.0

    def __post_init__(self) -> None:
        checks.positive(sigma_min=self.sigma_min, t_min=self.t_min)
        checks.increasing(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        checks.increasing(t_min=self.t_min, t_max=self.t_max)
        checks.one_of(NETWORK_TIMES, time=self.time)

    @property
    def _rate(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    def evaluate(self, t):
        t = t.double()
        sigma = self.sigma_min * torch.exp(self._rate * t)
        return torch.ones_like(t), torch.zeros_like(t), torch.where(t > 0, sigma, 0.0)

    def _time_at_ratio(self, ratio):
        return ((ratio / self.sigma_min).log() / self._rate).clamp_min(self.t_min)


@dataclass(frozen=True)
class EDM(Path):
    """The path whose time is the noise level: sigma(t) = t, a = 1, b = 0.

    The network sees x/sqrt(sigma² + sigma_data²) and is told ln(sigma)/4.

    Reference: Karras et al. 2022, table 1.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    time: str = "log-sigma/4"
    t_clean = 0.0

    def __post_init__(self) -> None:
        checks.positive(sigma_min=self.sigma_min, sigma_data=self.sigma_data)
        checks.increasing(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        checks.one_of(NETWORK_TIMES, time=self.time)

    @property
    def t_max(self) -> float:
        return self.sigma_max

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_limit(self) -> float:
        """Any noise level: churn may go above sigma_max."""
        return math.inf

    def evaluate(self, t):
        t = t.double()
        return torch.ones_like(t), torch.zeros_like(t), t

    def input_scale_at(self, t):
        return (t.double().square() + self.sigma_data**2).rsqrt()

    def _time_at_ratio(self, ratio):
        return ratio
