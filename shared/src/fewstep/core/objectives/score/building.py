"""The parts that the score methods share, made from what a method has to work with."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from fewstep.core.objectives.adversarial.features import NamedFeatures
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.adversarial.heads import feature_shapes, head_for
from fewstep.core.objectives.methods.base import Material
from fewstep.core.objectives.score.base import Judge, ScoreDistillation, Term
from fewstep.core.objectives.score.divergences import RatioWeight
from fewstep.core.objectives.score.fake import FakeScore
from fewstep.core.objectives.score.generation import SeveralSteps
from fewstep.core.objectives.score.levels import Karras
from fewstep.core.objectives.score.matching import Ratio
from fewstep.core.objectives.score.teacher_guidance import TeacherGuidance
from fewstep.core.objectives.times import LogNormal, TimeSampler
from fewstep.core.sampling import Sampling
from fewstep.core.training.phases import MakeOptimizer

STUDENT_SAMPLING = Sampling("consistency", steps=1, kappa=2.5)
"""One call at sigma/a = 2.5, where a teacher's denoiser still tells samples apart (SiD's sigma_init)."""


def adam(rate: float, beta: float = 0.0) -> MakeOptimizer:
    """Adam with betas (beta, 0.999)."""

    def make(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=rate, betas=(beta, 0.999))

    return make


def settings(beta: float = 0.9) -> dict[str, Any]:
    """Fields of a recipe: Adam with that first beta, a falling rate, and clipping that seldom acts."""
    return {
        "learning_rate": 3e-4,
        "optimizer": "adam",
        "betas": (beta, 0.999),
        "schedule": "cosine",
        "clip": 10.0,
    }


def assembled(
    material: Material, terms: Sequence[Term], fake: FakeScore, judged: Judge | None = None
) -> ScoreDistillation:
    """The objective of these parts, whose student makes samples as it will be sampled."""
    made = generation(material)
    return ScoreDistillation(
        material.path, material.prediction, terms, generation=made, fake=fake, judge=judged
    )


def generation(material: Material) -> SeveralSteps:
    """As many calls at the same times as the student will be sampled with."""
    sampling = material.sampling or STUDENT_SAMPLING
    return SeveralSteps(tuple(sampling.grid(material.path)[:-1]))


def fake_score(
    material: Material, updates: int, rate: float | None, beta: float, times: TimeSampler | None = None
) -> FakeScore:
    """A copy of the teacher, trained with EDM's weight."""
    net, prediction = material.copy_of_teacher(), material.taught().prediction
    optimizer = None if rate is None else adam(rate, beta)
    return FakeScore(net, prediction, times or LogNormal(), updates=updates, optimizer=optimizer)


def judge(
    material: Material, fake: FakeScore, student_weight: float, judge_weight: float, begins: float = 0.0
) -> Judge:
    """A head on the fake score's deepest features, which looks at samples at every noise level.

    Raises:
        ValueError: the network has no `features`.
    """
    features = getattr(fake.net, "features", None)
    if features is None:
        kind = type(fake.net).__name__
        raise ValueError(f"an adversarial head needs a network with features; {kind} has none")
    like = next(fake.net.parameters())
    shape = feature_shapes(features, like.new_zeros(1, *material.shape))[-1]
    head = AdversarialHead(material.path, head_for(shape), NamedFeatures("fake"), times=Karras(0.0, 1.0))
    return Judge(head, student_weight, judge_weight, begins)


def ratio(judged: Judge, divergence: str) -> Ratio:
    """The densities' ratio as that judge sees it."""
    return Ratio(judged.head.log_ratio, RatioWeight(divergence))


def guidance(
    material: Material, scale: float, highest: float | None = None, networks: tuple[str, ...] = ("teacher",)
) -> TeacherGuidance | None:
    """Guidance of a model with classes; None at scale 1.

    Raises:
        ValueError: the model has no label that means "none".
    """
    if scale == 1 and highest is None:
        return None
    if material.null_label is None:
        raise ValueError("guidance needs a teacher with classes and a label that means none; use scale 1")
    null = {"label": torch.tensor([material.null_label])}
    return TeacherGuidance(null, scale, highest, networks)
