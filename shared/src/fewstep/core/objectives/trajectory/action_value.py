"""OFQL: a one-step policy that imitates by MeanFlow and seeks value by a critic."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.trajectory.velocity_matching import generated

Critic = Callable[[Tensor, Mapping[str, Any]], Tensor]
"""critic(actions, conditions) → (batch,)"""


@dataclass(frozen=True)
class ActionValue(JumpRule):
    """−Q(s, a)/sg(mean |Q|) with a = eps − u(eps, 1, 0 | s), one call of the student.

    The mean couples the batch, as in the paper. Together with imitation:

        imitation = MeanFlow(Ordered(ratio=0.5), p=0.0)
        WeightedRules((("imitation", 1.0, imitation), ("value", eta, ActionValue(q))))

    Args:
        critic: Q of actions and the conditions of the batch; its weights must not be trained by this loss.
        limit: actions are clipped to ±limit before the critic sees them (None: not).

    Raises:
        ValueError: limit is not positive.

    Reference: "One-Step Flow Q-Learning" (OFQL) 2025, the actor's loss with lambda = eta/E|Q|.
    """

    critic: Critic
    limit: float | None = 1.0

    def __post_init__(self) -> None:
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit must be None or positive, got {self.limit!r}")

    def __call__(self, situation: Situation) -> Tensor:
        """The negative value of the student's own actions."""
        actions, _ = generated(situation.student, situation.batch.x0, situation.generator)
        if self.limit is not None:
            actions = actions.clamp(-self.limit, self.limit)
        values = self.critic(actions, situation.batch.conditions)
        return -values / values.detach().abs().mean().clamp_min(1e-8)
