"""Score distillation by Fisher divergences and by f-divergences: SiD, SIM, f-distill, Uni-Instruct."""

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.score.base import ScoreDistillation
from fewstep.core.objectives.score.building import (
    STUDENT_SAMPLING,
    assembled,
    fake_score,
    judge,
    ratio,
    settings,
)
from fewstep.core.objectives.score.families import Fisher, PseudoTarget
from fewstep.core.objectives.score.levels import Anywhere, Karras
from fewstep.core.objectives.score.matching import ScoreMatching


def sid(
    material: Material,
    alpha: float = 1.2,
    fake_updates: int = 1,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """Score identity distillation: the Fisher divergence with the weight alpha of its second part."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.0)
    matching = ScoreMatching(teacher, fake.prediction, Fisher(alpha, scale=100.0), Anywhere(Karras()))
    return assembled(material, [matching], fake)


def sim(
    material: Material,
    huber: float | None = None,
    fake_updates: int = 1,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """Score implicit matching: alpha = 1, with `huber` the pseudo-Huber distance of the scores."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.0)
    family = Fisher(1.0, huber=huber, scale=100.0)
    matching = ScoreMatching(teacher, fake.prediction, family, Anywhere(Karras()))
    return assembled(material, [matching], fake)


def f_distill(
    material: Material,
    divergence: str = "js",
    gan_weight: float = 1e-3,
    judge_weight: float = 1e-2,
    fake_updates: int = 5,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """DMD2 with an f-divergence, whose density ratio the judge estimates."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.9)
    judged = judge(material, fake, gan_weight, judge_weight)
    matching = ScoreMatching(teacher, fake.prediction, PseudoTarget(), ratio=ratio(judged, divergence))
    return assembled(material, [matching], fake, judged)


def uni_instruct(
    material: Material,
    divergence: str = "jeffreys",
    gan_weight: float = 1e-2,
    judge_weight: float = 1.0,
    gan_begins: float = 0.1,
    fake_updates: int = 1,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """A Fisher divergence weighted as an f-divergence's expansion along the path wants it, and a judge."""
    teacher, fake = material.taught(), fake_score(material, fake_updates, fake_learning_rate, 0.0)
    judged = judge(material, fake, gan_weight, judge_weight, gan_begins)
    family = Fisher(1.0)
    matching = ScoreMatching(
        teacher, fake.prediction, family, Anywhere(Karras()), ratio=ratio(judged, divergence)
    )
    return assembled(material, [matching], fake, judged)


METHODS = {
    "sid": Method(
        "Zhou et al. 2024",
        "score identity distillation, a Fisher divergence to the teacher",
        sid,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings=settings(beta=0.0),
    ),
    "sim": Method(
        "Luo et al. 2024",
        "score implicit matching, a Fisher divergence with the samples' distribution held fixed",
        sim,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings=settings(beta=0.0),
    ),
    "fdistill": Method(
        "Xu et al. 2025",
        "any f-divergence to the teacher, its density ratio from a judge",
        f_distill,
        needs=("teacher", "data"),
        sampling=STUDENT_SAMPLING,
        settings=settings(),
    ),
    "uni-instruct": Method(
        "Wang et al. 2025",
        "any f-divergence as a weighted Fisher divergence, its density ratio from a judge",
        uni_instruct,
        needs=("teacher", "data"),
        sampling=STUDENT_SAMPLING,
        settings=settings(beta=0.0),
    ),
}
