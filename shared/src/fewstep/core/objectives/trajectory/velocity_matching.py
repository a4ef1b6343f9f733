"""MDT's velocity matching: the mean velocity to the clean end, learned from a teacher's velocity."""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.core.clock import clock_at, denormalised, normalised, spread, time_of_clock
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.derivative import along_clock, check_mode, value_and_rate
from fewstep.core.objectives.sample_batch import normal_like
from fewstep.core.objectives.times import LogitNormal, TimeSampler
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.trajectory.guided_velocity import LabelGuidance, guided_velocity

KINDS = ("discrete", "continuous", "cm")


class Match(NamedTuple):
    """An estimate of the mean velocity and what it must be.

    Args:
        estimate: with its graph.
        target: without one.
        length: how far on the clock the velocity leads, (batch,): 1 where the loss is of velocities.
    """

    estimate: Tensor
    target: Tensor
    length: Tensor


@dataclass(frozen=True)
class VelocityMatching(JumpRule):
    """The student's velocity at t is the mean velocity down to 0 (or to the end of its phase).

    "discrete": target v_T − tau·dv with dv = (v(x_t, t) − v(x_prev, t − Δ))/Δ, x_prev = x_t − Δ·v_T;
    "continuous": dv = dv/dtau along v_T, exactly;
    "cm": both sides are carried to the end of the phase, and the states there are compared.

    dv is replaced by dv/(‖dv‖ + c) of the whole sample, which tames it and moves the solution: in few
    dimensions, or where exactness counts, use c = None.

    Args:
        kind: one of the three.
        interval: Δ, on the clock.
        c: of the normalisation; None: none.
        times: of t.
        guidance: of the teacher. Without a teacher, v_T = eps − x0.
        phases: of "cm": the clock falls into so many equal parts.

    Raises:
        ValueError: a value is out of range.

    Reference: the authors' code of MDT-dist; velocities are those of rectified flow, on any path by its
        normalised clock.
    """

    kind: str = "discrete"
    interval: float = 0.01
    c: float | None = 0.1
    times: TimeSampler = field(default_factory=lambda: LogitNormal(1.0, 1.0))
    guidance: LabelGuidance | None = None
    phases: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if not 0 < self.interval < 1:
            raise ValueError(f"interval must be in (0, 1), got {self.interval!r}")
        if self.phases < 1 or (self.phases > 1 and self.kind != "cm"):
            raise ValueError(f"phases must be 1, or more for kind 'cm', got {self.phases} for {self.kind!r}")
        check_mode("jvp", self.interval)

    def __call__(self, situation: Situation) -> Tensor:
        """The mean squared error of velocities (of states, for "cm")."""
        batch = situation.batch
        noise = batch.noise_or(situation.generator)
        match = self.match(situation, batch.x0, noise)
        errors = (match.estimate - match.target) * spread(match.length, noise)
        if batch.mask is not None:
            errors = errors * batch.mask
        return errors.square().flatten(1).mean(1)

    def match(self, situation: Situation, x0: Tensor, noise: Tensor) -> Match:
        """Estimate and target for data, which may be the student's own."""
        path, student = situation.path, situation.student
        t = self._times(situation, len(x0), x0.device)
        x = path.corrupt(x0, t, noise, student.y)
        velocity = self._velocity(situation, x, t, noise - x0)
        if self.kind == "continuous":
            return self._continuous(student, x, t, velocity)
        return self._discrete(student, x, t, velocity)

    def _times(self, situation: Situation, count: int, device: torch.device) -> Tensor:
        path = situation.path
        t = self.times(path, count, situation.generator, device)
        if self.kind == "continuous":
            return t
        # The interval must fit between t and the clean end.
        least = self.interval + 1e-5
        return time_of_clock(path, least + (1 - least) * clock_at(path, t))

    @torch.no_grad()
    def _velocity(self, situation: Situation, x: Tensor, t: Tensor, velocity: Tensor) -> Tensor:
        if situation.teacher is None:
            return velocity.detach()
        return guided_velocity(situation.teacher, x, t, self.guidance)

    def _continuous(self, student: FlowMap, x: Tensor, t: Tensor, velocity: Tensor) -> Match:
        path = student.path
        direction = along_clock(path, x, t, velocity, student.y)
        estimate, rate = value_and_rate(velocity_to_end, student, (x, t), direction)
        target = velocity - spread(clock_at(path, t), x) * self._tamed(rate)
        return Match(estimate, target.detach(), torch.ones_like(t))

    def _discrete(self, student: FlowMap, x: Tensor, t: Tensor, velocity: Tensor) -> Match:
        path, y = student.path, student.y
        tau = clock_at(path, t)
        estimate = velocity_to_end(student, x, t)
        with torch.no_grad():
            before = time_of_clock(path, tau - self.interval)
            z = normalised(path, x, t, y) - self.interval * velocity
            earlier = velocity_to_end(student, denormalised(path, z, before, y), before)
            if self.kind == "cm":
                end = torch.floor((tau - self.interval) * self.phases) / self.phases
                length = tau - end
                rest = spread(length - self.interval, x) * earlier
                target = (self.interval * velocity + rest) / spread(length, x)
                return Match(estimate, target, length)
            target = velocity - spread(tau, x) * self._tamed((estimate - earlier) / self.interval)
        return Match(estimate, target, torch.ones_like(t))

    def _tamed(self, rate: Tensor) -> Tensor:
        if self.c is None:
            return rate
        return rate / spread(rate.flatten(1).norm(dim=1) + self.c, rate)


def velocity_to_end(flow: FlowMap, x: Tensor, t: Tensor) -> Tensor:
    """The mean velocity from t to the clean end; a network with one time has no other."""
    return flow.mean_velocity(x, t, torch.full_like(t, flow.path.t_clean))


def generated(flow: FlowMap, like: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One-step samples of a student, as many as there are in `like`, and its velocity at the start."""
    path = flow.path
    t = torch.full((len(like),), path.t_max, dtype=torch.float64, device=like.device)
    x = path.corrupt(torch.zeros_like(like), t, normal_like(like, generator), flow.y)
    velocity = velocity_to_end(flow, x, t)
    return normalised(path, x, t, flow.y) - spread(clock_at(path, t), x) * velocity, velocity
