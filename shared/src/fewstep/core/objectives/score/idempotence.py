"""Idempotence: what a one-step student has made, it should leave as it is."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.objectives.score.base import Made, Term
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment
from fewstep.core.training.phases import STUDENT, Networks


@dataclass(frozen=True, eq=False)
class Idempotence(Term):
    """weight·dist(f(sg x), sg x), f(·) = D(·, start): the student as a map from anything to samples.

    The network is told the start time whatever its input is, so that one map takes noise to samples and
    samples to themselves. Only the outer call gets a gradient; where x should lie is up to the other terms.

    Args:
        path: of the student.
        prediction: of the student.
        weight: of the term.
        distance: of the two.

    Reference: Zaman, Liu and Chiu 2025, "Score-based Idempotent Distillation of Diffusion Models"; Shocher et
        al. 2024, "Idempotent Generative Network", eq. 8.
    """

    path: Path
    prediction: str | Prediction
    weight: float = 1.0
    distance: Distance = field(default_factory=SquaredError)
    name: str = "idempotence"

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,)."""
        student, x = batch.flow_map(networks[STUDENT], self.path, self.prediction), made.x.detach()
        return self.weight * self.distance(student.x0(x, made.start), x)


@torch.no_grad()
def project(
    student: FlowMap,
    x: Tensor,
    start: float,
    levels: Sequence[float] = (0.0,),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Bring anything to the student's samples: x ← f(x + sigma·eps) for every level, f(·) = D(·, start).

    Args:
        student: trained with `Idempotence`.
        x: noise, samples, damaged or foreign ones (batch, ...).
        start: time that the student was trained at.
        levels: sigma of the noise that is added before each projection, usually decreasing.
        generator: of that noise; not needed where all levels are 0.

    Returns:
        The projected samples.

    Raises:
        ValueError: a level is not 0 and there is no generator.
    """
    if any(levels) and generator is None:
        raise ValueError("generator is needed for levels other than 0, got None")
    t = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
    for level in levels:
        if level:
            assert generator is not None
            x = x + spread(torch.full_like(t, level), x) * normal_like(x, generator)
        x = student.x0(x, t)
    return x
