"""Sampling with consistency models: multistep consistency sampling and the gamma-sampling of CTM."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from fewstep.core.builder import PlanBuilder
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, levels

Jump = Callable[[Tensor, float, float], Tensor]


@dataclass(frozen=True)
class Consistency(Solver):
    """Go to the clean end in one call, add fresh noise for the next grid time, and again.

    x0 = f(x_t, t);  x_s = a_s·x0 + b_s·y + a_s·sqrt(kappa_s² − kappa_e²)·w,  kappa = sigma/a,

    with e the end of the grid: a consistency function maps to the level on which it was trained to stop, so a
    grid that ends at t_min has kappa_e > 0 and one that ends clean has kappa_e = 0. The last step draws
    nothing. With an ordinary denoiser as f every step throws away what the last one knew.

    Reference: Song, Dhariwal, Chen and Sutskever 2023, "Consistency Models", algorithm 1.
    """

    @property
    def name(self) -> str:
        return "consistency"

    @property
    def order(self) -> int:
        return 0  # more steps do not approach anything: each begins anew

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        for s in points[1:]:
            x = build.step(s.t, {build.ask(x).d: s.a}, noise=_fresh(s, points[-1]))
        return build.build()


@dataclass(frozen=True)
class GammaSampling(Solver):
    """Jump below the next grid time and come back to it with noise.

    With kappa = sigma/a, t → s the step and e the end of the grid,
        kappa_u = kappa_e + sqrt(1 − gamma²)·(kappa_s − kappa_e)                      (the target u)
        z_u = a_u·(kappa_u/kappa_t·z_t/a_t + (1 − kappa_u/kappa_t)·g(z_t, t, u))      (the jump)
        z_s = a_s·(z_u/a_u + sqrt(kappa_s² − kappa_u²)·w).
    gamma = 0 is deterministic; gamma = 1 throws all noise away and draws it anew.

    The plan asks an ordinary denoiser, g(x, t, u) = x0(x, t), for which the jump is a DDIM step. For a
    network that knows the target pass `asking(...)` to `sample` instead of a denoiser.

    Args:
        gamma: share of fresh noise, 0 to 1.

    Raises:
        ValueError: if gamma is out of range.

    Example:
        >>> import torch
        >>> from fewstep.core import grids, paths, sample
        >>> path, ctm = paths.EDM(), GammaSampling(gamma=0.5)
        >>> times = grids.karras(path, 4)
        >>> jump = lambda x, t, u: x / (1 + t * u)  # stands for a CTM network
        >>> sample(ctm.asking(jump, path, times), path, ctm, grid=times, shape=(2, 1, 4, 4)).shape
        torch.Size([2, 1, 4, 4])

    Reference: Kim et al. 2024, "Consistency Trajectory Models"; kappa_e > 0 as in their code.
    """

    gamma: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"gamma must lie between 0 and 1, not {self.gamma}")

    @property
    def name(self) -> str:
        return "ctm"

    @property
    def order(self) -> int:
        return 0 if self.gamma else 1

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        for t, s in itertools.pairwise(points):
            aim, spread = self._aim(s, points[-1])
            keep = s.a * aim / t.sigma
            x = build.step(s.t, {x: keep, build.ask(x).d: s.a - keep * t.a}, noise=spread)
        return build.build()

    def asking(
        self, jump: Jump, path: Path, grid: Sequence[float], returns: str = "x0"
    ) -> Callable[[Tensor, float], Tensor]:
        """Bind a two-time network to the targets of one grid: a denoiser (x, t) for `sample` on that grid.

        Args:
            jump: `jump(x, t, u)`, asked at state x of time t for the target time u ≤ t.
            path: the path.
            grid: the times that `sample` gets.
            returns: what the network gives: "x0" its g(x, t, u), "state" the whole jump x_u.

        Raises:
            ValueError: if returns is unknown, or is "state" on a path with y.
        """
        if returns not in ("x0", "state"):
            raise ValueError(f"returns must be 'x0' or 'state', not {returns!r}")
        if returns == "state" and path.uses_y:
            raise ValueError(f"returns must be 'x0' on {type(path).__name__}, which uses y")
        points = levels(path, grid)
        targets = [self._time(path, s, points[-1]) for s in points[1:]]
        bound = {t.t: _Bound.between(path, t, u) for t, u in zip(points, targets, strict=False)}

        def denoise(x: Tensor, t: float) -> Tensor:
            if t not in bound:
                raise ValueError(f"t must be one of the grid's times {tuple(bound)}, got {t}")
            step = bound[t]
            out = jump(x, t, step.target)
            return out if returns == "x0" else step.of_state * out + step.of_x * x

        return denoise

    def _aim(self, s: Level, end: Level) -> tuple[float, float]:
        """(sigma/a at the end of the jump towards s, standard deviation of the noise back up to s)."""
        low, high = end.sigma / end.a, s.sigma / s.a
        aim = low + math.sqrt(1.0 - self.gamma**2) * (high - low)
        return aim, s.a * math.sqrt(max((high - aim) * (high + aim), 0.0))

    def _time(self, path: Path, s: Level, end: Level) -> float:
        aim, spread = self._aim(s, end)
        if spread == 0.0:
            return s.t
        return path.time_at(-math.log(aim)) if aim > 0.0 else path.t_clean


class _Bound(NamedTuple):
    """One call of a two-time network: its target time, and x0 = of_state·x_u + of_x·x_t."""

    target: float
    of_state: float
    of_x: float

    @staticmethod
    def between(path: Path, t: Level, target: float) -> "_Bound":
        a, _, sigma = path.coefficients(target)
        # z_u = keep·z_t + (a_u − keep·a_t)·x0 with keep = sigma_u/sigma_t
        keep = sigma / t.sigma
        return _Bound(target, 1.0 / (a - keep * t.a), -keep / (a - keep * t.a))


def _fresh(s: Level, end: Level) -> float:
    """Standard deviation of what lies above the end's noise level at s: a_s·sqrt(kappa_s² − kappa_e²)."""
    floor = s.a * end.sigma / end.a
    return math.sqrt(max((s.sigma - floor) * (s.sigma + floor), 0.0))


SOLVERS = {
    "consistency": Listed(
        Consistency,
        "Song et al. 2023, multistep consistency sampling",
        "n",
        "consistency models, 1 to 4 calls",
    ),
    "ctm": Listed(
        GammaSampling,
        "Kim et al. 2024, gamma-sampling",
        "n",
        "two-time jumps (CTM); DDIM with noise otherwise",
    ),
}
