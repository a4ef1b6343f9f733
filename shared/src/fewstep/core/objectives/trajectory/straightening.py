"""Straightening: the student's velocity is constant along each of a few stretches of the teacher's way."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.clock import clock_at, denormalised, normalised, spread, time_of_clock
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.objectives.times import clock_ends
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.trajectory.regression import fresh_start, solved
from fewstep.core.paths import Path

STARTS = ("noise", "data")


@dataclass(frozen=True)
class Straightening(JumpRule):
    """Reflow between neighbouring times T = t_0 > t_1 > … > t_K of a grid, which suits K Euler steps.

    For a random stretch, with z = x/(a + sigma) and the normalised clock tau, the teacher's ODE leads from
    z_k to z_{k+1}; at tau uniform between them on the line,

        loss = dist(u(z, t), (z_k − z_{k+1})/(tau_k − tau_{k+1})).

    Args:
        boundaries: decreasing times from t_max to the clean end, such as `search.boss.boss_times` finds, or
            those of `even_boundaries`.
        steps: midpoint steps of the teacher in every stretch, two calls each.
        start: "noise": the teacher runs from t_max to the stretch, K·steps steps (BOSS); "data": the batch's
            x0 is noised to t_k, `steps` steps (PeRFlow).
        distance: between velocities.

    Raises:
        ValueError: there are fewer than two boundaries, they do not decrease, or an option is out of range;
            (when called) there is no teacher.

    Reference: Nguyen, Nguyen and Nguyen 2024, "Bellman Optimal Stepsize Straightening of Flow-Matching
        Models", section 3.3; Yan et al. 2024, "PeRFlow: Piecewise Rectified Flow", equation 5.
    """

    boundaries: tuple[float, ...]
    steps: int = 4
    start: str = "noise"
    distance: Distance = SquaredError()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in zip(self.boundaries, self.boundaries[1:], strict=False))
        if len(self.boundaries) < 2 or not falling:
            raise ValueError(f"boundaries must be at least two decreasing times, got {self.boundaries}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {', '.join(STARTS)}, got {self.start!r}")

    def __call__(self, situation: Situation) -> Tensor:
        path, student, batch = situation.path, situation.student, situation.batch
        count, device = len(batch.x0), batch.x0.device
        times = torch.tensor(self.boundaries, dtype=torch.float64, device=device)
        stretch = torch.randint(len(times) - 1, (count,), device=device, generator=situation.generator)
        first, last = times[stretch], times[stretch + 1]
        x, end = self._ends(situation, times, stretch)
        z, z_end = normalised(path, x, first, student.y), normalised(path, end, last, student.y)
        tau, tau_end = clock_at(path, first), clock_at(path, last)
        velocity = (z - z_end) / spread(tau - tau_end, z)
        t = _between(path, tau, tau_end, uniform(count, situation.generator, device))
        line = z_end + spread(clock_at(path, t) - tau_end, z) * velocity
        return self.distance(student.mean_velocity(denormalised(path, line, t, student.y), t), velocity)

    def _ends(self, situation: Situation, times: Tensor, stretch: Tensor) -> tuple[Tensor, Tensor]:
        """The states at both ends of every sample's stretch."""
        path, teacher, batch = situation.path, situation.taught(), situation.batch
        if self.start == "data":
            first = times[stretch]
            x = path.corrupt(batch.x0, first, batch.noise_or(situation.generator), batch.y)
            return x, solved(teacher, x, first, times[stretch + 1], self.steps)
        x, _ = fresh_start(situation)
        begin, end = x, x
        for k in range(len(times) - 1):
            now, after = (times[i].expand(len(x)) for i in (k, k + 1))
            following = solved(teacher, x, now, after, self.steps)
            here = spread(stretch == k, x) > 0
            begin, end = torch.where(here, x, begin), torch.where(here, following, end)
            x = following
        return begin, end


def even_boundaries(path: Path, steps: int) -> tuple[float, ...]:
    """`steps` + 1 times from t_max to the clean end, even on the normalised clock.

    Example:
        >>> from fewstep.core import paths
        >>> [round(t, 3) for t in even_boundaries(paths.RectifiedFlow(), 2)]
        [1.0, 0.5, 0.0]
    """
    top = clock_ends(path)[1]
    inner = torch.tensor([top * (1 - i / steps) for i in range(1, steps)], dtype=torch.float64)
    found: Sequence[float] = time_of_clock(path, inner).tolist() if steps > 1 else []
    inside = [float(round(t)) if path.is_discrete else t for t in found]
    return (path.t_max, *inside, path.t_clean)


def _between(path: Path, tau: Tensor, tau_end: Tensor, share: Tensor) -> Tensor:
    """The time at a share of the way, where the network may be asked."""
    t = time_of_clock(path, tau_end + (tau - tau_end) * share).clamp(path.t_min, path.t_max)
    return t.round() if path.is_discrete else t
