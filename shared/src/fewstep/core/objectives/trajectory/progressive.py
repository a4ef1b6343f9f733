"""Progressive distillation: again and again a student that takes two steps of its predecessor in one."""

import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from fewstep.core import grids
from fewstep.core.clock import clock_at, spread, time_of_clock
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import SampleBatch, uniform
from fewstep.core.objectives.trajectory.consistency import masked
from fewstep.core.objectives.trajectory.curricula import halved_steps, stage_lengths
from fewstep.core.objectives.weights import Weighting, weighting
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment, Objective, Phase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import STUDENT, Networks

PREVIOUS, AVERAGE = "previous", "average"


@lru_cache(maxsize=256)
def half_grid(path: Path, grid: str, steps: int, device: str) -> Float64[Tensor, "times"]:
    """Return 2·steps + 1 decreasing times, of which every second one is a time of the student.

    "clock": even on the normalised clock down to the clean end, the grid of `Sampling(spacing="clock")`;
    otherwise a name of `grids.names()`, down to t_min.

    Raises:
        ValueError: a table has fewer times than that.
    """
    with torch.inference_mode(False):
        if grid == "clock":
            top = clock_at(path, torch.tensor([path.t_max], dtype=torch.float64))
            times = time_of_clock(path, top * torch.linspace(1, 0, 2 * steps + 1, dtype=torch.float64))
            times[0] = path.t_max
        else:
            make: Any = grids.get(grid)
            times = torch.tensor(make(path, 2 * steps, "t_min"), dtype=torch.float64)
        times = times.round() if path.is_discrete else times
        if not bool((times.diff() < 0).all()):
            raise ValueError(f"{2 * steps} steps are too many for the grid {grid!r} on {type(path).__name__}")
        return times.to(device)


def x0_between(flow: FlowMap, x: Tensor, t: Tensor, x_s: Tensor, s: Tensor) -> Tensor:
    """Return the x0 with which one DDIM step leads from x at t to x_s at s, the inverse of `moved`."""
    (a_t, b_t, sigma_t), (a_s, b_s, sigma_s) = flow.path.evaluate(t), flow.path.evaluate(s)
    ratio = sigma_s / sigma_t
    rest = x_s - spread(ratio, x) * x
    if flow.y is not None:
        rest = rest - spread(b_s - ratio * b_t, x) * flow.y
    return rest / spread(a_s - ratio * a_t, x)


@dataclass(frozen=True)
class HalvedSteps:
    """What a student of progressive distillation is asked: two DDIM steps of its predecessor in one.

    With t, m, s neighbours of the grid of twice as many steps and x_s two steps of the predecessor,

    loss = w(t)·dist(D(x_t, t), sg D*),   D* the x0 with which one step leads from x_t to x_s.

    Args:
        grid: "clock" or a name of `grids.names()`; "karras" in the published comparison.
        distance: between the estimates.
        weight: a name of `WEIGHTS` or a function (path, t) → (batch,).

    Raises:
        ValueError: grid or weight is unknown.

    Reference: Salimans and Ho 2022, "Progressive Distillation for Fast Sampling of Diffusion Models",
        algorithm 2 and section 4 (the weight "truncated-snr").
    """

    grid: str = "clock"
    distance: Distance = field(default_factory=SquaredError)
    weight: str | Weighting = "truncated-snr"

    def __post_init__(self) -> None:
        weighting(self.weight)
        if self.grid != "clock":
            grids.get(self.grid)

    def __call__(
        self, student: FlowMap, previous: FlowMap, batch: SampleBatch, steps: int, generator: torch.Generator
    ) -> Float[Tensor, "batch"]:
        """The loss of a student of so many steps."""
        times = half_grid(student.path, self.grid, steps, str(batch.x0.device))
        noise = batch.noise_or(generator)
        index = 2 * (uniform(len(batch.x0), generator, batch.x0.device) * steps).long()
        return self.between(student, previous, batch, noise, times[index], times[index + 1], times[index + 2])

    def between(
        self,
        student: FlowMap,
        previous: FlowMap,
        batch: SampleBatch,
        noise: Tensor,
        t: Tensor,
        m: Tensor,
        s: Tensor,
    ) -> Float[Tensor, "batch"]:
        """The loss at given times t > m > s and noise."""
        path = student.path
        x = path.corrupt(batch.x0, t, noise, batch.y)
        with torch.no_grad():
            x_m = previous.jump(x, t, m)
            wanted = x0_between(previous, x, t, previous.jump(x_m, m, s), s)
        error = masked(self.distance, student.x0(x, t), wanted, batch.mask)
        return weighting(self.weight)(path, t).to(error.dtype) * error


