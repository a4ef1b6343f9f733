"""Rectified flow: reflow, and distillation of the straightened flow to few steps."""

import torch
from torch import nn

from fewstep.core.objectives.couplings import Annealed, Coupling, Mirrored, Paired
from fewstep.core.objectives.denoising import DenoisingObjective, Error
from fewstep.core.objectives.distances import Mixture, PseudoHuber, distance
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.perceptual import HighFrequency
from fewstep.core.objectives.times import Choice, Fixed, UShaped, time_sampler
from fewstep.core.objectives.trajectory.base import JumpRule, TrajectoryDistillation
from fewstep.core.objectives.trajectory.regression import (
    FlowGuided,
    PairDistillation,
    TeacherSolution,
    Together,
)
from fewstep.core.objectives.trajectory.straightening import Straightening, even_boundaries
from fewstep.core.sampling import Sampling
from fewstep.core.search.boss import boss_times

SETTINGS = {"learning_rate": 5e-4, "schedule": "cosine"}
FINE = {"learning_rate": 2e-4, "schedule": "cosine"}
ONE_STEP = Sampling("ode", 1, spacing="clock", solver="ddim")


def reflow(
    material: Material, times: str = "uniform-clock", loss: str = "squared", mirror: float = 0.0
) -> DenoisingObjective:
    """Flow matching on the teacher's pairs."""
    return _reflow(material, Error("velocity", "uniform", distance(loss)), times, Paired(), mirror)


def improved_reflow(
    material: Material, a: float = 4.0, c: float = 0.00054, mirror: float = 0.0
) -> DenoisingObjective:
    """Reflow with U-shaped times and a pseudo-Huber loss, c per element; see the docs for a feature term."""
    size = torch.Size(material.shape).numel()
    huber = Mixture(((1 / size, PseudoHuber(c * size)),))
    return DenoisingObjective(
        material.path,
        material.prediction,
        Error("velocity", "uniform", huber),
        times=UShaped(a),
        coupling=_mirrored(Paired(), mirror),
    )


def slimflow(
    material: Material,
    kind: str = "linear",
    share: float = 0.5,
    times: str = "uniform-clock",
    mirror: float = 0.0,
) -> DenoisingObjective:
    """Annealed reflow, for a student that does not begin with the teacher's weights; pictures: mirror=0.5."""
    return _reflow(material, Error("velocity"), times, Annealed(kind, share=share), mirror)


def _reflow(
    material: Material, error: Error, times: str, coupling: Coupling, mirror: float
) -> DenoisingObjective:
    return DenoisingObjective(
        material.path,
        material.prediction,
        error,
        times=time_sampler(times),
        coupling=_mirrored(coupling, mirror),
    )


def _mirrored(coupling: Coupling, probability: float) -> Coupling:
    return Mirrored(coupling, probability) if probability else coupling


def pair_distillation(
    material: Material, steps: int = 1, loss: str = "squared", high_frequency: float = 0.0
) -> TrajectoryDistillation:
    """The sample of each pair from its noise, or from `steps` points of the line between them."""
    grid = even_boundaries(material.path, steps)[:-1]
    chosen = distance(loss)
    if high_frequency:
        chosen = Mixture(((1.0, chosen), (high_frequency, HighFrequency())))
    times = Fixed() if steps == 1 else Choice(grid)
    return _jumping(material, PairDistillation(times, chosen))


def online_distillation(
    material: Material, solver_steps: int = 8, loss: str = "squared"
) -> TrajectoryDistillation:
    """The end of the teacher's ODE from fresh noise."""
    return _jumping(material, TeacherSolution(solver_steps, distance(loss)))


def slimflow_distillation(
    material: Material, guided: float = 1.0, loss: str = "squared"
) -> TrajectoryDistillation:
    """Pairs, and fresh noise with two steps of the teacher."""
    chosen = distance(loss)
    pairs = PairDistillation(distance=chosen)
    return _jumping(material, Together(((1.0, pairs), (guided, FlowGuided(distance=chosen)))))


