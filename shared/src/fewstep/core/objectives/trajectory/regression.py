"""Knowledge distillation: the student learns where the teacher's ODE ends, from pairs or on the fly."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.clock import clock_at, denormalised, normalised, spread, time_of_clock
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.couplings import Coupling, Paired
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import normal_like, uniform
from fewstep.core.objectives.times import Fixed, TimeSampler
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.weights import Weighting, weighting
from fewstep.core.paths import Path


@dataclass(frozen=True)
class PairDistillation(JumpRule):
    """The student's jump to the clean end against the sample of a stored pair.

    loss = w(t)·dist(D(x_t, t → clean), x0), x_t on the straight line of the pair; at t_max that is the start
    state, which makes the one-step student of InstaFlow. With several times (`Choice`) it is the k-step one.

    Args:
        times: from which the student jumps.
        distance: between its sample and the pair's.
        weight: by time.
        coupling: how the batch's noise is used.

    Reference: Liu, Gong and Liu 2023, "Flow Straight and Fast", section 2.2 (distillation); Liu et al. 2024,
        "InstaFlow", equation 6.
    """

    times: TimeSampler = Fixed()  # noqa: RUF009 - frozen
    distance: Distance = SquaredError()  # noqa: RUF009 - frozen
    weight: str | Weighting = "uniform"
    coupling: Coupling = Paired()  # noqa: RUF009 - frozen

    def __call__(self, situation: Situation) -> Tensor:
        path, student = situation.path, situation.student
        batch = self.coupling(situation.batch, path, situation.generator, situation.moment)
        assert batch.noise is not None
        t = self.times(path, len(batch.x0), situation.generator, batch.x0.device)
        x = path.corrupt(batch.x0, t, batch.noise, batch.y)
        said = student.x0(x, t, torch.full_like(t, path.t_clean))
        return weighting(self.weight)(path, t).to(x.dtype) * self.distance(said, batch.x0)


@dataclass(frozen=True)
class TeacherSolution(JumpRule):
    """The student's jump from fresh noise against the end of the teacher's ODE, solved at every update.

    Args:
        steps: midpoint steps of the teacher, even on the normalised clock, two calls each.
        distance: between the two ends.

    Raises:
        ValueError: steps is below 1; (when called) there is no teacher.

    Reference: Luhman and Luhman 2021, "Knowledge Distillation in Iterative Generative Models for Improved
        Sampling Speed".
    """

    steps: int = 8
    distance: Distance = SquaredError()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def __call__(self, situation: Situation) -> Tensor:
        x, t = fresh_start(situation)
        clean = torch.full_like(t, situation.path.t_clean)
        target = solved(situation.taught(), x, t, clean, self.steps)
        return self.distance(situation.student.x0(x, t, clean), target)


@dataclass(frozen=True)
class FlowGuided(JumpRule):
    """The student's jump from fresh noise against two Euler steps of the teacher, split at a random time.

    x_r = the teacher's step from t_max to r, with 1 − tau(r) uniform in [low, high], target = the teacher's
    D(x_r, r): a cheap stand-in for its whole solution, once its paths are nearly straight.

    Args:
        low: smallest share of the way after which the second step begins.
        high: largest share.
        distance: between the student's sample and the target.

    Raises:
        ValueError: not 0 < low <= high < 1; (when called) there is no teacher.

    Reference: Zhu, Liu and Liu 2024, "SlimFlow", section 3.2.
    """

    low: float = 0.2
    high: float = 0.8
    distance: Distance = SquaredError()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high < 1:
            raise ValueError(f"low and high must be increasing shares in (0, 1), got {self.low}, {self.high}")

    def __call__(self, situation: Situation) -> Tensor:
        path, teacher = situation.path, situation.taught()
        x, t = fresh_start(situation)
        share = self.low + (self.high - self.low) * uniform(len(x), situation.generator, x.device)
        with torch.no_grad():
            r = time_of_clock(path, clock_at(path, t) * (1 - share))
            r = r.round() if path.is_discrete else r
            target = teacher.x0(teacher.jump(x, t, r), r)
        return self.distance(situation.student.x0(x, t, torch.full_like(t, path.t_clean)), target)


@dataclass(frozen=True)
class Together(JumpRule):
    """A weighted sum of rules.

    Args:
        parts: weight and rule of each.

    Raises:
        ValueError: there are none.
    """

    parts: tuple[tuple[float, JumpRule], ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts must hold at least one rule, got none")

    def __call__(self, situation: Situation) -> dict[str, Tensor]:
        """The sum as "loss", and every part's own mean under the name of its rule."""
        found: dict[str, Tensor] = {}
        total = situation.batch.x0.new_zeros(())
        for weight, rule in self.parts:
            losses = rule(situation)
            mean = losses["loss"] if isinstance(losses, Mapping) else losses.mean()
            total = total + weight * mean
            found[type(rule).__name__] = mean.detach()
        return {"loss": total, **found}


def fresh_start(situation: Situation) -> tuple[Tensor, Tensor]:
    """Start states sigma(T)·noise (+ b(T)·y) at T = t_max, from fresh noise, and their times."""
    path, batch = situation.path, situation.batch
    noise = normal_like(batch.x0, situation.generator)
    t = torch.full((len(noise),), path.t_max, dtype=torch.float64, device=noise.device)
    return path.corrupt(torch.zeros_like(noise), t, noise, batch.y), t


@torch.no_grad()
def solved(flow: FlowMap, x: Tensor, t: Tensor, s: Tensor, steps: int) -> Tensor:
    """The state at time s of the ODE that starts in x at time t, by midpoint steps on the normalised clock.

    Each calls the network twice and never at s itself, so s may be the clean end.
    """
    path, y = flow.path, flow.y
    start, end = clock_at(path, t), clock_at(path, s)
    z, tau = normalised(path, x, t, y), start
    for i in range(1, steps + 1):
        after = start + (end - start) * (i / steps)
        middle = _time(path, (tau + after) / 2)
        now = _time(path, tau) if i > 1 else t
        # The middle is where the network is asked, which on a table is not the exact half.
        half = clock_at(path, middle) - clock_at(path, now)
        slope = flow.mean_velocity(denormalised(path, z, now, y), now)
        there = denormalised(path, z + spread(half, z) * slope, middle, y)
        z = z + spread(after - tau, z) * flow.mean_velocity(there, middle)
        tau = after
    return denormalised(path, z, s, y)


def _time(path: Path, tau: Tensor) -> Tensor:
    t = time_of_clock(path, tau)
    return t.round().clamp(path.t_min, path.t_max) if path.is_discrete else t