class _Generation(nn.Module):
    """A frozen student of an earlier stage, and which stage it teaches."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.stage = copy.deepcopy(net).requires_grad_(False), 0

    def get_extra_state(self) -> int:
        return self.stage

    def set_extra_state(self, state: int) -> None:
        self.stage = int(state)


class ProgressiveDistillation(Objective):
    """Halve a student's steps stage by stage; at the end of a stage the student becomes the next teacher.

    The teacher answers in the first stage; later ones are taught by "previous", a copy of the average of the
    student at the end of the stage before. Both are modules of the run, so that a run resumes in the middle
    of a stage as if it had not stopped. Stages follow the progress of the run and have the same length,
    twice that for 2 steps and for 1.

    Args:
        path: of the states.
        prediction: of the student.
        teacher: of the first stage.
        student: the network that will be trained; copied.
        rule: the loss of a stage.
        start: steps of the first student; a power of 2.
        end: steps of the last one; a power of 2.
        decay: of the average of the student that teaches the next stage; 0: the student as it is.

    Raises:
        ValueError: an option is out of range.

    Reference: Salimans and Ho 2022, algorithm 2; stage lengths as Song, Dhariwal, Chen and Sutskever 2023.
    """

    def __init__(
        self,
        path: Path,
        prediction: str | Prediction,
        teacher: FlowMap,
        student: nn.Module,
        rule: HalvedSteps | None = None,
        *,
        start: int = 64,
        end: int = 1,
        decay: float = 0.99,
    ) -> None:
        for name, value in (("start", start), ("end", end)):
            if value < 1 or value & (value - 1):
                raise ValueError(f"{name} must be a power of 2, got {value}")
        if end > start:
            raise ValueError(f"end must be at most start={start}, got {end}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {decay!r}")
        self.path, self.prediction, self.teacher = path, prediction, teacher
        self.rule, self.start, self.end, self.decay = rule or HalvedSteps(), start, end, decay
        self.previous, self.average = _Generation(student), copy.deepcopy(student).requires_grad_(False)
        self._plan = self._stages()

    def phases(self) -> tuple[Phase, ...]:
        """One phase, "train"."""
        return (Phase("train", self._loss),)

    def modules(self) -> dict[str, nn.Module]:
        """The student of the stage before, and the average of the present one."""
        return {PREVIOUS: self.previous, AVERAGE: self.average}

    def frozen(self) -> tuple[nn.Module, ...]:
        """The teacher of the first stage."""
        return (self.teacher.net,) if isinstance(self.teacher.net, nn.Module) else ()

    @property
    def steps(self) -> int:
        """Steps of the present student."""
        return self._plan[self.previous.stage][1]

    def stage_at(self, moment: Moment) -> int:
        """Number of the stage that a moment belongs to."""
        return sum(moment.progress >= begin for begin, _ in self._plan) - 1

    @torch.no_grad()
    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:
        """Move the average; after the first update that lies beyond a stage, begin the next one."""
        for ours, theirs in zip(self.average.parameters(), networks[STUDENT].parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.decay)
        for ours, theirs in zip(self.average.buffers(), networks[STUDENT].buffers(), strict=True):
            ours.copy_(theirs)
        stage = self.stage_at(moment)
        if stage > self.previous.stage:
            self.previous.net.load_state_dict(self.average.state_dict())
            self.previous.stage = stage

    def _loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> dict[str, Tensor]:
        read = SampleBatch.read(batch)
        student = read.flow_map(networks[STUDENT], self.path, self.prediction)
        if self.previous.stage == 0:
            previous = self.teacher.given(**student.conditions)
        else:
            self.previous.eval()
            previous = read.flow_map(self.previous.net, self.path, self.prediction)
        loss = self.rule(student, previous, read, self.steps, generator).mean()
        return {"loss": loss, "steps": torch.full_like(loss.detach(), self.steps)}

    def _stages(self) -> tuple[tuple[float, int], ...]:
        """(share of the run at which it begins, steps) of every stage."""
        lengths = stage_lengths(self.start, self.end)
        plan: list[tuple[float, int]] = []
        for length in range(lengths):
            steps = halved_steps(length, self.start)
            if not plan or plan[-1][1] != steps:
                plan.append((length / lengths, steps))
        return tuple(plan)
