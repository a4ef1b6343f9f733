"""Multi-student distillation: each student serves some classes; smaller ones learn the score first."""

from typing import Literal

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.score.building import STUDENT_SAMPLING, assembled, fake_score, judge, settings
from fewstep.core.objectives.score.matching import ScoreMatching
from fewstep.core.objectives.score.students import ConditionFilter, Filtered, TeacherScoreMatching
from fewstep.core.training import Objective


def msd(
    material: Material,
    labels: tuple[int, ...] = (),
    stage: Literal["teacher-score", "distribution", "adversarial"] = "adversarial",
    gan_weight: float = 3e-3,
    judge_weight: float = 1e-2,
    fake_updates: int = 5,
    fake_learning_rate: float | None = 1e-3,
) -> Objective:
    """One of several students: its `labels` (none: all), and one of the stages, which follow each other."""
    inner = _stage(material, stage, gan_weight, judge_weight, fake_updates, fake_learning_rate)
    return Filtered(inner, ConditionFilter(labels)) if labels else inner


def _stage(
    material: Material,
    stage: str,
    gan_weight: float,
    judge_weight: float,
    fake_updates: int,
    fake_learning_rate: float | None,
) -> Objective:
    teacher = material.taught()
    if stage == "teacher-score":
        return TeacherScoreMatching(material.path, material.prediction, teacher)
    fake = fake_score(material, fake_updates, fake_learning_rate, 0.9)
    judged = judge(material, fake, gan_weight, judge_weight) if stage == "adversarial" else None
    return assembled(material, [ScoreMatching(teacher, fake.prediction)], fake, judged)


METHODS = {
    "msd": Method(
        "Song et al. 2024",
        "a student for some of the classes, also a smaller one that learns the teacher's score first",
        msd,
        needs=("teacher", "data"),
        sampling=STUDENT_SAMPLING,
        settings=settings(),
    ),
}
