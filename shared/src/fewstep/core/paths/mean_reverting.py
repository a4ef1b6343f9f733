"""Mean-reverting paths: the data relaxes towards the degraded input (IR-SDE, SGMSE+)."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fewstep.core.paths import checks
from fewstep.core.paths.base import Path
from fewstep.core.paths.network_time import NETWORK_TIMES
from fewstep.core.paths.table import Table


@dataclass(frozen=True)
class MeanReverting(Path):
    """IR-SDE: dx = theta·(y - x)·dt + max_sigma·sqrt(2·theta)·dw; a = exp(-Theta), b = 1 - a.

    sigma = max_sigma·sqrt(1 - a²), with Theta the running sum of theta, scaled so that a(t_max) = ``eps``.
    Times are 0 … steps with 0 the clean end; the network is told the index. Between two times Theta is
    linear.

    ``subtract_first`` leaves theta_0 out of the sum, so that a(0) = 1 exactly, as the IR-SDE code does; the
    mr-sampler and DA-CLIP code keep it, so that a little noise stays at time 0. A checkpoint needs the
    table it was trained with.

    Args:
        max_sigma: stationary standard deviation in image units; 1 and above are taken as 8-bit levels.
        steps: number of steps (T).
        schedule: theta table, ``"cosine"``, ``"linear"`` or ``"constant"``.
        eps: what is left of x0 at the last time.
        subtract_first: leave theta_0 out of the running sum.

    Reference: Luo et al. 2023, equations 3 to 6; Li et al. 2025 (samplers).
    """

    max_sigma: float = 50.0
    steps: int = 100
    schedule: str = "cosine"
    eps: float = 0.005
    subtract_first: bool = True
    time: str = "t"
    t_clean = 0.0
    t_min = 1.0
    uses_y = True
    is_discrete = True

    def __post_init__(self) -> None:
        checks.positive(max_sigma=self.max_sigma, eps=self.eps)
        checks.increasing(eps=self.eps, one=1.0)
        checks.at_least(2, steps=self.steps)
        checks.one_of(("cosine", "linear", "constant"), schedule=self.schedule)
        checks.one_of(NETWORK_TIMES, time=self.time)

    @property
    def t_max(self) -> float:
        return float(self.steps)

    @property
    def noise_scale(self) -> float:
        """The stationary standard deviation, ``max_sigma`` in image units."""
        return self.max_sigma / 255 if self.max_sigma >= 1 else self.max_sigma

    @cached_property
    def theta(self) -> Tensor:
        """The relaxation rates at the times 0 … steps, before scaling."""
        count = self.steps + 1
        if self.schedule == "constant":
            return torch.ones(count, dtype=torch.float64)
        if self.schedule == "linear":
            return torch.linspace(0.1 / count, 20.0 / count, count, dtype=torch.float64)
        u = torch.arange(count + 2, dtype=torch.float64) / (count + 1)
        level = torch.cos((u + 0.008) / 1.008 * (0.5 * math.pi)).square()
        return 1 - (level / level[0])[1:-1]

    @cached_property
    def _sum(self) -> Table:
        """Theta = -log a at the times 0 … steps."""
        with torch.inference_mode(False):
            total = self.theta.cumsum(0)
            if self.subtract_first:
                total = total - total[0]
            return Table(total * (-math.log(self.eps) / total[-1]), first=0)

    def evaluate(self, t):
        total = self._sum(t)
        return (-total).exp(), -torch.expm1(-total), self.noise_scale * (-torch.expm1(-2 * total)).sqrt()

    def start_weights(self):
        """Return (1, max_sigma): the published start is the stationary law around y."""
        return 1.0, self.noise_scale

    def v_weights(self, a, sigma):
        """Return (u, w, s) of v = a·max_sigma·eps - (sigma/max_sigma)·(x0 - y).

        Reference: Li et al. 2025, velocity parameterisation.
        """
        scale = self.noise_scale
        return -sigma / scale, a * scale, sigma / scale

    def _time_at_ratio(self, ratio):
        return self._sum.inverse(0.5 * torch.log1p((ratio / self.noise_scale).square()))


@dataclass(frozen=True)
class OUVE(Path):
    """SGMSE+: Ornstein–Uhlenbeck decay to y with exploding noise; a = exp(-theta·t), b = 1 - a, t in [0, 1].

    sigma² = sigma_min²·exp(-2·theta·t)·(exp(2·(theta+L)·t) - 1)·L/(theta+L), L = ln(sigma_max/sigma_min).

    Example:
        >>> round(OUVE().coefficients(1.0)[2], 3)
        0.389

    Reference: Richter et al. 2023, equations 7 to 9.
    """

    theta: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5
    t_min: float = 0.03
    time: str = "t"
    t_max = 1.0
    t_clean = 0.0
    uses_y = True

    def __post_init__(self) -> None:
        checks.positive(theta=self.theta, sigma_min=self.sigma_min, t_min=self.t_min)
        checks.increasing(sigma_min=self.sigma_min, sigma_max=self.sigma_max)
        checks.increasing(t_min=self.t_min, t_max=self.t_max)
        checks.one_of(NETWORK_TIMES, time=self.time)

    @property
    def _rate(self) -> float:
        return self.theta + math.log(self.sigma_max / self.sigma_min)

    @property
    def _noise_factor(self) -> float:
        return self.sigma_min * ((self._rate - self.theta) / self._rate) ** 0.5

    def evaluate(self, t):
        t = t.double()
        a = torch.exp(-self.theta * t)
        sigma = self._noise_factor * a * torch.expm1(2 * self._rate * t).sqrt()
        return a, -torch.expm1(-self.theta * t), sigma

    def start_weights(self):
        """Return (1, sigma(1)): the published prior is centred on y although a(1) > 0."""
        return 1.0, self.coefficients(self.t_max)[2]

    def _time_at_ratio(self, ratio):
        return torch.log1p((ratio / self._noise_factor).square()) / (2 * self._rate)