def boss(
    material: Material,
    steps: int | None = None,
    points: int = 100,
    samples: int = 100,
    solver_steps: int = 4,
    seed: int = 0,
) -> "Straightened":
    """Straightening between the times that dynamic programming finds for the teacher."""
    teacher = material.taught()
    generator = torch.Generator().manual_seed(seed)
    parameters = teacher.net.parameters() if isinstance(teacher.net, nn.Module) else ()
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    noise = torch.randn(samples, *material.shape, generator=generator).to(device)
    x = material.path.coefficients(material.path.t_max)[2] * noise
    grid = boss_times(teacher.denoiser, material.path, _steps(material, steps), x, points=points)
    return Straightened(material, Straightening(tuple(grid), solver_steps, "noise"))


def perflow(material: Material, steps: int | None = None, solver_steps: int = 4) -> "Straightened":
    """Straightening between even times, from noised data."""
    grid = even_boundaries(material.path, _steps(material, steps))
    return Straightened(material, Straightening(grid, solver_steps, "data"))


def _steps(material: Material, steps: int | None) -> int:
    if steps is not None:
        return steps
    return FEW_STEPS.steps if material.sampling is None else material.sampling.steps


FEW_STEPS = Sampling("ode", 4, spacing="clock", solver="ddim")


class Straightened(TrajectoryDistillation):
    """Straightening of a flow between fixed times.

    Attributes:
        sampling: the Euler steps between just these times, with which the student must be sampled.
    """

    def __init__(self, material: Material, rule: Straightening) -> None:
        super().__init__(material.path, material.prediction, rule, material.taught())
        inner = tuple(rule.boundaries[1:-1])
        self.sampling = Sampling("ode", len(inner) + 1, times=inner, spacing="clock", solver="ddim")


def _jumping(material: Material, rule: JumpRule) -> TrajectoryDistillation:
    return TrajectoryDistillation(material.path, material.prediction, rule, material.teacher)


METHODS = {
    "reflow": Method(
        "Liu, Gong and Liu 2023",
        "flow matching on the teacher's pairs straightens its paths",
        reflow,
        ("pairs",),
        ONE_STEP,
        settings=SETTINGS,
    ),
    "improved-reflow": Method(
        "Lee, Lin and Fanti 2024",
        "reflow with U-shaped times and a pseudo-Huber loss",
        improved_reflow,
        ("pairs",),
        ONE_STEP,
        settings=SETTINGS,
    ),
    "slimflow": Method(
        "Zhu, Liu and Liu 2024",
        "annealed reflow into a smaller student",
        slimflow,
        ("pairs",),
        ONE_STEP,
        settings=SETTINGS,
    ),
    "instaflow": Method(
        "Liu et al. 2024; Liu, Gong and Liu 2023",
        "one-step distillation on the pairs of a straightened flow",
        pair_distillation,
        ("pairs",),
        ONE_STEP,
        settings=FINE,
    ),
    "online-distillation": Method(
        "Luhman and Luhman 2021",
        "one step against the whole ODE of the teacher, solved during training",
        online_distillation,
        ("teacher", "data"),
        ONE_STEP,
        settings=FINE,
    ),
    "slimflow-distill": Method(
        "Zhu, Liu and Liu 2024",
        "one-step distillation on pairs, guided by two teacher steps from fresh noise",
        slimflow_distillation,
        ("teacher", "pairs"),
        ONE_STEP,
        settings=FINE,
    ),
    "boss": Method(
        "Nguyen, Nguyen and Nguyen 2024",
        "straightening between the best times of a few Euler steps",
        boss,
        ("teacher", "data"),
        FEW_STEPS,
        settings=FINE,
    ),
    "perflow": Method(
        "Yan et al. 2024",
        "straightening between even times, piece by piece",
        perflow,
        ("teacher", "data"),
        FEW_STEPS,
        settings=FINE,
    ),
}
