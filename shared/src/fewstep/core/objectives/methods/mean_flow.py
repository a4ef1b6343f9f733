"""MeanFlow, from data and from a teacher."""

from typing import Literal

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.times import LogitNormal
from fewstep.core.objectives.trajectory.base import TrajectoryDistillation
from fewstep.core.objectives.trajectory.mean_flow import MeanFlow
from fewstep.core.objectives.trajectory.time_pairs import Ordered
from fewstep.core.sampling import Sampling

Derivative = Literal["jvp", "difference"]
SAMPLING = Sampling("flow-map", steps=1, spacing="clock")


def _rule(ratio: float, p: float, mean: float, std: float, derivative: Derivative) -> MeanFlow:
    return MeanFlow(Ordered(LogitNormal(mean, std), ratio), p, mode=derivative)


def from_data(
    material: Material,
    ratio: float = 0.5,
    p: float = 0.5,
    mean: float = -0.4,
    std: float = 1.0,
    derivative: Derivative = "jvp",
) -> TrajectoryDistillation:
    """MeanFlow from data alone; the options are those of `Ordered` and `MeanFlow`."""
    return TrajectoryDistillation(material.path, material.prediction, _rule(ratio, p, mean, std, derivative))


def from_teacher(
    material: Material,
    ratio: float = 0.75,
    p: float = 0.5,
    mean: float = -0.4,
    std: float = 1.0,
    derivative: Derivative = "jvp",
) -> TrajectoryDistillation:
    """MeanFlow with a teacher's velocity in place of the data's, which has no variance."""
    rule = _rule(ratio, p, mean, std, derivative)
    return TrajectoryDistillation(material.path, material.prediction, rule, material.taught())


METHODS = {
    "meanflow": Method(
        "Geng et al. 2025",
        "average velocities learned from data by their own derivative",
        from_data,
        needs=("data",),
        sampling=SAMPLING,
        two_times=True,
        settings={"learning_rate": 6e-4, "schedule": "cosine"},
    ),
    "meanflow-distill": Method(
        "Geng et al. 2025",
        "average velocities learned from a teacher's velocity",
        from_teacher,
        needs=("teacher", "data"),
        sampling=SAMPLING,
        two_times=True,
        settings={"learning_rate": 6e-4, "schedule": "cosine"},
    ),
}
