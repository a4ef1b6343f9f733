"""OFTSR: one-step restoration with tunable fidelity and realism."""

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.trajectory.base import TrajectoryDistillation
from fewstep.core.objectives.trajectory.fidelity_realism import FidelityRealism
from fewstep.core.sampling import Sampling


def make(
    material: Material, dt: float = 0.05, bound: float = 0.1, align: float = 0.01
) -> TrajectoryDistillation:
    """The options are those of `FidelityRealism`."""
    rule = FidelityRealism(dt, bound, align)
    return TrajectoryDistillation(material.path, material.prediction, rule, material.taught())


METHODS = {
    "oftsr": Method(
        "Zhu et al. 2025",
        "one-step restoration whose second time chooses between fidelity and realism",
        make,
        needs=("teacher", "data"),
        sampling=Sampling("flow-map", steps=1, spacing="clock"),
        two_times=True,
        settings={"learning_rate": 2e-4, "schedule": "cosine"},
    )
}
