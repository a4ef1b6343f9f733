"""Shortcut models: one step of size d must equal two of size d/2, down to steps that are a flow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fewstep.core.clock import clock_at, denormalised, normalised, spread, time_of_clock
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.trajectory.consistency import masked

LABEL = "label"


@dataclass(frozen=True)
class Shortcut(JumpRule):
    """Flow matching on most of a batch, self-consistency of the step size on the rest.

    With z = x/(a + sigma) without y, the clock tau of the whole path scaled to [0, 1], and u the mean
    velocity on it (the network is told where a step ends),

    flow:      ‖u(z_tau, tau → tau) − (eps − x0)‖²,
    bootstrap: ‖u(z_tau, tau → tau − d) − (u1 + u2)/2‖²,  u1 = u_target(z_tau, tau → tau − d/2),
               u2 = u_target(z_tau − d/2·u1, tau − d/2 → tau − d),

    for d = 1, 1/2, …, 2/T. Halves of the smallest step, 1/T, are taken by the flow itself, and only there
    does guidance enter: u_none + guidance·(u_label − u_none).

    Args:
        finest: T, a power of 2.
        share: of the batch that bootstraps (at least one sample).
        guidance: scale of classifier-free guidance in the finest targets; 1: none.
        null_label: the label that means "none"; needed for guidance and for `drop`.
        drop: share of the flow samples whose label is replaced by the null label.
        bound: largest absolute value in the targets and between both halves; None: any.
        distance: between velocities.

    Raises:
        ValueError: an option is out of range, or guidance is asked for without null_label.

    Reference: Frans, Hafner, Levine and Abbeel 2025, "One Step Diffusion via Shortcut Models", section 3 and
        appendix A.
    """

    finest: int = 128
    share: float = 0.125
    guidance: float = 1.0
    null_label: int | None = None
    drop: float = 0.1
    bound: float | None = 4.0
    distance: Distance = field(default_factory=SquaredError)

    def __post_init__(self) -> None:
        if self.finest < 2 or self.finest & (self.finest - 1):
            raise ValueError(f"finest must be a power of 2 from 2 on, got {self.finest!r}")
        for name in ("share", "drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}")
        if self.share == 0:
            raise ValueError("share must be above 0: without a bootstrap there are no shortcuts")
        if self.guidance != 1 and self.null_label is None:
            raise ValueError(f"guidance={self.guidance:g} needs null_label, the label that means none")

    def __call__(self, situation: Situation) -> dict[str, Tensor]:
        batch, path, generator = situation.batch, situation.path, situation.generator
        count, device = len(batch.x0), batch.x0.device
        few = min(max(round(self.share * count), 1), count)
        noise = batch.noise_or(generator)
        doublings = int(math.log2(self.finest))
        size = 0.5 ** (uniform(few, generator, device) * doublings).floor()
        begin = size * (1 + (uniform(few, generator, device) / size).floor())
        flow = (1 + (uniform(count - few, generator, device) * self.finest).floor()) / self.finest
        t, s = self._times(situation, torch.cat([begin, flow]), torch.cat([begin - size, flow]))
        x = path.corrupt(batch.x0, t, noise, batch.y)
        with torch.no_grad():
            head = situation.target.given(**first_of(situation.student.conditions, few, count))
            short = self.bootstrap(head, x[:few], begin, size)
            wanted = torch.cat([short, (noise - batch.x0)[few:]])
        student = self._dropped(situation.student, few, count, generator, device)
        error = masked(self.distance, student.mean_velocity(x, t, s), wanted, batch.mask)
        parts = {"bootstrap": error[:few].mean().detach()}
        if few < count:
            parts["flow"] = error[few:].mean().detach()
        return {"loss": error.mean(), **parts}

    def bootstrap(self, target: FlowMap, x: Tensor, begin: Tensor, size: Tensor) -> Tensor:
        """The velocity of two half steps from the scaled clock `begin`, (batch, *shape)."""
        path = target.path
        top = self._top(target, x)
        finest = size * self.finest < 2.5
        clocks = begin, begin - size / 2, begin - size
        t, m, s = (time_of_clock(path, top * tau) for tau in clocks)
        first = self._velocity(target, x, t, m, finest)
        z = normalised(path, x, t, target.y) - spread(top * size / 2, x) * first
        x_m = denormalised(path, self._bounded(z), m, target.y)
        second = self._velocity(target, x_m, m, s, finest)
        return self._bounded((first + second) / 2)

    def _velocity(self, flow: FlowMap, x: Tensor, t: Tensor, s: Tensor, finest: Tensor) -> Tensor:
        told = torch.where(finest, t, s)
        velocity = flow.mean_velocity(x, t, told)
        if self.guidance == 1 or self.null_label is None or LABEL not in flow.conditions:
            return velocity
        none = torch.full_like(flow.conditions[LABEL], self.null_label)
        free = flow.given(**{LABEL: none}).mean_velocity(x, t, told)
        return torch.where(spread(finest, x) > 0, free + self.guidance * (velocity - free), velocity)

    def _bounded(self, values: Tensor) -> Tensor:
        return values if self.bound is None else values.clamp(-self.bound, self.bound)

    def _times(self, situation: Situation, *clocks: Tensor) -> tuple[Tensor, ...]:
        top = self._top(situation.student, situation.batch.x0)
        return tuple(time_of_clock(situation.path, top * tau) for tau in clocks)

    @staticmethod
    def _top(flow: FlowMap, x: Tensor) -> Tensor:
        """The clock at t_max."""
        return clock_at(flow.path, torch.tensor([flow.path.t_max], dtype=torch.float64, device=x.device))

    def _dropped(
        self, student: FlowMap, few: int, count: int, generator: torch.Generator, device: torch.device
    ) -> FlowMap:
        """The student with some labels of the flow samples replaced by "none"."""
        label = student.conditions.get(LABEL)
        if self.null_label is None or self.drop == 0 or not isinstance(label, Tensor):
            return student
        chosen = uniform(count, generator, device) < self.drop
        chosen[:few] = False
        return student.given(**{LABEL: torch.where(chosen, self.null_label, label)})


def first_of(conditions: Mapping[str, Any], few: int, count: int) -> dict[str, Any]:
    """The conditions of the first samples of a batch."""
    return {
        name: value[:few] if isinstance(value, Tensor) and value.ndim and len(value) == count else value
        for name, value in conditions.items()
    }
