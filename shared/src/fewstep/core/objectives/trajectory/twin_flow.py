"""TwinFlow: one network is student, teacher and fake score; negative times mean the student's own samples."""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.clock import clock_at, denormalised, normalised, spread, time_of_clock
from fewstep.core.conditions import is_batched
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import normal_like, uniform
from fewstep.core.objectives.times import UniformClock, clock_ends
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.trajectory.guided_velocity import LabelGuidance, guided_velocity
from fewstep.core.objectives.trajectory.velocity_matching import generated
from fewstep.core.paths import Path
from fewstep.core.training.phases import Losses

PARTS = 4
# A "multi-step" sample jumps at most this share of its time.
SHORT = 0.05


def twin(flow: FlowMap) -> FlowMap:
    """The same network on the trajectory of its own samples: it is told its times with a minus.

    Raises:
        ValueError: what the path tells networks can be negative already.
    """
    path = flow.path
    if min(path.network_time(path.t_min), path.network_time(path.t_max)) < 0:
        raise ValueError(
            f"TwinFlow needs a path that tells networks positive times, such as RectifiedFlow(), not {path}"
        )
    return FlowMap(_Negated(flow.net), path, flow.prediction, flow.conditions)


class _Negated:
    """A network that is told −t and −s."""

    def __init__(self, net: Callable[..., Any]) -> None:
        self.net = net
        self.__signature__ = inspect.signature(net.forward if isinstance(net, nn.Module) else net)

    def __call__(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        if conditions.get("s") is not None:
            conditions["s"] = -conditions["s"]
        return self.net(x, -t, **conditions)


@dataclass(frozen=True)
class TwinFlow(JumpRule):
    """Any-step velocities, and a one-step student that is pulled from its own distribution to the data's.

    Each batch is split in four equal parts (a sample's loss depends on its place, not on its mates):
        one step    t = 1, s = 0: the any-step target, and the pull v(x_t, −t) − v(x_t, t) at its own sample
        short       s just below t: the any-step target, close to flow matching
        any step    s anywhere below t: the any-step target
        twin        flow matching at negative times on one-step samples

    The any-step target is u − clip((u·(tau_t − tau_s) − U)/Δ − v, ±1), where U is what the target network
    integrates from x_t − Δ·v down to s in `substeps` jumps: a finite difference of MeanFlow's identity.

    Args:
        interval: Δ, on the clock.
        limit: of the clipping; also of the pull.
        substeps: jumps of the target network.
        pull: weight of the pull.
        distance: of velocities.
        weighted: samples weigh 1 + tan((1 − (tau_t − tau_s))·π/2.5), more for short jumps.
        guidance: of the velocity v, by the target network itself.

    Raises:
        ValueError: a value is out of range; a batch has fewer than four samples.

    Reference: "TwinFlow: Realizing One-step Generation on Large Models with Self-adversarial Flows" 2025, and
        its published code, which has a robust distance in place of the squared error.
    """

    interval: float = 0.01
    limit: float = 1.0
    substeps: int = 2
    pull: float = 0.5
    distance: Distance = field(default_factory=SquaredError)
    weighted: bool = True
    guidance: LabelGuidance | None = None

    def __post_init__(self) -> None:
        if not 0 < self.interval < 1 or not self.limit > 0 or self.substeps < 1:
            raise ValueError(
                "interval must be in (0, 1), limit positive and substeps at least 1, "
                f"got {self.interval}, {self.limit} and {self.substeps}"
            )

    def __call__(self, situation: Situation) -> Losses:
        """The loss and its three kinds."""
        batch, path, count = situation.batch, situation.path, len(situation.batch.x0)
        if count < PARTS:
            raise ValueError(f"TwinFlow splits a batch in four; it needs at least 4 samples, got {count}")
        quarter = count // PARTS
        ahead, behind = slice(0, count - quarter), slice(count - quarter, count)
        t, s = self._times(path, count - quarter, quarter, situation.generator, batch.x0.device)
        noise = batch.noise_or(situation.generator)
        student, target = (_rows(flow, ahead, count) for flow in (situation.student, situation.target))
        x0, eps = batch.x0[ahead], noise[ahead]
        x = path.corrupt(x0, t, eps, student.y)
        velocity = eps - x0
        if self.guidance is not None:
            # The guided part only: the data's velocity stays what it is without guidance.
            with torch.no_grad():
                velocity = velocity + guided_velocity(target, x, t, self.guidance)
                velocity = velocity - guided_velocity(target, x, t)
        made = student.mean_velocity(x, t, s)
        wanted = any_step_target(self, target, made, x, t, s, velocity)
        any_step = self.distance(made, wanted) * self._weight(path, t, s).to(x.dtype)
        fake = self._twin_loss(_rows(situation.student, behind, count), batch.x0[behind], situation.generator)
        first = slice(0, quarter)
        pull = self._pull(
            _rows(situation.student, first, count), x[first], t[first], made[first], situation.generator
        )
        loss = torch.cat([any_step, fake]).mean() + self.pull * pull.mean()
        return {"loss": loss, "any_step": any_step.mean(), "twin": fake.mean(), "pull": pull.mean()}

    def _times(
        self, path: Path, count: int, quarter: int, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        low, high = clock_ends(path)
        tau, gap = low + (high - low) * uniform(count, generator, device), uniform(count, generator, device)
        place = torch.arange(count, device=device)
        one, short = place < quarter, (place >= quarter) & (place < 2 * quarter)
        tau_s = torch.where(one, 0.0, tau * (1 - torch.where(short, SHORT, 1.0) * gap))
        tau = torch.where(one, high, tau)
        return time_of_clock(path, tau), time_of_clock(path, tau_s)

    def _weight(self, path: Path, t: Tensor, s: Tensor) -> Tensor:
        gap = clock_at(path, t) - clock_at(path, s)
        return 1 + torch.tan((1 - gap) * (math.pi / 2.5)) * self.weighted

    def _twin_loss(self, student: FlowMap, like: Tensor, generator: torch.Generator) -> Tensor:
        path = student.path
        with torch.no_grad():
            x0, _ = generated(student, like, generator)
        t = _uniform_clock(path, len(like), generator, like.device)
        noise = normal_like(like, generator)
        x = path.corrupt(x0, t, noise, student.y)
        return self.distance(twin(student).mean_velocity(x, t, t), noise - x0)

    def _pull(self, student: FlowMap, start: Tensor, t: Tensor, made: Tensor, generator: torch.Generator):
        path = student.path
        with torch.no_grad():
            x0 = normalised(path, start, t, student.y) - spread(clock_at(path, t), start) * made
            later = _uniform_clock(path, len(start), generator, start.device)
            x = path.corrupt(x0, later, normal_like(x0, generator), student.y)
            gap = twin(student).mean_velocity(x, later, later) - student.mean_velocity(x, later, later)
            wanted = made - gap.clamp(-self.limit, self.limit)
        return self.distance(made, wanted)


@torch.no_grad()
def any_step_target(
    rule: TwinFlow, target: FlowMap, made: Tensor, x: Tensor, t: Tensor, s: Tensor, velocity: Tensor
) -> Tensor:
    """What the velocity `made` from t to s must be, by the network `target`; see `TwinFlow`.

    Reference: recursive consistent generation models (RCGM), as in TwinFlow's published code.
    """
    path, y = target.path, target.y
    tau, tau_s = clock_at(path, t), clock_at(path, s)
    # Where s is nearer than the interval, what is left to integrate is nothing and the target is v itself.
    near = tau - tau_s < rule.interval
    step = torch.where(near, tau - tau_s, rule.interval)
    z, at = normalised(path, x, t, y) - spread(step, x) * velocity, tau - step
    part, moved = (at - tau_s) / rule.substeps, torch.zeros_like(x)
    for _ in range(rule.substeps):
        now, then = time_of_clock(path, at), time_of_clock(path, at - part)
        leg = spread(part, x) * target.mean_velocity(denormalised(path, z, now, y), now, then)
        z, moved, at = z - leg, moved + leg, at - part
    whole = (made * spread(tau - tau_s, x) - moved) / spread(step, x)
    error = torch.where(spread(near, x) > 0, made, whole) - velocity
    return made - error.clamp(-rule.limit, rule.limit)


def _uniform_clock(path: Path, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return UniformClock()(path, count, generator, device)


def _rows(flow: FlowMap, rows: slice, count: int) -> FlowMap:
    """The map for some samples of a batch."""
    mine = {
        name: value[rows] if is_batched(value) and len(value) == count else value
        for name, value in flow.conditions.items()
    }
    return flow.given(**mine) if mine else flow
