"""Reward: a student's samples are also judged by how much somebody likes them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.base import Made, Term
from fewstep.core.training import Moment
from fewstep.core.training.phases import Networks

RewardFunction = Callable[[Tensor, Mapping[str, Any]], Tensor]
"""(samples, conditions) → how good each of them is, (batch,); differentiable in the samples."""


@dataclass(frozen=True, eq=False)
class Reward(Term):
    """−weight·min(R(x), enough): samples climb a reward, held to the data by the other terms.

    Args:
        reward: see RewardFunction; a module is frozen.
        weight: of the term.
        begins: share of the run before which it is silent.
        enough: rewards above it are not asked for (None: more is always better), which keeps a student from
            exploiting the reward; SwiftBrush v2 clamps a CLIP similarity like this.

    Raises:
        ValueError: begins lies outside [0, 1].

    Reference: Flash-DMD 2025 (a reward beside distribution matching); Dao et al. 2024, "SwiftBrush v2",
        section 4.2 (clamped).
    """

    reward: RewardFunction | nn.Module
    weight: float = 1.0
    begins: float = 0.0
    enough: float | None = None
    name: str = "reward"

    def __post_init__(self) -> None:
        if not 0 <= self.begins <= 1:
            raise ValueError(f"begins must lie in [0, 1], got {self.begins!r}")

    def frozen(self) -> dict[str, nn.Module]:
        """The reward, if it is a network."""
        return {"reward": self.reward} if isinstance(self.reward, nn.Module) else {}

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,)."""
        if moment.progress < self.begins:
            return made.x.new_zeros(len(made.x))
        value = self.reward(made.x, batch.conditions)
        if value.shape != (len(made.x),):
            raise ValueError(f"the reward must be ({len(made.x)},), one number per sample, not {value.shape}")
        return -self.weight * (value if self.enough is None else value.clamp_max(self.enough))
