"""OFTSR: a one-step restorer whose second time chooses between fidelity and realism."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.core.clock import clock_at, denormalised, normalised, spread, time_of_clock
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import AbsoluteError, Distance
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.training.phases import Losses


def midpoint(flow: FlowMap, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The state at s after one midpoint step (second-order Runge-Kutta) on the normalised clock."""
    path, y = flow.path, flow.y
    tau_t, tau_s = clock_at(path, t), clock_at(path, s)
    z, half = normalised(path, x, t, y), time_of_clock(path, (tau_t + tau_s) / 2)
    there = denormalised(path, z - spread((tau_t - tau_s) / 2, x) * flow.mean_velocity(x, t, t), half, y)
    velocity = flow.mean_velocity(there, half, half)
    return denormalised(path, z - spread(tau_t - tau_s, x) * velocity, s, y)


def tuned(flow: FlowMap, realism: float) -> FlowMap:
    """The student at a point between fidelity (0) and realism (1), for one call at t_max.

    D(x_1, 1, s) is told s = t_max − realism·(t_max − t_clean): at 0 it is the teacher's mean (least error),
    at 1 the end of the teacher's trajectory (looks real). Sample it with `Sampling("consistency", 1)`, or
    call `.x0(x, t)` yourself.

    Args:
        flow: a student with two times.
        realism: from 0 to 1.

    Raises:
        ValueError: realism is out of range, or the network has one time.
    """
    if not 0 <= realism <= 1:
        raise ValueError(f"realism must be in [0, 1], got {realism!r}")
    if not flow.takes_target:
        raise ValueError("fidelity against realism needs a network with two times")
    path = flow.path
    s = max(path.t_max - realism * (path.t_max - path.t_clean), path.t_min)
    return flow.given(s=torch.tensor([path.network_time(s)], dtype=torch.float64))


@dataclass(frozen=True)
class FidelityRealism(JumpRule):
    """All answers of the student for one start lie on the teacher's trajectory from there.

    With x_1 the start (degraded input and noise), D = D(x_1, 1, s) and x_s = jump(x_1, 1 → s),

        loss = d(D, D*) + w_bound·d(D(x_1, 1, 1), D_T(x_1, 1)) + w_align·d(D, D_T(x_s, s)),

    D* being where the teacher's midpoint step from x_r = sg(jump(x_1, 1 → r)), r = s + dt, leads. At s = 1
    the student is the teacher's mean estimate, at s = 0 the end of its trajectory.

    Args:
        dt: of the teacher's step, in the path's time.
        bound: w_bound.
        align: w_align.
        distance: of clean estimates.

    Raises:
        ValueError: dt does not fit in the path, or a weight is negative.

    Reference: Zhu et al. 2025, "OFTSR: One-Step Flow for Image Super-Resolution with Tunable
        Fidelity-Realism Trade-offs". The published code takes squared errors, the boundary at time 0.01 from
        the start and the velocity of the midpoint step in the alignment term; here the boundary is at the
        start itself and the alignment takes the plain velocity.
    """

    dt: float = 0.05
    bound: float = 0.1
    align: float = 0.01
    distance: Distance = field(default_factory=AbsoluteError)

    def __post_init__(self) -> None:
        if not self.dt > 0:
            raise ValueError(f"dt must be positive, got {self.dt!r}")
        if min(self.bound, self.align) < 0:
            raise ValueError(f"bound and align must not be negative, got {self.bound} and {self.align}")

    def __call__(self, situation: Situation) -> Losses:
        """The loss and its three parts."""
        path, student, teacher = situation.path, situation.student, situation.taught()
        if not student.takes_target:
            raise ValueError("this rule needs a student with two times")
        if path.t_min + self.dt >= path.t_max:
            raise ValueError(f"dt must be below {path.t_max - path.t_min:g} on this path, got {self.dt}")
        batch, count = situation.batch, len(situation.batch.x0)
        noise = batch.noise_or(situation.generator)
        top = torch.full((count,), path.t_max, dtype=torch.float64, device=noise.device)
        start = path.corrupt(batch.x0, top, noise, batch.y)
        s = path.t_min + (path.t_max - self.dt - path.t_min) * uniform(
            count, situation.generator, noise.device
        )
        with torch.no_grad():
            r = s + self.dt
            at_r = student.moved(start, top, r, situation.target.x0(start, top, r))
            ahead = midpoint(teacher, at_r, r, s)
            wanted = _clean_estimate(student, start, top, s, ahead)
            mean = teacher.x0(start, top)
        made = student.x0(start, top, s)
        with torch.no_grad():
            near = teacher.x0(student.moved(start, top, s, made), s)
        parts = {
            "trajectory": self.distance(made, wanted).mean(),
            "boundary": self.distance(student.x0(start, top, top), mean).mean(),
            "alignment": self.distance(made, near).mean(),
        }
        total = parts["trajectory"] + self.bound * parts["boundary"] + self.align * parts["alignment"]
        return {"loss": total, **parts}


def _clean_estimate(flow: FlowMap, x: Tensor, t: Tensor, s: Tensor, state: Tensor) -> Tensor:
    """The D with which `moved` leads from (x, t) to the state at s."""
    a_t, _, sigma_t = flow.path.evaluate(t)
    a_s, _, sigma_s = flow.path.evaluate(s)
    offset = flow.moved(x, t, s, torch.zeros_like(x))
    return (state - offset) / spread(a_s - sigma_s / sigma_t * a_t, x)
