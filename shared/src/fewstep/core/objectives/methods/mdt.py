"""MDT-dist: velocity matching and velocity distillation."""

from typing import Literal

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.score.velocity_distillation import VelocityDistillation
from fewstep.core.objectives.times import LogitNormal
from fewstep.core.objectives.trajectory.base import TrajectoryDistillation
from fewstep.core.objectives.trajectory.guided_velocity import LabelGuidance
from fewstep.core.objectives.trajectory.velocity_matching import VelocityMatching
from fewstep.core.objectives.trajectory.weighted_rules import WeightedRules
from fewstep.core.sampling import Sampling


def make(
    material: Material,
    kind: Literal["discrete", "continuous", "cm"] = "discrete",
    matching: float = 1.0,
    distillation: float = 1.0,
    c: float | None = None,
    matching_guidance: float = 1.0,
    distillation_guidance: float = 1.0,
    mean: float = 1.0,
    std: float = 1.0,
) -> TrajectoryDistillation:
    """Both losses of MDT-dist.

    Args:
        material: what there is to work with.
        kind: of velocity matching.
        matching: its weight.
        distillation: weight of velocity distillation.
        c: of the normalised derivative; the paper's, for large latents, is 0.1.
        matching_guidance: scale of the teacher's guidance in matching (the paper: 41).
        distillation_guidance: scale of it in distillation (the paper: 101).
        mean: of the logit of the clock.
        std: of the same.
    """

    def rule(scale: float) -> VelocityMatching:
        guidance = None
        if scale != 1:
            if material.null_label is None:
                raise ValueError("guidance needs a model with classes")
            guidance = LabelGuidance(scale, material.null_label)
        return VelocityMatching(kind, c=c, times=LogitNormal(mean, std), guidance=guidance)

    rules = WeightedRules(
        (
            ("matching", matching, rule(matching_guidance)),
            ("distillation", distillation, VelocityDistillation(rule(distillation_guidance))),
        )
    )
    return TrajectoryDistillation(material.path, material.prediction, rules, material.taught())


METHODS = {
    "mdt": Method(
        "MDT-dist 2025",
        "velocity matching and distillation; the student is its own fake score",
        make,
        needs=("teacher", "data"),
        sampling=Sampling("flow-map", steps=1, spacing="clock"),
        settings={"learning_rate": 2e-4, "schedule": "cosine"},
    )
}
