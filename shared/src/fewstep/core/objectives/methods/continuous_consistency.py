"""sCM: continuous-time consistency, from data (sCT) and from a teacher (sCD)."""

from typing import Literal

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.times import LogNormal
from fewstep.core.objectives.trajectory.continuous_consistency import (
    ContinuousConsistency,
    ContinuousConsistencyTraining,
    LogVariance,
)
from fewstep.core.sampling import Sampling

Derivative = Literal["jvp", "difference"]
SAMPLING = Sampling("consistency", steps=1)


def _rule(
    material: Material, warmup: int | None, mean: float, std: float, derivative: Derivative
) -> ContinuousConsistency:
    updates = max(1, min(10_000, material.updates // 4)) if warmup is None else warmup
    return ContinuousConsistency(LogNormal(mean, std), updates, log_variance=LogVariance(), mode=derivative)


def from_data(
    material: Material,
    warmup: int | None = None,
    mean: float = -1.0,
    std: float = 1.4,
    derivative: Derivative = "jvp",
) -> ContinuousConsistencyTraining:
    """sCT; warmup None is 10,000 updates, or a quarter of a shorter run."""
    rule = _rule(material, warmup, mean, std, derivative)
    return ContinuousConsistencyTraining(material.path, material.prediction, rule)


def from_teacher(
    material: Material,
    warmup: int | None = None,
    mean: float = -1.0,
    std: float = 1.4,
    derivative: Derivative = "jvp",
) -> ContinuousConsistencyTraining:
    """sCD; warmup None is 10,000 updates, or a quarter of a shorter run."""
    rule = _rule(material, warmup, mean, std, derivative)
    return ContinuousConsistencyTraining(material.path, material.prediction, rule, material.taught())


METHODS = {
    "sct": Method(
        "Lu and Song 2025",
        "consistency in continuous time, from data",
        from_data,
        needs=("data",),
        sampling=SAMPLING,
        settings={"learning_rate": 2e-4, "schedule": "cosine"},
    ),
    "scm": Method(
        "Lu and Song 2025",
        "consistency in continuous time, from a teacher (sCD)",
        from_teacher,
        needs=("teacher", "data"),
        sampling=SAMPLING,
        settings={"learning_rate": 2e-4, "schedule": "cosine"},
    ),
}
