"""TwinFlow: student, teacher and fake score in one network."""

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.trajectory.base import TrajectoryDistillation
from fewstep.core.objectives.trajectory.twin_flow import TwinFlow
from fewstep.core.sampling import Sampling


def make(
    material: Material,
    interval: float = 0.01,
    limit: float = 1.0,
    substeps: int = 2,
    pull: float = 0.5,
    target: float | None = 0.99,
    weighted: bool = True,
) -> TrajectoryDistillation:
    """The options are those of `TwinFlow`; target is the decay of the network that targets come from."""
    rule = TwinFlow(interval, limit, substeps, pull, weighted=weighted)
    return TrajectoryDistillation(
        material.path, material.prediction, rule, student=material.student, target=target
    )


METHODS = {
    "twinflow": Method(
        "TwinFlow 2025",
        "any-step velocities and a pull towards the data, student and fake score in one network",
        make,
        needs=("data",),
        sampling=Sampling("flow-map", steps=1, spacing="clock"),
        two_times=True,
        settings={"learning_rate": 4e-4, "schedule": "cosine"},
    )
}
