"""Progressive distillation."""

from typing import Literal

from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.trajectory.progressive import HalvedSteps, ProgressiveDistillation
from fewstep.core.sampling import Sampling


def progressive(
    material: Material,
    start: int = 64,
    end: int = 1,
    decay: float = 0.99,
    grid: str = "clock",
    weight: Literal["uniform", "snr", "snr+1", "karras", "truncated-snr"] = "truncated-snr",
) -> ProgressiveDistillation:
    """Halve the steps from `start` to `end`; the options are those of the objective and of `HalvedSteps`."""
    return ProgressiveDistillation(
        material.path,
        material.prediction,
        material.taught(),
        material.student,
        HalvedSteps(grid, weight=weight),
        start=start,
        end=end,
        decay=decay,
    )


METHODS = {
    "progressive": Method(
        "Salimans and Ho 2022",
        "progressive distillation: students that take two steps in one, again and again",
        progressive,
        needs=("teacher", "data"),
        sampling=Sampling("ode", steps=1, spacing="clock", solver="ddim"),
        settings={"learning_rate": 4e-4},
    ),
}
