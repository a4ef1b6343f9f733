"""MDT's velocity distillation: the distribution of a one-step student, with itself as the fake score."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.core.objectives.sample_batch import normal_like
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.trajectory.velocity_matching import VelocityMatching, generated


@dataclass(frozen=True)
class VelocityDistillation(JumpRule):
    """The velocity at the start follows v − v_target, taken without gradient at the student's own samples.

    loss = ‖(v − v_target)(x_t, t) + v_start − sg(v_start)‖², so that ∂loss/∂v_start = 2·(v − v_target),

    with x0 = z − v_start a one-step sample, x_t its noisy state, and v, v_target those of velocity matching.
    No network but student and teacher is needed.

    Args:
        matching: how v_target is made.

    Reference: the authors' code of MDT-dist.
    """

    matching: VelocityMatching = field(default_factory=VelocityMatching)

    def __call__(self, situation: Situation) -> Tensor:
        """The mean over the elements; only its gradient means something."""
        x0, start = generated(situation.student, situation.batch.x0, situation.generator)
        with torch.no_grad():
            noise = normal_like(x0, situation.generator)
            match = self.matching.match(situation, x0.detach(), noise)
            pull = match.estimate - match.target
        return (pull + start - start.detach()).square().flatten(1).mean(1)
