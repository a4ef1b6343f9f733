"""Straight paths between data and noise: rectified flow / flow matching, with an optional degraded start."""

from dataclasses import dataclass

import torch

from fewstep.core.paths import checks
from fewstep.core.paths.base import Path
from fewstep.core.paths.network_time import NETWORK_TIMES


@dataclass(frozen=True)
class RectifiedFlow(Path):
    """Straight path x = (1-u)·x0 + u·(sqrt(1-p²)·y + p·eps), u = shift·t/(1 + (shift-1)·t), t in [0, 1].

    With ``perturbation`` p = 1 (the usual flow) y plays no part. ``shift`` > 1 spends more of a uniform grid
    at high noise. The network is told u (times 1000) and its velocity is dx/du = x_noise - x0.

    Reference: Liu et al. 2023, equation 1; shift: Esser et al. 2024, equation 23; degraded start: Zhu et al.
    2025 (OFTSR).
    """

    shift: float = 1.0
    perturbation: float = 1.0
    t_min: float = 1e-3
    time: str = "1000t"
    t_max = 1.0
    t_clean = 0.0

    def __post_init__(self) -> None:
        checks.positive(shift=self.shift, t_min=self.t_min)
        checks.fraction(perturbation=self.perturbation)
        checks.increasing(t_min=self.t_min, t_max=self.t_max)
        checks.one_of(NETWORK_TIMES, time=self.time)

    @property
    def uses_y(self) -> bool:
        return self.perturbation < 1

    @property
    def _weight_y(self) -> float:
        return (1 - self.perturbation**2) ** 0.5

    def elapsed(self, t):
        """Return u, the fraction of the straight line."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def evaluate(self, t):
        u = self.elapsed(t.double())
        return 1 - u, self._weight_y * u, self.perturbation * u

    def velocity_at(self, t):
        """Return the constant rates by u: (-1, sqrt(1-p²), p)."""
        one = torch.ones_like(t, dtype=torch.float64)
        return -one, self._weight_y * one, self.perturbation * one

    def _network_clock(self, t):
        return self.elapsed(t)

    def _time_at_ratio(self, ratio):
        u = ratio / (ratio + self.perturbation)
        return u / (self.shift - (self.shift - 1) * u)
