"""Shortcut models."""

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.trajectory.base import TrajectoryDistillation
from fewstep.core.objectives.trajectory.shortcut import Shortcut
from fewstep.core.sampling import Sampling


def shortcut(
    material: Material,
    finest: int = 128,
    share: float = 0.125,
    guidance: float = 1.0,
    drop: float = 0.1,
    bound: float | None = 4.0,
    target: float = 0.999,
) -> TrajectoryDistillation:
    """A flow and its shortcuts in one network; the options are those of `Shortcut`."""
    rule = Shortcut(finest, share, guidance, material.null_label, drop, bound)
    return TrajectoryDistillation(
        material.path, material.prediction, rule, student=material.student, target=target
    )


METHODS = {
    "shortcut": Method(
        "Frans et al. 2025",
        "shortcut model: flow matching, and one step equals two half steps",
        shortcut,
        needs=("data",),
        sampling=Sampling("flow-map", steps=1, spacing="clock"),
        two_times=True,
        settings={"learning_rate": 4e-4, "schedule": "cosine"},
    ),
}
