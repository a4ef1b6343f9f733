"""TAD-SR: the teacher's result, how the teacher sees it, and a judge that knows the time."""

from fewstep.core.objectives.adversarial.building import frozen_judge
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.score.base import Judge, ScoreDistillation
from fewstep.core.objectives.score.building import settings
from fewstep.core.objectives.score.levels import BelowStart
from fewstep.core.objectives.score.time_aware import PerturbedScore, TeacherRegression, WithTeacher
from fewstep.core.objectives.times import Uniform
from fewstep.core.sampling import Sampling

ONE_CALL = Sampling("consistency", steps=1)


def tad_sr(
    material: Material,
    regression: float = 1.0,
    perturbed: float = 1.0,
    share: float = 1 / 3,
    gan_weight: float = 0.02,
    judge_weight: float = 1.0,
    teacher_steps: int = 15,
) -> ScoreDistillation:
    """A student of restoration, usually on a path with a degraded input; gan_weight = 0: without judge."""
    teacher, start = material.taught(), (material.sampling or ONE_CALL).first(material.path)
    terms = [
        TeacherRegression(weight=regression),
        PerturbedScore(teacher, BelowStart(share), weight=perturbed),
    ]
    judged = None
    if gan_weight:
        judged = Judge(frozen_judge(material, Uniform(), "hinge", None), gan_weight, judge_weight)
    return ScoreDistillation(
        material.path,
        material.prediction,
        terms,
        generation=WithTeacher(teacher, start, teacher_steps),
        judge=judged,
    )


METHODS = {
    "tad-sr": Method(
        "He et al. 2024",
        "one-call restoration: the teacher's result, its view of it, and a time-aware judge",
        tad_sr,
        needs=("teacher", "data"),
        sampling=ONE_CALL,
        settings=settings(),
    ),
}
