"""Regression: the student repeats what the teacher's sampler made of the same noise."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.base import Made, Term
from fewstep.core.training import Moment
from fewstep.core.training.phases import Networks


@dataclass(frozen=True)
class Regression(Term):
    """weight·distance(x, x0) for batches whose noise is coupled to their data, and students of one call.

    Args:
        weight: of the term.
        distance: DMD has LPIPS.
        name: in the log.

    Reference: Yin et al. 2024 (DMD), eq. 9.
    """

    weight: float = 0.25
    distance: Distance = field(default_factory=SquaredError)
    name: str = "regression"

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,).

        Raises:
            ValueError: the batch has no coupled noise.
        """
        if batch.noise is None:
            raise ValueError("batch must hold the noise that its x0 was made of: regression needs pairs")
        return self.weight * self.distance(made.x, batch.x0)
