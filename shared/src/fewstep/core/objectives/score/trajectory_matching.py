"""Trajectory distribution matching: the states on a student's way have the teacher's marginals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fewstep.core.clock import clock_at, spread, time_of_clock
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like, uniform
from fewstep.core.objectives.score.backtrack import Teacher, teacher_at, teacher_networks
from fewstep.core.objectives.score.base import Generation, Made, ScoreDistillation, Term
from fewstep.core.objectives.score.fake import FAKE, FakeScore
from fewstep.core.objectives.score.families import Estimates, Family, PseudoTarget
from fewstep.core.objectives.score.generation import start_state
from fewstep.core.objectives.score.levels import within
from fewstep.core.objectives.score.teacher_guidance import TEACHER, TeacherGuidance
from fewstep.core.objectives.weights import weighting
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import Losses, MakeOptimizer, Networks

Above = Literal["start", "everything"]
Target = Literal["score", "estimate"]


@dataclass(frozen=True)
class Step(Made):
    """One step on a student's way: x is the x0 it points at, from `state` at `start` to the time `arrival`.

    Args:
        arrival: time that the step leads to (batch,), float64; the clean end for the last one.
    """

    arrival: Tensor


@dataclass(frozen=True)
class Chain(Generation):
    """The student's deterministic steps up to a random one, which alone is trained.

    Every step is one of DDIM: x_{t_{k+1}} is on the line through x_{t_k} and D(x_{t_k}, t_k), as sampling of
    kind "ode" with solver "ddim" has it. Every sample of the batch has its own k.

    Args:
        times: of the calls, decreasing; the first is the start.

    Raises:
        ValueError: times are not decreasing.

    Reference: Luo et al. 2025, "Learning Few-Step Diffusion Models by Trajectory Distribution Matching",
        section 4.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.times or any(a <= b for a, b in pairwise(self.times)):
            raise ValueError(f"times must be decreasing, got {self.times}")

    def __call__(
        self, student: FlowMap, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Step:
        """The step of a random call."""
        noise = batch.noise_or(generator)
        drawn = torch.randint(len(self.times), (len(noise),), generator=generator, device=noise.device)
        grid = torch.tensor([*self.times, student.path.t_clean], dtype=torch.float64, device=noise.device)
        x, t = start_state(student, noise, self.times[0])
        state = x
        for k in range(1, len(self.times)):
            with torch.no_grad():
                x, t = student.moved(x, t, grid[k].expand_as(t), student.x0(x, t)), grid[k].expand_as(t)
            state = torch.where(spread(drawn == k, x) > 0, x, state)
        start, arrival = grid[drawn], grid[drawn + 1]
        return Step(student.x0(state, start), start, state, noise, arrival)


@dataclass(frozen=True)
class Between:
    """Times from a step's arrival up, uniform on the clock.

    Args:
        above: "start": up to where the step began, so that the steps' intervals are separate; "everything":
            up to t_max.

    Raises:
        ValueError: above is unknown.
    """

    above: str = "start"

    def __post_init__(self) -> None:
        if self.above not in get_args(Above):
            raise ValueError(f"above must be one of {', '.join(get_args(Above))}, got {self.above!r}")

    def __call__(self, path: Path, made: Made, generator: torch.Generator) -> Tensor:
        """The times (batch,)."""
        step = as_step(made)
        top = step.start if self.above == "start" else torch.full_like(step.start, path.t_max)
        low, high = clock_at(path, step.arrival), clock_at(path, top)
        tau = low + (high - low) * uniform(len(low), generator, low.device)
        return torch.maximum(within(path, time_of_clock(path, tau.clamp(1e-12, 1 - 1e-12))), step.arrival)


@dataclass(frozen=True)
class Diffused:
    """The state that a step arrives at, noised on to the times t.

    x_t = a_t·x0 + b_t·y + sigma_t·noise,   noise = (r·sigma_s·eps̄ + delta·eps)/sigma_t,   r = a_t/a_s,
    delta² = sigma_t² − r²·sigma_s², with s the arrival, eps̄ the noise that the step sees in its input, and
    eps fresh. For the step to the clean end that is plain noising.

    Args:
        x: the noised states (batch, ...).
        t: their times.
        noise: eps, the fresh part.
        freshness: delta/sigma_t of every sample, float64.
    """

    x: Tensor
    t: Tensor
    noise: Tensor
    freshness: Tensor

    @classmethod
    def of(cls, path: Path, step: Step, t: Tensor, noise: Tensor, y: Tensor | None) -> "Diffused":
        """From a step, times and a fresh standard normal draw; without graph."""
        x0 = step.x.detach()
        (a_k, b_k, sigma_k), (a_s, _, sigma_s) = path.evaluate(step.start), path.evaluate(step.arrival)
        a_t, _, sigma_t = path.evaluate(t)
        seen = step.state - spread(a_k, x0) * x0
        seen = (seen if y is None or not path.uses_y else seen - spread(b_k, x0) * y) / spread(sigma_k, x0)
        old = a_t / a_s * sigma_s / sigma_t
        fresh = (1 - old.square()).clamp_min(0).sqrt()
        mixed = spread(old, x0) * seen + spread(fresh, x0) * noise
        return cls(path.corrupt(x0, t, mixed, y), t, noise, fresh)


@dataclass(frozen=True, eq=False)
class TrajectoryMatching(Term):
    """family(D_phi(x_t), D_psi(x_t)) with x_t the state that a step arrives at, noised on to t.

    The gradient goes to the x0 that the step points at, D_psi − D_phi being sigma²/a times the difference of
    the scores of student and teacher at t. With one step and t up to t_max it is that of `ScoreMatching`.

    Args:
        teacher: the frozen model, or several in turn.
        prediction: of the fake score's network.
        family: see ScoreMatching.
        levels: times above the arrival.
        guidance: of the teacher; None: it is asked with the conditions of the batch alone.

    Reference: Luo et al. 2025 (TDM), eq. 8.
    """

    teacher: Teacher
    prediction: str | Prediction
    family: Family = field(default_factory=lambda: PseudoTarget("tdm-huber"))
    levels: Between = field(default_factory=Between)
    guidance: TeacherGuidance | None = None
    name: str = "matching"

    def frozen(self) -> Mapping[str, nn.Module]:
        """The teacher, or all of them."""
        return teacher_networks(self.teacher)

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,)."""
        step, teacher = as_step(made), teacher_at(self.teacher, batch, moment)
        path = teacher.path
        t = self.levels(path, step, generator)
        state = Diffused.of(path, step, t, normal_like(step.x, generator), batch.y)
        flows = {TEACHER: teacher, FAKE: batch.flow_map(networks[FAKE], path, self.prediction)}
        with torch.no_grad():
            if self.guidance is None:
                real, fake = (flow.x0(state.x, t) for flow in flows.values())
            else:
                scales = self.guidance.scales(len(t), generator, t.device)
                real, fake = (
                    self.guidance.x0(name, flow, state.x, t, scales) for name, flow in flows.items()
                )
        return self.family(Estimates(path, t, step.x, real, fake))


class TrajectoryDistributionMatching(ScoreDistillation):
    """Score distillation of a `Chain`, whose fake score learns the states on the way.

    target "score": the fake score learns the score of x_t, by denoising the fresh noise; with
    f = delta²/sigma_t², which is 1 for the step to the clean end,

        w(t)·mean (f·(D_psi(x_t) − D*))²,   D* = (x_t − sigma_t²/delta·eps)/a_t   (x − b·y in place of x),

    so that a student on the teacher's own trajectories has no gradient. target "estimate": the published
    code's regression on the x0 that the step points at, w(t)·mean (D_psi(x_t) − x0)², whose best fake score
    differs from that for all steps but the last.

    Args:
        path: of student, teacher and fake score.
        prediction: of the student.
        matching: the first term of the student's loss.
        generation: the student's steps.
        fake: of which network, prediction, weight, updates and optimizer count; its times are the matching's.
        terms: further ones.
        target: what the fake score learns.
        optimizer: of the student (None: that of the run).

    Raises:
        ValueError: target is unknown.

    Reference: Luo et al. 2025 (TDM), section 4.1, and published code.
    """

    def __init__(
        self,
        path: Path,
        prediction: str | Prediction,
        matching: TrajectoryMatching,
        generation: Chain,
        fake: FakeScore,
        *,
        terms: Sequence[Term] = (),
        target: str = "estimate",
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        if target not in get_args(Target):
            raise ValueError(f"target must be one of {', '.join(get_args(Target))}, got {target!r}")
        super().__init__(
            path, prediction, (matching, *terms), generation=generation, fake=fake, optimizer=optimizer
        )
        self.levels, self.follower, self.target = matching.levels, fake, target

    def _fake_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        read = SampleBatch.read(batch)
        with torch.no_grad():
            step = as_step(self._make(networks, read, generator, moment))
        return self.fake_loss(networks, step, read, generator).mean()

    def fake_loss(
        self, networks: Networks, step: Step, batch: SampleBatch, generator: torch.Generator
    ) -> Tensor:
        """What the fake score pays for a step, one number per sample."""
        t = self.levels(self.path, step, generator)
        state = Diffused.of(self.path, step, t, normal_like(step.x, generator), batch.y)
        fake = batch.flow_map(networks[FAKE], self.path, self.follower.prediction)
        estimate = fake.x0(state.x, t)
        error = estimate - step.x if self.target == "estimate" else self._score_error(state, estimate, fake.y)
        weight = weighting(self.follower.weight)(self.path, t).to(error.dtype)
        return weight * error.square().flatten(1).mean(1)

    def _score_error(self, state: Diffused, estimate: Tensor, y: Tensor | None) -> Tensor:
        """f·(D_psi − D*), with nothing divided by delta."""
        a, b, sigma = self.path.evaluate(state.t)
        z = state.x if y is None else state.x - spread(b, state.x) * y
        fresh = state.freshness
        left = spread(fresh.square(), z) * (estimate - z / spread(a, z))
        return left + spread(fresh * sigma / a, z) * state.noise


def as_step(made: Made) -> Step:
    """The same, known to be a step.

    Raises:
        TypeError: it is none, because the generation was no Chain.
    """
    if not isinstance(made, Step):
        raise TypeError(f"trajectory matching needs the steps of a Chain, got {type(made).__name__}")
    return made
