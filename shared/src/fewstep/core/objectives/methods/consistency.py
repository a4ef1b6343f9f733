"""Consistency models: distilled, trained from data, improved, made easy, truncated."""

from typing import Literal

from fewstep.core.objectives.distances import AbsoluteError, Distance, PseudoHuber, SquaredError
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.times import LogNormal
from fewstep.core.objectives.trajectory.base import TrajectoryDistillation
from fewstep.core.objectives.trajectory.consistency import Consistency
from fewstep.core.objectives.trajectory.curricula import AdaptiveDecay, DoublingPoints, ProgressivePoints
from fewstep.core.objectives.trajectory.easy_consistency import ShrinkingPairs
from fewstep.core.objectives.trajectory.pairs import GridPairs
from fewstep.core.objectives.trajectory.truncated import TruncatedConsistency, TruncatedLogT
from fewstep.core.sampling import Sampling

Norm = Literal["l1", "l2", "huber"]
Weight = Literal["uniform", "snr", "snr+1", "karras", "truncated-snr", "gap"]
SAMPLING = Sampling("consistency", steps=1, spacing="clock")
_NORMS: dict[str, Distance] = {"l1": AbsoluteError(), "l2": SquaredError(), "huber": PseudoHuber()}


def distilled(
    material: Material,
    points: int = 40,
    target: float = 0.95,
    transport: Literal["heun", "euler", "clock-heun"] = "heun",
    norm: Norm = "l2",
    weight: Weight = "uniform",
) -> TrajectoryDistillation:
    """Consistency distillation; the options are those of `GridPairs` and `Consistency`."""
    rule = Consistency(GridPairs(points), transport, _NORMS[norm], weight)
    return TrajectoryDistillation(
        material.path,
        material.prediction,
        rule,
        material.taught(),
        student=material.student,
        target=target,
    )


def trained(
    material: Material,
    start: int = 2,
    end: int = 150,
    target: float = 0.9,
    norm: Norm = "l2",
    weight: Weight = "uniform",
) -> TrajectoryDistillation:
    """Consistency training; start, end and target are s0, s1 and mu0 of the two curricula."""
    points = ProgressivePoints(start, end)
    return TrajectoryDistillation(
        material.path,
        material.prediction,
        Consistency(GridPairs(points), "data", _NORMS[norm], weight),
        student=material.student,
        target=AdaptiveDecay(points, target),
    )


def improved(
    material: Material,
    start: int = 10,
    end: int = 1280,
    mean: float = -1.1,
    std: float = 2.0,
    c: float | None = None,
    weight: Weight = "gap",
) -> TrajectoryDistillation:
    """Improved consistency training; c is that of `PseudoHuber`."""
    pairs = GridPairs(DoublingPoints(start, end), density=(mean, std))
    rule = Consistency(pairs, "data", PseudoHuber(c), weight)
    return TrajectoryDistillation(material.path, material.prediction, rule)


def easy(
    material: Material,
    q: float = 2.0,
    stages: int = 8,
    mapping: Literal["sigmoid", "constant"] = "sigmoid",
    k: float = 8.0,
    mean: float = -1.1,
    std: float = 2.0,
    c: float = 0.0,
    weight: Weight = "gap",
) -> TrajectoryDistillation:
    """Easy consistency tuning; the options are those of `ShrinkingPairs` and c of `PseudoHuber`."""
    pairs = ShrinkingPairs(LogNormal(mean, std), q, stages, mapping, k)
    rule = Consistency(pairs, "data", PseudoHuber(c), weight)
    return TrajectoryDistillation(material.path, material.prediction, rule)


def truncated(
    material: Material,
    start: float = 1.0,
    share: float = 0.25,
    boundary: float = 0.1,
    q: float = 256.0,
    stages: int = 1,
    c: float | None = None,
) -> TrajectoryDistillation:
    """The second stage of truncated consistency models; the teacher is the first, a consistency model."""
    rule = TruncatedConsistency(
        start,
        share,
        boundary,
        TruncatedLogT(start),
        ShrinkingPairs(q=q, stages=stages),
        PseudoHuber(c),
    )
    return TrajectoryDistillation(material.path, material.prediction, rule, material.taught())


METHODS = {
    "cd": Method(
        "Song et al. 2023",
        "consistency distillation: one Heun step of the teacher between two estimates",
        distilled,
        needs=("teacher", "data"),
        sampling=SAMPLING,
        prediction="edm-boundary",
        settings={"learning_rate": 4e-4, "schedule": "cosine"},
    ),
    "ct": Method(
        "Song et al. 2023",
        "consistency training: from data alone, with a grid that grows finer",
        trained,
        needs=("data",),
        sampling=SAMPLING,
        prediction="edm-boundary",
        settings={"learning_rate": 4e-4, "schedule": "cosine"},
    ),
    "ict": Method(
        "Song and Dhariwal 2023",
        "improved consistency training: no averaged target, pseudo-Huber, doubling grids",
        improved,
        needs=("data",),
        sampling=SAMPLING,
        prediction="edm-boundary",
        settings={"learning_rate": 4e-4, "schedule": "cosine"},
    ),
    "ect": Method(
        "Geng et al. 2024",
        "easy consistency tuning: from a denoiser to a consistency model",
        easy,
        needs=("data",),
        sampling=SAMPLING,
        settings={"learning_rate": 4e-4, "schedule": "cosine"},
    ),
    "tcm": Method(
        "Lee et al. 2025",
        "truncated consistency model: second stage of a consistency model, noisy times only",
        truncated,
        needs=("teacher", "data"),
        sampling=SAMPLING,
        settings={"learning_rate": 1e-4, "schedule": "cosine"},
    ),
}
