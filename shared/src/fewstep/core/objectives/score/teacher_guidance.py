"""Classifier-free guidance inside score distillation: fixed, of a random scale, or as a term of its own."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like, uniform
from fewstep.core.objectives.score.backtrack import Teacher, teacher_at, teacher_networks
from fewstep.core.objectives.score.base import Made, Term
from fewstep.core.objectives.score.fake import FAKE
from fewstep.core.objectives.score.families import Estimates, Family, PseudoTarget
from fewstep.core.objectives.score.levels import BelowStart, Levels
from fewstep.core.training import Moment
from fewstep.core.training.phases import Networks

TEACHER = "teacher"


@dataclass(frozen=True, eq=False)
class TeacherGuidance:
    """D = D_none + omega·(D_given − D_none), with omega fixed or uniform in a range, drawn for every sample.

    Args:
        null: the conditions that stand for "none", such as {"label": tensor([10])}.
        scale: omega, or the smallest.
        highest: the largest omega; None: it is `scale`.
        networks: which are guided: "teacher", or "teacher" and "fake", then with the same omega.

    Raises:
        ValueError: the range is empty, there is no null condition, or a network is unknown.

    Reference: Ho and Salimans 2022; Nguyen et al. 2024, "SNOOPI", section 4.1 (random scales, PG-SB).
    """

    null: Mapping[str, Tensor]
    scale: float = 1.75
    highest: float | None = None
    networks: tuple[str, ...] = (TEACHER,)

    def __post_init__(self) -> None:
        if not self.null:
            raise ValueError("null must name the conditions that stand for none, got none")
        if self.highest is not None and self.highest < self.scale:
            raise ValueError(f"highest must be at least scale={self.scale}, got {self.highest}")
        if not set(self.networks) <= {TEACHER, FAKE}:
            raise ValueError(f"networks must be of {TEACHER!r} and {FAKE!r}, got {self.networks}")

    def scales(self, count: int, generator: torch.Generator, device: torch.device) -> Tensor:
        """One omega per sample, float64."""
        if self.highest is None:
            return torch.full((count,), self.scale, dtype=torch.float64, device=device)
        return self.scale + (self.highest - self.scale) * uniform(count, generator, device)

    def x0(self, name: str, flow: FlowMap, x: Tensor, t: Tensor, scales: Tensor) -> Tensor:
        """The estimate of a network, guided if it is one of `networks`."""
        given = flow.x0(x, t)
        if name not in self.networks:
            return given
        none = self.without(flow).x0(x, t)
        return none + spread(scales, x) * (given - none)

    def without(self, flow: FlowMap) -> FlowMap:
        """The network without its conditions."""
        return flow.given(**self.null)


@dataclass(frozen=True, eq=False)
class GuidanceAugmentation(Term):
    """The guidance's share of a guided score difference, with times and a normaliser of its own.

    D_psi − D_guided = (D_psi − D_given) + (omega − 1)·(D_none − D_given): the first part matches
    distributions, the second, this one, carries guidance into the student. It asks no fake score.

    Args:
        teacher: see ScoreMatching.
        guidance: the null conditions and omega.
        family: whose normaliser this part has.
        levels: times; below the student's own by default.

    Reference: Liu et al. 2025, "Decoupled DMD: CFG Augmentation as the Spear, Distribution Matching as the
        Shield", eq. 8.
    """

    teacher: Teacher
    guidance: TeacherGuidance
    family: Family = field(default_factory=PseudoTarget)
    levels: Levels = field(default_factory=BelowStart)
    name: str = "guidance"

    def frozen(self) -> dict[str, nn.Module]:
        """The teacher."""
        return teacher_networks(self.teacher)

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,)."""
        teacher = teacher_at(self.teacher, batch, moment)
        t = self.levels(teacher.path, made, generator)
        x_t = teacher.path.corrupt(made.x, t, normal_like(made.x, generator), batch.y)
        with torch.set_grad_enabled(self.family.through and torch.is_grad_enabled()):
            given, none = teacher.x0(x_t, t), self.guidance.without(teacher).x0(x_t, t)
        excess = self.guidance.scales(len(t), generator, t.device) - 1
        return self.family(Estimates(teacher.path, t, made.x, given, none, excess.to(made.x.dtype)))
