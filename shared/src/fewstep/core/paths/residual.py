"""Residual paths that move from the clean image to the degraded one: RDDM and Resfusion."""

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
class RDDM(Path):
    """RDDM: x_t = x0 + A·(y - x0) + B·eps; a = 1 - A, b = A, sigma = B; times 0 … N-1, clean at -1.

    ``"default"``: with k = t + 1 and N steps, 1 - A = (N-k)(N-k+1)/(N(N+1)), B² = sum_scale·k(k+1)/(N(N+1)),
    so a = 0 exactly at the last time. ``"converted"``: A = 1 - sqrt(abar), B² = 1 - abar of the linear DDPM
    betas between ``beta_start`` and ``beta_end``; sum_scale is not used.

    Reference: Liu et al. 2024, equations 7 and 15 and section 4.
    """

    steps: int = 1000
    sum_scale: float = 1.0
    schedule: str = "default"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    time: str = "t"
    t_clean = -1.0
    t_min = 0.0
    uses_y = True
    is_discrete = True

    def __post_init__(self) -> None:
        checks.at_least(2, steps=self.steps)
        checks.fraction(sum_scale=self.sum_scale)
        checks.one_of(("default", "converted"), schedule=self.schedule)
        checks.positive(beta_start=self.beta_start)
        checks.increasing(beta_start=self.beta_start, beta_end=self.beta_end)
        checks.fraction(beta_end=self.beta_end)
        checks.one_of(NETWORK_TIMES, time=self.time)

    @property
    def t_max(self) -> float:
        return float(self.steps - 1)

    @cached_property
    def _log_a(self) -> Table:
        betas = torch.linspace(self.beta_start, self.beta_end, self.steps, dtype=torch.float64)
        log_a = 0.5 * torch.log1p(-betas).cumsum(0)
        return Table(torch.cat([log_a.new_zeros(1), log_a]), first=-1)

    def evaluate(self, t):
        if self.schedule == "converted":
            log_a = self._log_a(t)
            return log_a.exp(), -torch.expm1(log_a), (-torch.expm1(2 * log_a)).sqrt()
        done = (t.double() + 1).clamp(0, self.steps)
        left = self.steps - done
        total = self.steps * (self.steps + 1)
        # A = k(2N + 1 - k)/(N(N+1)): written out, so that b keeps its digits near the clean end.
        b = done * (2 * self.steps + 1 - done) / total
        return left * (left + 1) / total, b, (self.sum_scale * done * (done + 1) / total).sqrt()

    def start_weights(self):
        """Return (1, sigma(t_max)): the published start is y plus noise."""
        return 1.0, self.coefficients(self.t_max)[2]

    def transition(self, s, t):
        """Return 1: the chain adds residual and noise and never shrinks the state."""
        return 1.0

    def _time_at_ratio(self, ratio):
        if self.schedule == "converted":
            return self._log_a.inverse(-0.5 * torch.log1p(ratio.square()))
        return super()._time_at_ratio(ratio)


@dataclass(frozen=True)
class Resfusion(Path):
    """Resfusion: a = 2r - 1, b = 1 - r, sigma = sqrt(1 - r²), r = sqrt(abar); times 0 … N-1, clean at -1.

    The DDPM table of ``steps`` betas is cut where r reaches ½, the "acceleration point": there a = 0 and the
    start ½·y + sqrt(¾)·eps needs no x0. If the first r below ½ misses it by more than 0.01 it is replaced by
    ½; otherwise the table ends at the r closest to ½. Between two times log r is linear.

    Args:
        steps: length of the full beta table (T); the kept length N is ``t_max + 1``.
        schedule: ``"linear"`` (betas 0.1/T … 20/T) or ``"cosine"`` (Nichol and Dhariwal, offset 0.008).

    Example:
        >>> path = Resfusion(steps=12)
        >>> path.t_max, path.coefficients(path.t_max)[:2]
        (4.0, (0.0, 0.5))

    Reference: Shi et al. 2024, equations 5, 11 and 15.
    """

    steps: int = 12
    schedule: str = "linear"
    time: str = "t"
    t_clean = -1.0
    t_min = 0.0
    uses_y = True
    is_discrete = True

    def __post_init__(self) -> None:
        checks.at_least(2, steps=self.steps)
        checks.one_of(("linear", "cosine"), schedule=self.schedule)
        checks.one_of(NETWORK_TIMES, time=self.time)

    @property
    def t_max(self) -> float:
        return float(len(self._log_r.values) - 2)

    def _beta(self, index: int) -> float:
        if self.schedule == "linear":
            first, last = 0.1 / self.steps, 20.0 / self.steps
            return min(first + (last - first) * index / (self.steps - 1), 0.999)

        def level(u: float) -> float:
            return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

        return min(1 - level((index + 1) / self.steps) / level(index / self.steps), 0.999)

    @cached_property
    def _log_r(self) -> Table:
        """log r from the clean end to the acceleration point."""
        log_r = [0.0]
        while log_r[-1] > math.log(0.5):
            if len(log_r) > self.steps:
                raise ValueError(f"steps={self.steps} never brings sqrt(abar) down to ½; use more steps")
            log_r.append(log_r[-1] + 0.5 * math.log1p(-self._beta(len(log_r) - 1)))
        below, above = math.exp(log_r[-1]), math.exp(log_r[-2])
        if 0.5 - below > 0.01:
            log_r[-1] = math.log(0.5)
        elif above - 0.5 < 0.5 - below:
            log_r.pop()
        return Table(log_r, first=-1)

    def evaluate(self, t):
        log_r = self._log_r(t)
        r = torch.where(log_r == math.log(0.5), 0.5, log_r.exp())
        return 2 * r - 1, -torch.expm1(log_r), (-torch.expm1(2 * log_r)).sqrt()

    def transition(self, s, t):
        """Return r_t / r_s."""
        r_t, r_s = (1 - self.coefficients(time)[1] for time in (t, s))
        return r_t / r_s

    def resnoise_weight_at(self, t: Tensor) -> Tensor:
        """Return c(t) of the target eps + c·(y - x0), c = (1 - sqrt(alpha))·sqrt(1 - abar)/beta.

        alpha = abar(t)/abar(t - 1) is one step of the table, beta = 1 - alpha.

        Reference: Shi et al. 2024, equation 9.
        """
        log_r = self._log_r(t)
        step = log_r - self._log_r(t.double() - 1)
        # (1 - sqrt(alpha))/(1 - alpha) = 1/(1 + sqrt(alpha))
        return (-torch.expm1(2 * log_r)).sqrt() / (1 + step.exp())

    def resnoise_weight(self, t: float) -> float:
        """Return ``resnoise_weight_at`` at one time as a float."""
        return self._scalars("resnoise_weight", self.resnoise_weight_at, (t,))[0]

    def _time_at_ratio(self, ratio):
        # ratio·(2r - 1) = sqrt(1 - r²), solved for r with snr = 1/ratio, which is finite where a = 0.
        snr = 1 / ratio
        r = (2 + snr * (3 + snr.square()).sqrt()) / (4 + snr.square())
        return self._log_r.inverse(r.log())
