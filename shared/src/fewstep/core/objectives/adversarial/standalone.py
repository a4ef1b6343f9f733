"""Distillation by a judge alone, with or without terms beside it: GAN, ADD, LADD, NitroFusion, APT."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.objectives.score.base import Generation, Made, Term
from fewstep.core.objectives.score.generation import start_state
from fewstep.core.objectives.times import Choice, TimeSampler, Uniform
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment, Objective, Phase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import STUDENT, Losses, MakeOptimizer, Networks

JUDGE = "judge"
_ALL, _SQUARED = Uniform(), SquaredError()


@dataclass(frozen=True)
class FromData(Generation):
    """x = D(x_t, t) at one of a few times: pure noise at the first, noised data at the others.

    Args:
        times: of the calls, decreasing.
        shares: how often each is drawn (None: all alike).

    Raises:
        ValueError: times do not decrease, or shares are not as many.

    Reference: Sauer et al. 2023, "Adversarial Diffusion Distillation", section 3.1; Sauer et al. 2024 (LADD),
        section 4.
    """

    times: tuple[float, ...]
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.times or any(a <= b for a, b in zip(self.times, self.times[1:], strict=False)):
            raise ValueError(f"times must be decreasing, got {self.times}")
        if self.shares is not None and len(self.shares) != len(self.times):
            raise ValueError(f"shares must be {len(self.times)} numbers, as many as times, got {self.shares}")

    def __call__(
        self, student: FlowMap, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Made:
        """Samples of one call each."""
        noise = batch.noise_or(generator)
        t = Choice(self.times, self.shares)(student.path, len(noise), generator, noise.device)
        pure, _ = start_state(student, noise, self.times[0])
        state = student.path.corrupt(batch.x0, t, noise, student.y)
        state = torch.where(spread(t >= self.times[0], noise) > 0, pure, state)
        return Made(student.x0(state, t), t, state, noise)


@dataclass(frozen=True)
class DenoisedByTeacher(Term):
    """weight·a(t)·dist(x, sg[D_teacher(x_t, t)]) with x_t the student's noised sample: ADD's second loss.

    Args:
        teacher: the frozen model.
        weight: of the term (2.5 in ADD).
        times: where the sample is noised to.
        distance: of the two.

    Reference: Sauer et al. 2023, "Adversarial Diffusion Distillation", eq. 4, with c(t) = a(t).
    """

    teacher: FlowMap
    weight: float = 2.5
    times: TimeSampler = _ALL
    distance: Distance = _SQUARED
    name = "denoised"

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample."""
        path, x = self.teacher.path, made.x
        t = self.times(path, len(x), generator, x.device)
        conditions = dict(batch.conditions) | ({"y": batch.y} if path.uses_y else {})
        with torch.no_grad():
            x_t = path.corrupt(x, t, normal_like(x, generator), batch.y)
            target = self.teacher.given(**conditions).x0(x_t, t)
        return self.weight * path.evaluate(t)[0].to(x.dtype) * self.distance(x, target)

    def frozen(self) -> Mapping[str, nn.Module]:
        """The teacher's network."""
        net = self.teacher.net
        return {"teacher": net} if isinstance(net, nn.Module) else {}


class AdversarialDistillation(Objective):
    """Train a student by what a judge says about its samples.

    Phases: "judge", `judge_updates` times in a row, then "student", whose loss is
    weight·student(l(x̂)) + terms. Data are what the batch holds: real ones, or a teacher's samples (LADD,
    NitroFusion).

    Args:
        path: of the states.
        prediction: of the student.
        judge: see AdversarialHead; its features come from a frozen or an own network.
        generation: how the student makes samples.
        terms: further summands of the student's loss.
        weight: of the judge's word next to the terms.
        judge_updates: for every update of the student.
        optimizer: of the student (None: that of the run).
        judge_optimizer: of the judge (None: that of the run).

    Raises:
        ValueError: two terms have the same name, or judge_updates is below 1.
    """

    def __init__(
        self,
        path: Path,
        prediction: str | Prediction,
        judge: AdversarialHead,
        *,
        generation: Generation,
        terms: Sequence[Term] = (),
        weight: float = 1.0,
        judge_updates: int = 1,
        optimizer: MakeOptimizer | None = None,
        judge_optimizer: MakeOptimizer | None = None,
    ) -> None:
        names = [term.name for term in terms]
        if len(set(names)) != len(names) or "adversarial" in names:
            raise ValueError(f"terms must have different names, none of them 'adversarial', got {names}")
        if judge_updates < 1:
            raise ValueError(f"judge_updates must be at least 1, got {judge_updates}")
        self.path, self.prediction, self.judge, self.generation = path, prediction, judge, generation
        self.terms, self.weight, self.judge_updates = tuple(terms), weight, judge_updates
        self.optimizer, self.judge_optimizer = optimizer, judge_optimizer

    def phases(self) -> tuple[Phase, ...]:
        """ "judge", then "student"."""
        trains = tuple(self.judge.modules())
        judge = Phase(JUDGE, self._judge_loss, trains, self.judge_updates, self.judge_optimizer)
        return judge, Phase("student", self._student_loss, optimizer=self.optimizer)

    def modules(self) -> dict[str, nn.Module]:
        """The judge."""
        return self.judge.modules()

    def frozen(self) -> tuple[nn.Module, ...]:
        """The network of the judge's features, and what the terms have brought."""
        terms = (net for term in self.terms for net in term.frozen().values())
        return tuple(dict.fromkeys((*self.judge.frozen(), *terms)))

    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:
        """Tell the judge of its update: a pool of heads refreshes itself."""
        if phase == JUDGE:
            self.judge.after_update(moment)

    def _judge_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        read = SampleBatch.read(batch)
        with torch.no_grad():
            made = self._make(networks, read, generator, moment)
        return self.judge.judge_loss(networks, read.x0, made.x, read, generator, moment)

    def _student_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        read = SampleBatch.read(batch)
        made = self._make(networks, read, generator, moment)
        judged = self.judge.student_loss(networks, made.x, read, generator, moment)
        parts = {"adversarial": self.weight * judged.mean()}
        named = {**networks, **{name: net for term in self.terms for name, net in term.frozen().items()}}
        for term in self.terms:
            parts[term.name] = term(named, made, read, generator, moment).mean()
        loss = torch.stack(list(parts.values())).sum()
        return {"loss": loss} | {name: part.detach() for name, part in parts.items()}

    def _make(
        self, networks: Networks, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Made:
        student = batch.flow_map(networks[STUDENT], self.path, self.prediction)
        return self.generation(student, batch, generator, moment)
