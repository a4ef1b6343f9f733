"""SIGN: an idempotent network from a teacher's scores."""

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.score.base import ScoreDistillation, Term
from fewstep.core.objectives.score.building import STUDENT_SAMPLING, assembled, fake_score, settings
from fewstep.core.objectives.score.idempotence import Idempotence
from fewstep.core.objectives.score.matching import ScoreMatching


def sign(
    material: Material,
    idempotence: float = 1.0,
    fake_updates: int = 5,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """Distribution matching, and `idempotence` times ‖f(x) − x‖² on the student's own samples."""
    fake = fake_score(material, fake_updates, fake_learning_rate, 0.9)
    terms: list[Term] = [
        ScoreMatching(material.taught(), fake.prediction),
        Idempotence(material.path, material.prediction, idempotence),
    ]
    return assembled(material, terms, fake)


METHODS = {
    "sign": Method(
        "Zaman et al. 2025",
        "a one-call student that leaves its own samples as they are",
        sign,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings=settings(),
    ),
}
