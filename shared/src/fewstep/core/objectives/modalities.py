"""Modalities: parts of one sample at times of their own, some of them clean."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.core import predictions
from fewstep.core.clock import spread
from fewstep.core.objectives.couplings import AsGiven, Coupling
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import SampleBatch, uniform
from fewstep.core.objectives.times import TimeSampler, UniformClock
from fewstep.core.objectives.weights import Weighting, weighting
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment, SinglePhase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import Losses


@dataclass(frozen=True)
class Part:
    """A modality or a task: some channels of a sample.

    Args:
        size: number of entries along dimension 1.
        times: which times it is seen at when it is noised.
        clean: share of the samples in which it is given clean, as a condition.
        weight: of its loss.

    Raises:
        ValueError: size is below 1, or clean not in [0, 1).
    """

    size: int
    times: TimeSampler = UniformClock()  # noqa: RUF009 - frozen
    clean: float = 0.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")
        if not 0 <= self.clean < 1:
            raise ValueError(f"clean must lie in [0, 1), got {self.clean}")


class ModalityObjective(SinglePhase):
    """Denoise several modalities with one network, each at its own time; clean ones are conditions.

    The network is called as net(x, t, **conditions) with x of all parts along dimension 1 and t of shape
    (batch, parts), as the path tells each time. A part given clean stands at t_min without noise, and has no
    loss. If all parts of a sample are drawn clean, the first one is noised.

    Args:
        path: of every part; one without y.
        prediction: of the network, for every part.
        parts: in the order of the channels.
        weight: of the error of x0 by time.
        distance: between x0 and its estimate, of each part.
        coupling: of noise and data.

    Raises:
        ValueError: there are no parts, or the path uses y; (when called) the sizes do not add up.

    Reference: in the manner of Bao et al. 2023, "One Transformer Fits All Distributions in Multi-Modal
        Diffusion at Scale" (UniDiffuser), equation 6.
    """

    def __init__(
        self,
        path: Path,
        prediction: str | Prediction,
        parts: Sequence[Part],
        *,
        weight: str | Weighting = "velocity",
        distance: Distance = SquaredError(),  # noqa: B008 - frozen
        coupling: Coupling = AsGiven(),  # noqa: B008 - frozen
    ) -> None:
        if not parts:
            raise ValueError("parts must hold at least one Part, got none")
        if path.uses_y:
            raise ValueError(f"path must be one without y, got {path}")
        self.path, self.prediction = path, predictions.get(prediction)
        self.parts, self.weight = tuple(parts), weighting(weight)
        self.distance, self.coupling = distance, coupling

    def loss(self, student: nn.Module, batch: Batch, generator: torch.Generator, moment: Moment) -> Losses:
        """The weighted sum of the parts' losses, each a mean over the samples in which the part is noised."""
        read = self.coupling(SampleBatch.read(batch), self.path, generator, moment)
        times, noised = self.times(len(read.x0), generator, read.x0.device)
        losses = self.errors(student, read, times, noised)
        counted = noised.to(losses.dtype)
        means = (losses * counted).sum(0) / counted.sum(0).clamp_min(1)
        return torch.stack([part.weight * mean for part, mean in zip(self.parts, means, strict=True)]).sum()

    def times(
        self, count: int, generator: torch.Generator, device: torch.device | str
    ) -> tuple[Tensor, Tensor]:
        """A time for every part of every sample and whether it is noised, both (batch, parts)."""
        times = [part.times(self.path, count, generator, device) for part in self.parts]
        noised = torch.stack([uniform(count, generator, device) >= part.clean for part in self.parts], dim=1)
        noised[:, 0] |= ~noised.any(1)
        return torch.where(noised, torch.stack(times, dim=1), self.path.t_min), noised

    def errors(self, student: nn.Module, batch: SampleBatch, times: Tensor, noised: Tensor) -> Tensor:
        """The weighted distance of every part, (batch, parts)."""
        sizes = [part.size for part in self.parts]
        if sum(sizes) != batch.x0.shape[1]:
            raise ValueError(
                f"the parts have {sum(sizes)} entries, x0 has {batch.x0.shape[1]} along dimension 1"
            )
        assert batch.noise is not None
        x0, noise = batch.x0.split(sizes, dim=1), batch.noise.split(sizes, dim=1)
        x = [
            torch.where(spread(used, x) > 0, self.path.corrupt(x, t, e), x)
            for x, e, t, used in zip(x0, noise, times.unbind(1), noised.unbind(1), strict=True)
        ]
        shown = [spread(self.path.input_scale_at(t), v) * v for v, t in zip(x, times.unbind(1), strict=True)]
        told = self.path.network_time_at(times).to(batch.x0.dtype)
        out = student(torch.cat(shown, dim=1), told, **batch.conditions).to(batch.x0.dtype)
        losses = []
        for said, state, truth, t in zip(out.split(sizes, dim=1), x, x0, times.unbind(1), strict=True):
            estimate = self.prediction.to_x0(self.path, t, state, said)
            losses.append(self.weight(self.path, t).to(truth.dtype) * self.distance(estimate, truth))
        return torch.stack(losses, dim=1)
