"""The fake score: a denoiser of what the student makes, which follows it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.objectives.times import LogNormal, TimeSampler
from fewstep.core.objectives.weights import Weighting, weighting
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training.phases import MakeOptimizer, Networks

FAKE = "fake"


@dataclass(frozen=True)
class FakeScore:
    """A denoiser D_psi that learns the student's samples, by w(t)·mean (D_psi(x_t) − x)².

    It must begin as the teacher and move at least as often as the student: what it has not yet learned is
    missing from the student's gradient.

    Args:
        net: its network, a copy of the teacher's.
        prediction: what the network predicts.
        times: noise levels it is trained at.
        weight: of the error of x0 by time, a name of `WEIGHTS` or a function.
        updates: for every update of the student.
        optimizer: of the fake score and the judge (None: that of the run).

    Raises:
        ValueError: updates is below 1, or there is no such weight.

    Reference: Yin et al. 2024, "One-step Diffusion with Distribution Matching Distillation", eq. 6; Yin et
        al. 2024, "Improved Distribution Matching Distillation", section 4.2 (several updates).
    """

    net: nn.Module
    prediction: str | Prediction
    times: TimeSampler = field(default_factory=LogNormal)
    weight: str | Weighting = "karras"
    updates: int = 1
    optimizer: MakeOptimizer | None = None

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ValueError(f"updates must be at least 1, got {self.updates}")
        weighting(self.weight)

    def loss(
        self, path: Path, networks: Networks, x: Tensor, batch: SampleBatch, generator: torch.Generator
    ) -> Tensor:
        """One number per sample, (batch,).

        Args:
            path: of the noise.
            networks: of which "fake" is trained.
            x: what the student made (batch, ...).
            batch: with the conditions.
            generator: of times and noise.
        """
        t = self.times(path, len(x), generator, x.device)
        x_t = path.corrupt(x, t, normal_like(x, generator), batch.y)
        estimate = batch.flow_map(networks[FAKE], path, self.prediction).x0(x_t, t)
        error = (estimate - x).square().flatten(1).mean(1)
        return weighting(self.weight)(path, t).to(error.dtype) * error
