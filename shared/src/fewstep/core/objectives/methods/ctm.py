"""Consistency trajectory models."""

from typing import Literal

from fewstep.core.objectives.distances import AbsoluteError, Distance, PseudoHuber, SquaredError
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.trajectory.consistency_trajectory import ConsistencyTrajectory
from fewstep.core.objectives.trajectory.ctm import TrajectoryConsistency
from fewstep.core.objectives.trajectory.ctm_terms import DenoisingTerm
from fewstep.core.sampling import Sampling

_NORMS: dict[str, Distance] = {"l1": AbsoluteError(), "l2": SquaredError(), "huber": PseudoHuber()}


def ctm(
    material: Material,
    points: int = 18,
    most: int | None = None,
    target: float = 0.999,
    transport: Literal["heun", "euler", "clock-heun"] = "heun",
    norm: Literal["l1", "l2", "huber"] = "l2",
    denoising: bool = True,
) -> ConsistencyTrajectory:
    """CTM without a judge; the options are those of `TrajectoryConsistency`, and whether it also denoises."""
    rule = TrajectoryConsistency(points, most=most, transport=transport, distance=_NORMS[norm])
    return ConsistencyTrajectory(
        material.path,
        material.prediction,
        rule,
        material.taught(),
        student=material.student,
        target=target,
        denoising=DenoisingTerm() if denoising else None,
    )


METHODS = {
    "ctm": Method(
        "Kim et al. 2024",
        "consistency trajectory model: jumps between any two times, and denoising",
        ctm,
        needs=("teacher", "data"),
        sampling=Sampling("flow-map", steps=1, spacing="clock"),
        two_times=True,
        settings={"learning_rate": 4e-4, "schedule": "cosine"},
    ),
}
