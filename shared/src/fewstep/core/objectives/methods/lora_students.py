"""Distillation with low-rank adapters: SwiftBrush's fake score, HiPA's student."""

import torch
from torch import nn

from fewstep.core.nets.lora import attach, shared_copy
from fewstep.core.objectives.distances import Mixture, SquaredError
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.perceptual import HighFrequency
from fewstep.core.objectives.score.base import ScoreDistillation
from fewstep.core.objectives.score.building import STUDENT_SAMPLING, adam, assembled, guidance, settings
from fewstep.core.objectives.score.fake import FakeScore
from fewstep.core.objectives.score.families import InnerProduct
from fewstep.core.objectives.score.matching import ScoreMatching
from fewstep.core.objectives.score.time_aware import TeacherRegression, WithTeacher


def swiftbrush(
    material: Material,
    rank: int = 64,
    guidance_scale: float = 1.0,
    fake_updates: int = 1,
    fake_learning_rate: float | None = 1e-3,
) -> ScoreDistillation:
    """Variational score distillation whose fake score is the teacher's own weights and a low-rank change."""
    teacher = material.taught()
    # Under guidance the teacher's network is a wrapper; the fake score is that of the network inside it.
    plain = getattr(material, "plain", None) or teacher.net
    if not isinstance(plain, nn.Module):
        raise ValueError("swiftbrush adapts the teacher's network, which must be a torch.nn.Module")
    net = shared_copy(plain)
    attach(net, rank, generator=torch.Generator().manual_seed(0))
    optimizer = None if fake_learning_rate is None else adam(fake_learning_rate, 0.9)
    fake = FakeScore(net, teacher.prediction, updates=fake_updates, optimizer=optimizer)
    guided = guidance(material, guidance_scale)
    matching = ScoreMatching(teacher, fake.prediction, InnerProduct("vsd"), guidance=guided)
    return assembled(material, [matching], fake)


def hipa(
    material: Material,
    rank: int = 64,
    high_frequency: float = 1.0,
    cutoff: float = 0.5,
    teacher_steps: int = 18,
    teacher_order: int = 2,
) -> ScoreDistillation:
    """Adapters of the student learn the teacher's result; what is fine counts `high_frequency` times more."""
    attach(material.student, rank, generator=torch.Generator().manual_seed(0))
    distance = Mixture(((1.0, SquaredError()), (high_frequency, HighFrequency(cutoff))))
    start = (material.sampling or STUDENT_SAMPLING).first(material.path)
    made = WithTeacher(material.taught(), start, teacher_steps, order=teacher_order)  # type: ignore[arg-type]
    return ScoreDistillation(
        material.path, material.prediction, [TeacherRegression(distance)], generation=made
    )


METHODS = {
    "swiftbrush": Method(
        "Nguyen and Tran 2024",
        "variational score distillation, the fake score a low-rank change of the teacher",
        swiftbrush,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings=settings(),
    ),
    "hipa": Method(
        "Zhang and Hooi 2023",
        "low-rank adapters repeat the teacher's many steps, with an eye on high frequencies",
        hipa,
        needs=("teacher",),
        sampling=STUDENT_SAMPLING,
        settings={**settings(), "learning_rate": 1e-3},
    ),
}
