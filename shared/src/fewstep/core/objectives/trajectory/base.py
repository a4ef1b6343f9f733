"""TrajectoryDistillation: a student learns to jump along the solutions of an ODE."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment, Objective, Phase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import STUDENT, Losses, MakeOptimizer, Networks

TARGET = "target"
Decay = float | Callable[[Moment], float]


@dataclass(frozen=True)
class Situation:
    """What a jump rule works with, for one batch.

    Args:
        student: with gradients.
        target: the network that targets come from: an average of the student, or the student itself; its
            parameters get no gradient (what flows through its input may).
        teacher: the frozen model; None: there is none.
        batch: data, noise, conditions.
        generator: of every random draw.
        moment: where the run stands.
    """

    student: FlowMap
    target: FlowMap
    teacher: FlowMap | None
    batch: SampleBatch
    generator: torch.Generator
    moment: Moment

    @property
    def path(self) -> Path:
        """Of all of them."""
        return self.student.path

    def taught(self) -> FlowMap:
        """The teacher.

        Raises:
            ValueError: there is none.
        """
        if self.teacher is None:
            raise ValueError("this rule needs a teacher")
        return self.teacher


class JumpRule(ABC):
    """One way to say where a jump must lead; a frozen dataclass with the paper's options.

    With t > r ≥ s, Phi the student's jump and T the transport (a solver's step of the teacher, or the line to
    the data),

        loss = w·dist(Phi(x_t, t → s), sg[Phi_target(T(x_t, t → r), r → s)]).
    """

    @abstractmethod
    def __call__(self, situation: Situation) -> Losses:
        """The loss of a batch, or a mapping with "loss" and other scalars."""


class TrajectoryDistillation(Objective):
    """Train a student by a jump rule.

    Args:
        path: of the states.
        prediction: of the student.
        rule: see JumpRule.
        teacher: the frozen model, for rules that ask it.
        target: decay of the average of the student that targets come from: a number, or a function of the
            moment; None: the student itself, without gradient.
        optimizer: of the student (None: that of the run).

    Raises:
        ValueError: target is a number outside [0, 1).

    Reference: the rules name their own.
    """

    def __init__(
        self,
        path: Path,
        prediction: str | Prediction,
        rule: JumpRule,
        teacher: FlowMap | None = None,
        *,
        student: nn.Module | None = None,
        target: Decay | None = None,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        if isinstance(target, float | int) and not 0 <= target < 1:
            raise ValueError(f"target must be a decay in [0, 1), got {target!r}")
        if target is not None and student is None:
            raise ValueError("an averaged target is a copy of the student; pass student=")
        self.path, self.prediction, self.rule = path, prediction, rule
        self.teacher, self.decay, self.optimizer = teacher, target, optimizer
        self.target: nn.Module | None = None
        if target is not None and student is not None:
            self.target = copy.deepcopy(student).requires_grad_(False)

    def phases(self) -> tuple[Phase, ...]:
        """One phase, "train"."""
        return (Phase("train", self._loss, optimizer=self.optimizer),)

    def modules(self) -> dict[str, nn.Module]:
        """The averaged target, if there is one."""
        return {} if self.target is None else {TARGET: self.target}

    def frozen(self) -> tuple[nn.Module, ...]:
        """The teacher."""
        net = None if self.teacher is None else self.teacher.net
        return (net,) if isinstance(net, nn.Module) else ()

    @torch.no_grad()
    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:
        """Move the target towards the student."""
        if self.target is None or self.decay is None:
            return
        decay = self.decay(moment) if callable(self.decay) else self.decay
        for ours, theirs in zip(self.target.parameters(), networks[STUDENT].parameters(), strict=True):
            ours.lerp_(theirs, 1 - decay)
        for theirs, ours in zip(networks[STUDENT].buffers(), self.target.buffers(), strict=True):
            ours.copy_(theirs)

    def situation(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> Situation:
        """What the rule works with, for a batch of the run."""
        read = SampleBatch.read(batch)
        student = read.flow_map(networks[STUDENT], self.path, self.prediction)
        target = student
        if self.target is not None:
            target = read.flow_map(networks[TARGET], self.path, self.prediction)
        teacher = None if self.teacher is None else self.teacher.given(**student.conditions)
        return Situation(student, target, teacher, read, generator, moment)

    def _loss(self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment) -> Losses:
        losses = self.rule(self.situation(networks, batch, generator, moment))
        return losses.mean() if isinstance(losses, Tensor) else losses
