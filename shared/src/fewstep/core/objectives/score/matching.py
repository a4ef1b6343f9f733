"""ScoreMatching: samples move from where the fake score sees them to where the teacher does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.clock import clock_at
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.objectives.score.backtrack import Teacher, teacher_at, teacher_networks
from fewstep.core.objectives.score.base import Made, Term
from fewstep.core.objectives.score.divergences import RatioWeight
from fewstep.core.objectives.score.fake import FAKE
from fewstep.core.objectives.score.families import Estimates, Family, PseudoTarget
from fewstep.core.objectives.score.levels import Anywhere, Karras, Levels
from fewstep.core.objectives.score.teacher_guidance import TEACHER, TeacherGuidance
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment
from fewstep.core.training.phases import Networks

LogRatio = Callable[[Networks, Tensor, Tensor, Mapping[str, Any]], Tensor]
"""(networks, x_t, t, conditions) → log q_t(x_t) − log p_t(x_t), (batch,); see `AdversarialHead.log_ratio`."""


@dataclass(frozen=True)
class Ratio:
    """Where q/p comes from and how it weighs.

    Args:
        log: see LogRatio.
        weight: what becomes of it.
    """

    log: LogRatio
    weight: RatioWeight = field(default_factory=RatioWeight)


@dataclass(frozen=True, eq=False)
class ScoreMatching(Term):
    """weight · family(D_phi(x_t), D_psi(x_t); h) with x_t the student's sample, noised to a drawn time.

    Args:
        teacher: the frozen model, or several in turn.
        prediction: of the fake score's network, "fake".
        family: integral divergence (`PseudoTarget`, `InnerProduct`) or Fisher divergence (`Fisher`).
        levels: times.
        guidance: of the teacher; None: it is asked with the conditions of the batch alone.
        ratio: of the densities; None: h = 1, the reverse KL divergence.
        weight: of the term.
        dtype: in which x_t is kept and differences are formed, such as torch.float64 where a network
            predicts noise and x0 is a small difference; None: that of the samples.
        name: in the log.

    Reference: the families name their own.
    """

    teacher: Teacher
    prediction: str | Prediction
    family: Family = field(default_factory=PseudoTarget)
    levels: Levels = field(default_factory=lambda: Anywhere(Karras(0.02, 0.98)))
    guidance: TeacherGuidance | None = None
    ratio: Ratio | None = None
    weight: float = 1.0
    dtype: torch.dtype | None = None
    name: str = "matching"

    def frozen(self) -> dict[str, nn.Module]:
        """The teacher, or all of them."""
        return teacher_networks(self.teacher)

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,)."""
        teacher = teacher_at(self.teacher, batch, moment)
        path = teacher.path
        flows = {TEACHER: teacher, FAKE: batch.flow_map(networks[FAKE], path, self.prediction)}
        x = made.x if self.dtype is None else made.x.to(self.dtype)
        t = self.levels(path, made, generator)
        x_t = path.corrupt(x, t, normal_like(made.x, generator).to(x.dtype), batch.y)
        with torch.set_grad_enabled(self.family.through and torch.is_grad_enabled()):
            if self.guidance is None:
                real, fake = (flow.x0(x_t, t) for flow in flows.values())
            else:
                scales = self.guidance.scales(len(t), generator, t.device)
                real, fake = (self.guidance.x0(name, flow, x_t, t, scales) for name, flow in flows.items())
        importance = self._importance(networks, path, x_t.detach(), t, batch)
        losses = self.family(Estimates(path, t, x, real, fake, importance))
        return (self.weight * losses).to(made.x.dtype)

    @torch.no_grad()
    def _importance(
        self, networks: Networks, path: Path, x_t: Tensor, t: Tensor, batch: SampleBatch
    ) -> Tensor | None:
        if self.ratio is None:
            return None
        log_ratio = self.ratio.log(networks, x_t, t, batch.conditions)
        return self.ratio.weight(log_ratio, clock_at(path, t)).to(x_t.dtype)
