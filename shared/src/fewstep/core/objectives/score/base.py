"""ScoreDistillation: a student learns to draw what a teacher's scores call likely."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.fake import FAKE, FakeScore
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment, Objective, Phase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import STUDENT, Losses, MakeOptimizer, Networks


@dataclass(frozen=True)
class Made:
    """What a student made of noise, and how.

    Args:
        x: its samples (batch, ...), with the graph in the student's phase.
        start: time of the call that made them (batch,), float64.
        state: what that call got, x at `start` (batch, ...), without graph.
        noise: that the generation began with (batch, ...).
    """

    x: Tensor
    start: Tensor
    state: Tensor
    noise: Tensor


class Term(ABC):
    """A summand of the student's loss; weighted by itself.

    Attributes:
        name: under which it is logged.
    """

    name: str

    @abstractmethod
    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,)."""

    def frozen(self) -> Mapping[str, nn.Module]:
        """Networks that never change, by name; every term finds them among its `networks`."""
        return {}


class Generation(ABC):
    """How a student makes samples."""

    @abstractmethod
    def __call__(
        self, student: FlowMap, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Made:
        """Samples, one for each of the batch, with the graph of the call that is trained."""


@dataclass(frozen=True)
class Judge:
    """An adversarial head, and how much it counts.

    Args:
        head: see AdversarialHead.
        student_weight: of its loss of the student, next to the terms (0: it only estimates ratios).
        judge_weight: of its own loss, next to the fake score's.
        begins: share of the run after which the student listens to it.
    """

    head: AdversarialHead
    student_weight: float = 3e-3
    judge_weight: float = 1e-2
    begins: float = 0.0


class ScoreDistillation(Objective):
    """Train a student by terms that look at what it makes, in turns with the score of what it makes.

    Phases: "fake", `fake.updates` times in a row, in which the fake score learns to denoise the student's
    samples and the judge to tell them from data; then "student", in which the terms add up. Without fake and
    judge there is only the latter. x0 of the batch is looked at by the judge and by terms that say so,
    otherwise only its shape counts.

    Args:
        path: of student, teacher and fake score.
        prediction: of the student.
        terms: of the student's loss, first of all a `ScoreMatching`.
        generation: how the student makes samples.
        fake: the fake score and its training; None: there is none.
        judge: an adversarial head; None: there is none.
        optimizer: of the student (None: that of the run).

    Raises:
        ValueError: there is nothing to train the student with, or two terms have the same name.
    """

    def __init__(
        self,
        path: Path,
        prediction: str | Prediction,
        terms: Sequence[Term],
        *,
        generation: Generation,
        fake: FakeScore | None = None,
        judge: Judge | None = None,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        names = [term.name for term in terms]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"terms must be at least one, with different names, got {names}")
        self.path, self.prediction, self.terms = path, prediction, tuple(terms)
        self.generation, self.fake, self.judge, self.optimizer = generation, fake, judge, optimizer

    def phases(self) -> tuple[Phase, ...]:
        """Phase "fake", if anything besides the student is trained, and "student"."""
        student = Phase("student", self._student_loss, optimizer=self.optimizer)
        others = tuple(self.modules())
        if not others:
            return (student,)
        updates, optimizer = (self.fake.updates, self.fake.optimizer) if self.fake else (1, None)
        return Phase(FAKE, self._fake_loss, others, updates, optimizer), student

    def modules(self) -> dict[str, nn.Module]:
        """The fake score and the head."""
        modules = {} if self.fake is None else {FAKE: self.fake.net}
        return modules if self.judge is None else modules | dict(self.judge.head.modules())

    def frozen(self) -> tuple[nn.Module, ...]:
        """What terms and judge have brought, above all the teacher."""
        nets = [net for term in self.terms for net in term.frozen().values()]
        return tuple(dict.fromkeys(nets if self.judge is None else [*nets, *self.judge.head.frozen()]))

    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:
        """Tell the judge that it has moved."""
        if self.judge is not None and phase == FAKE:
            self.judge.head.after_update(moment)

    def _student_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        read, networks = SampleBatch.read(batch), self._all(networks)
        made = self._make(networks, read, generator, moment)
        losses = {term.name: term(networks, made, read, generator, moment) for term in self.terms}
        if self.judge is not None and self.judge.student_weight and moment.progress >= self.judge.begins:
            judged = self.judge.head.student_loss(networks, made.x, read, generator, moment)
            losses["adversarial"] = self.judge.student_weight * judged
        means = {name: loss.mean() for name, loss in losses.items()}
        return {"loss": torch.stack(list(means.values())).sum()} | _logged(means)

    def _fake_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        read, networks = SampleBatch.read(batch), self._all(networks)
        with torch.no_grad():
            made = self._make(networks, read, generator, moment)
        means: dict[str, Tensor] = {}
        if self.fake is not None:
            means["denoising"] = self.fake.loss(self.path, networks, made.x, read, generator).mean()
        if self.judge is not None:
            judged = self.judge.head.judge_loss(networks, read.x0, made.x, read, generator, moment)
            means["judge"] = self.judge.judge_weight * judged["loss"]
        return {"loss": torch.stack(list(means.values())).sum()} | _logged(means)

    def _make(
        self, networks: Networks, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Made:
        student = batch.flow_map(networks[STUDENT], self.path, self.prediction)
        return self.generation(student, batch, generator, moment)

    def _all(self, networks: Networks) -> Networks:
        return {**networks, **{name: net for term in self.terms for name, net in term.frozen().items()}}


def _logged(means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parts for the log, unless the loss itself says it all."""
    return {name: mean.detach() for name, mean in means.items()} if len(means) > 1 else {}
