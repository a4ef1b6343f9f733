"""Objectives: how a network and a batch become a loss.

Five kinds make every paper: `DenoisingObjective`, `TrajectoryDistillation` with its jump rules,
`ScoreDistillation` with its terms, `AdversarialHead`, and guidance of the teacher. `methods` has the papers
by name, `distill` trains a student by one of them.
"""

from fewstep.core.objectives import methods
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.denoising import DenoisingObjective
from fewstep.core.objectives.distill import distill
from fewstep.core.objectives.recipe import DistillRecipe
from fewstep.core.objectives.score.base import ScoreDistillation
from fewstep.core.objectives.trajectory.base import TrajectoryDistillation
from fewstep.core.training import Moment, Objective, Phase, SinglePhase

__all__ = [
    "AdversarialHead",
    "DenoisingObjective",
    "DistillRecipe",
    "Moment",
    "Objective",
    "Phase",
    "ScoreDistillation",
    "SinglePhase",
    "TrajectoryDistillation",
    "distill",
    "methods",
]
