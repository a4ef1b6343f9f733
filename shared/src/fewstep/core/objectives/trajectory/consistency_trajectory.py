"""ConsistencyTrajectory: CTM's jumps, denoising and judge in one objective."""

import torch
from torch import Tensor, nn

from fewstep.core.conditions import condition_names
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.trajectory.base import Decay, TrajectoryDistillation
from fewstep.core.objectives.trajectory.ctm import TrajectoryConsistency
from fewstep.core.objectives.trajectory.ctm_outer import OuterFlowMap
from fewstep.core.objectives.trajectory.ctm_terms import Balance, DenoisingTerm
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment, Phase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import STUDENT, MakeOptimizer, Networks

JUDGE = "judge"


class ConsistencyTrajectory(TrajectoryDistillation):
    """Train a student that jumps between any two times.

    loss = jumps + lambda_d·denoising + lambda_a·adversarial,

    with weights that make every term move the last layer as much as the jumps do. The student's sample in the
    adversarial term is the estimate at the clean end.

    Args:
        path: of the states.
        prediction: of the student.
        rule: the jumps.
        teacher: the frozen model whose steps the jumps follow.
        student: the network that will be trained, which takes the argument s; copied as target.
        target: decay of the target, or a function of the moment.
        denoising: the term, or None.
        adversarial: the judge, or None.
        adversarial_from: share of the run after which the student sees the judge.
        denoising_balance: of the denoising term.
        adversarial_balance: of the adversarial term.
        optimizer: of the student (None: that of the run).
        judge_optimizer: of the judge (None: that of the run).

    Raises:
        ValueError: the student takes no second time, or an option is out of range.

    Reference: Kim et al. 2024, "Consistency Trajectory Models", equation 13 and algorithm 1.
    """

    def __init__(
        self,
        path: Path,
        prediction: str | Prediction,
        rule: TrajectoryConsistency,
        teacher: FlowMap | None,
        *,
        student: nn.Module,
        target: Decay = 0.999,
        denoising: DenoisingTerm | None = None,
        adversarial: AdversarialHead | None = None,
        adversarial_from: float = 0.0,
        denoising_balance: Balance | None = None,
        adversarial_balance: Balance | None = None,
        optimizer: MakeOptimizer | None = None,
        judge_optimizer: MakeOptimizer | None = None,
    ) -> None:
        accepted = condition_names(student)
        if accepted is not None and "s" not in accepted:
            raise ValueError("student must take a second time s; build it with two_times=True")
        if not 0 <= adversarial_from <= 1:
            raise ValueError(f"adversarial_from must lie in [0, 1], got {adversarial_from!r}")
        super().__init__(path, prediction, rule, teacher, student=student, target=target, optimizer=optimizer)
        self.jumps, self.denoising, self.adversarial = rule, denoising, adversarial
        self.adversarial_from, self.judge_optimizer = adversarial_from, judge_optimizer
        self.denoising_balance = denoising_balance or Balance()
        self.adversarial_balance = adversarial_balance or Balance(0.01, 10.0)

    def phases(self) -> tuple[Phase, ...]:
        """One phase, "train"; with a judge "student" and "judge" in turns."""
        if self.adversarial is None:
            return super().phases()
        judges = tuple(self.adversarial.modules())
        return (
            Phase(STUDENT, self._loss, optimizer=self.optimizer),
            Phase(JUDGE, self._judge_loss, trains=judges, optimizer=self.judge_optimizer),
        )

    def modules(self) -> dict[str, nn.Module]:
        """The target, and the judge."""
        judge = {} if self.adversarial is None else self.adversarial.modules()
        return {**super().modules(), **judge}

    def frozen(self) -> tuple[nn.Module, ...]:
        """The teacher, and what the judge looks through."""
        judge = () if self.adversarial is None else self.adversarial.frozen()
        return (*super().frozen(), *judge)

    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:
        """Move the target after the student's updates; tell the judge of its own."""
        if phase != JUDGE:
            super().after_update(phase, networks, moment)
        elif self.adversarial is not None:
            self.adversarial.after_update(moment)

    def _loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> dict[str, Tensor]:
        situation = self.situation(networks, batch, generator, moment)
        net = networks[STUDENT]
        losses, estimate = self.jumps.between(situation, *self.jumps.draw(situation))
        jumps = losses.mean()
        total, logged = jumps, {"jumps": jumps.detach()}
        if self.denoising is not None:
            student = OuterFlowMap.of(situation.student, self.jumps.outer)
            term = self.denoising(student, situation.batch, generator).mean()
            weight = self.denoising_balance(jumps, term, net)
            total = total + weight * term
            logged |= {"denoising": term.detach(), "denoising_weight": weight}
        if self.adversarial is not None and moment.progress >= self.adversarial_from:
            judged = self.adversarial.student_loss(networks, estimate, situation.batch, generator, moment)
            term = judged.mean()
            weight = self.adversarial_balance(jumps, term, net)
            total = total + weight * term
            logged |= {"adversarial": term.detach(), "adversarial_weight": weight}
        return {"loss": total, **logged}

    def _judge_loss(
        self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment
    ) -> dict[str, Tensor]:
        if self.adversarial is None:
            raise ValueError("there is no judge")
        situation = self.situation(networks, batch, generator, moment)
        with torch.no_grad():
            noise, visited, s = self.jumps.draw(situation)
            read: SampleBatch = situation.batch
            x = self.path.corrupt(read.x0, visited[0], noise, read.y)
            made = self.jumps.estimate(situation, x, visited[0], s)
        return self.adversarial.judge_loss(networks, read.x0, made, read, generator, moment)
