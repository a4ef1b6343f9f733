"""The path of IR-SDE's denoiser and the steps of its ODE."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from fewstep.core.builder import PlanBuilder
from fewstep.core.paths import MeanReverting, Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Solver, levels

# The published search for a start time adds this to 1 − (s/λ)².
LEVEL_EPS = 1e-6


@dataclass(frozen=True)
class DenoisingPath(Path):
    """x_t = x0 + sigma·eps, sigma = max_sigma·sqrt(1 − exp(−2·Theta)), with the times and Theta of IR-SDE.

    It is the mean-reverting process around the clean image itself.

    Args:
        max_sigma: bound of the noise; 1 and above are 8-bit levels.
        steps: number of steps (T); times are 0 (clean) … T.
        schedule: "cosine", "linear" or "constant".
        eps: exp(−Theta) at the last time.

    Example:
        >>> DenoisingPath().time_of_level(25 / 255)
        21

    Reference: Luo et al. 2023 (IR-SDE), section 5, denoising.
    """

    max_sigma: float = 75.0
    steps: int = 100
    schedule: str = "cosine"
    eps: float = 0.04
    t_clean = 0.0
    t_min = 1.0
    is_discrete = True

    def __post_init__(self) -> None:
        assert self.inner.steps == self.steps  # made here, so that it refuses bad arguments

    @cached_property
    def inner(self) -> MeanReverting:
        """The process whose sigma it is."""
        return MeanReverting(self.max_sigma, self.steps, self.schedule, self.eps)

    @property
    def t_max(self) -> float:
        return float(self.steps)

    def evaluate(self, t):
        a, _, sigma = self.inner.evaluate(t)
        return torch.ones_like(a), torch.zeros_like(a), sigma

    def theta_sums(self, times: Sequence[float]) -> list[float]:
        """Theta at each time."""
        return [-math.log(a) for a, _, _ in self.inner.coefficients_at(list(times))]

    def time_of_level(self, sigma: float) -> int:
        """The whole time whose Theta is nearest to that of a standard deviation, in units of the image.

        Levels from max_sigma on give T.
        """
        share = 1 - (sigma / self.inner.noise_scale) ** 2 + LEVEL_EPS
        if share <= 0:
            return self.steps
        wanted = -0.5 * math.log(share)
        sums = self.theta_sums(range(self.steps + 1))
        return min(range(self.steps + 1), key=lambda t: abs(sums[t] - wanted))


@dataclass(frozen=True)
class DenoisingODE(Solver):
    """Euler's steps of the denoiser's probability-flow ODE, on the clock Theta.

    x_s = x − (Theta_t − Theta_s)·(max_sigma²/sigma_t)·exp(−2·Theta_t)·eps.

    Reference: Luo et al. 2023 (IR-SDE), section 5, and its published code.
    """

    name = "denoising-ode"
    order = 1

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        if not isinstance(path, DenoisingPath):
            raise ValueError(f"denoising-ode needs a DenoisingPath, got {type(path).__name__}")
        points = levels(path, grid)
        sums = path.theta_sums([point.t for point in points])
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        for (t, s), (above, below) in zip(itertools.pairwise(points), itertools.pairwise(sums), strict=True):
            call = build.ask(x)
            rate = path.inner.noise_scale**2 * math.exp(-2 * above) / t.sigma
            x = build.step(s.t, {x: 1.0, call.e: -(above - below) * rate})
        return build.build()
