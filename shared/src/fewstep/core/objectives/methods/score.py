"""Score distillation by integral KL: Diff-Instruct, VSD, DMD and what was made of them."""

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.score.base import ScoreDistillation, Term
from fewstep.core.objectives.score.building import (
    STUDENT_SAMPLING,
    assembled,
    fake_score,
    guidance,
    judge,
    settings,
)
from fewstep.core.objectives.score.families import InnerProduct
from fewstep.core.objectives.score.levels import Anywhere
from fewstep.core.objectives.score.matching import ScoreMatching
from fewstep.core.objectives.score.regression import Regression
from fewstep.core.objectives.score.teacher_guidance import GuidanceAugmentation
from fewstep.core.objectives.times import LogNormal


def diff_instruct(
    material: Material, fake_updates: int = 1, fake_learning_rate: float | None = 1e-3
) -> ScoreDistillation:
    """The plain gradient of the integral KL divergence, at EDM's training levels."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.0)
    matching = ScoreMatching(teacher, fake.prediction, InnerProduct(), Anywhere(LogNormal()))
    return assembled(material, [matching], fake)


def vsd(
    material: Material,
    guidance_scale: float = 1.0,
    fake_updates: int = 1,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """Variational score distillation of a generator: the difference of noises, weighted by sigma²."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.9)
    guided = guidance(material, guidance_scale)
    matching = ScoreMatching(teacher, fake.prediction, InnerProduct("vsd"), guidance=guided)
    return assembled(material, [matching], fake)


def snoopi(
    material: Material,
    lowest: float = 2.0,
    highest: float = 6.0,
    fake_updates: int = 1,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """VSD with a random scale of guidance, the same for teacher and fake score."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.9)
    guided = guidance(material, lowest, highest, ("teacher", "fake"))
    matching = ScoreMatching(teacher, fake.prediction, InnerProduct("vsd"), guidance=guided)
    return assembled(material, [matching], fake)


def dmd(
    material: Material,
    regression: float = 0.0,
    guidance_scale: float = 1.0,
    fake_updates: int = 5,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """Distribution matching; with `regression` > 0 also the teacher's pairs, their error that many times."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.9)
    guided = guidance(material, guidance_scale)
    terms: list[Term] = [ScoreMatching(teacher, fake.prediction, guidance=guided)]
    if regression:
        terms.append(Regression(weight=regression))
    return assembled(material, terms, fake)


def dmd2(
    material: Material,
    gan_weight: float = 3e-3,
    judge_weight: float = 1e-2,
    guidance_scale: float = 1.0,
    fake_updates: int = 5,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """Distribution matching and a judge on the fake score's features."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.9)
    matching = ScoreMatching(teacher, fake.prediction, guidance=guidance(material, guidance_scale))
    return assembled(material, [matching], fake, judge(material, fake, gan_weight, judge_weight))


def decoupled_dmd(
    material: Material,
    guidance_scale: float = 4.5,
    fake_updates: int = 5,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """Distribution matching at all levels, guidance at those below the student's call."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.9)
    terms: list[Term] = [ScoreMatching(teacher, fake.prediction)]
    guided = guidance(material, guidance_scale)
    if guided is not None:
        terms.append(GuidanceAugmentation(teacher, guided))
    return assembled(material, terms, fake)


METHODS = {
    "diff-instruct": Method(
        "Luo et al. 2023",
        "integral KL divergence to the teacher, one call",
        diff_instruct,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings=settings(beta=0.0),
    ),
    "vsd": Method(
        "Wang et al. 2023; Nguyen and Tran 2024",
        "variational score distillation of a one-call generator (SwiftBrush without its LoRA)",
        vsd,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings=settings(),
    ),
    "snoopi": Method(
        "Nguyen et al. 2024",
        "variational score distillation under random guidance scales",
        snoopi,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings=settings(),
    ),
    "dmd": Method(
        "Yin et al. 2024a",
        "distribution matching, optionally with regression on the teacher's pairs",
        dmd,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings=settings(),
    ),
    "dmd2": Method(
        "Yin et al. 2024b",
        "distribution matching with a judge, one or more calls",
        dmd2,
        needs=("teacher", "data"),
        sampling=STUDENT_SAMPLING,
        settings=settings(),
    ),
    "decoupled-dmd": Method(
        "Liu et al. 2025",
        "distribution matching as regulariser of guidance, each with its own noise levels",
        decoupled_dmd,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings=settings(),
    ),
}
