"""The residual-shifting path of ResShift: from the clean image to the degraded one, with noise."""

import math
from dataclasses import dataclass
from functools import cached_property

from fewstep.core.paths import checks
from fewstep.core.paths.base import Path
from fewstep.core.paths.network_time import NETWORK_TIMES
from fewstep.core.paths.table import Table

RESPACINGS = ("official", "end-anchored")


@dataclass(frozen=True)
class ResShift(Path):
    """ResShift: a = 1 - eta, b = eta, sigma = kappa·sqrt(eta); times 0 … N-1, clean at -1.

    sqrt(eta_i) = e0·q^((i/(T-1))^power·(T-1)) with e0 = min(min_noise_level/kappa, min_noise_level) and
    q^(T-1) = etas_end/e0, so ``etas_end`` bounds sqrt(eta). Between two times sqrt(eta) is linear.

    ``respaced`` keeps that many of the ``steps`` noise levels: ``"official"`` keeps every (steps/respaced)-th
    from the first one, which leaves the noisiest out; ``"end-anchored"`` keeps first and last. A respaced
    network is told the original index.

    Args:
        steps: length of the table the network was trained with (T).
        kappa: noise strength relative to the shift.
        min_noise_level: standard deviation of the noise at time 0, divided by kappa where kappa > 1.
        etas_end: sqrt(eta) at the last time.
        power: exponent that bends the geometric schedule.
        latent: the input is scaled by 1/sqrt(kappa²·eta + 1) (latents); otherwise by
            1/(3·kappa·sqrt(eta) + 1) (pixels).
        respaced: number of noise levels to keep; all by default.
        respacing: which ones.

    Example:
        >>> [round(ResShift().coefficients(t)[1] ** 0.5, 4) for t in range(4)]
        [0.1, 0.5201, 0.7614, 0.99]

    Reference: Yue, Wang and Loy 2023, equations 1 and 10.
    """

    steps: int = 4
    kappa: float = 2.0
    min_noise_level: float = 0.2
    etas_end: float = 0.99
    power: float = 0.3
    latent: bool = True
    respaced: int | None = None
    respacing: str = "official"
    time: str = "t"
    t_clean = -1.0
    t_min = 0.0
    uses_y = True
    is_discrete = True

    def __post_init__(self) -> None:
        checks.at_least(2, steps=self.steps)
        checks.positive(kappa=self.kappa, min_noise_level=self.min_noise_level, power=self.power)
        checks.fraction(etas_end=self.etas_end)
        checks.increasing(min_noise_level=self._first, etas_end=self.etas_end)
        checks.one_of(RESPACINGS, respacing=self.respacing)
        checks.one_of(NETWORK_TIMES, time=self.time)
        if self.respaced is not None:
            checks.at_least(1, respaced=self.respaced)
            if self.respaced > self.steps:
                raise ValueError(f"respaced must be at most steps={self.steps}, got {self.respaced}")

    @property
    def _first(self) -> float:
        return min(self.min_noise_level / self.kappa, self.min_noise_level)

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """Original indices of the kept noise levels, which the network is told."""
        if self.respaced is None:
            return tuple(range(self.steps))
        if self.respacing == "official":
            return tuple(int(self.steps / self.respaced * i) for i in range(self.respaced))
        if self.respaced == 1:
            return (self.steps - 1,)
        last = self.steps - 1
        return tuple(round(i * last / (self.respaced - 1)) for i in range(self.respaced))

    @cached_property
    def sqrt_etas(self) -> tuple[float, ...]:
        """sqrt(eta) at the times 0 … N-1."""
        last = self.steps - 1
        increase = math.exp(math.log(self.etas_end / self._first) / last)
        return tuple(self._first * increase ** ((i / last) ** self.power * last) for i in self.indices)

    @cached_property
    def _table(self) -> Table:
        return Table((0.0, *self.sqrt_etas), first=-1)

    @cached_property
    def _original_index(self) -> Table:
        return Table((-1.0, *map(float, self.indices)), first=-1)

    @property
    def t_max(self) -> float:
        return float(len(self.indices) - 1)

    def evaluate(self, t):
        sqrt_eta = self._table(t)
        eta = sqrt_eta.square()
        return 1 - eta, eta, self.kappa * sqrt_eta

    def start_weights(self):
        """Return (1, kappa·sqrt(eta_T)): the published start is y plus noise although b(T) < 1."""
        return 1.0, self.coefficients(self.t_max)[2]

    def transition(self, s, t):
        """Return 1: the chain adds a shift and noise and never shrinks the state."""
        return 1.0

    def input_scale_at(self, t):
        noise = self.kappa * self._table(t)
        return (noise.square() + 1).rsqrt() if self.latent else 1 / (3 * noise + 1)

    def _network_clock(self, t):
        return self._original_index(t)

    def _time_at_ratio(self, ratio):
        # ratio·(1 - q²) = kappa·q for q = sqrt(eta)
        return self._table.inverse(2 * ratio / (self.kappa + (self.kappa**2 + 4 * ratio.square()).sqrt()))
