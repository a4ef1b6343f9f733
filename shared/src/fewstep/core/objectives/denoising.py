"""DenoisingObjective: regression of a network's output, x0 or velocity from noised data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.couplings import AsGiven, Coupling
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.loss_history import LossHistory
from fewstep.core.objectives.masking import Masking
from fewstep.core.objectives.sample_batch import SampleBatch, uniform
from fewstep.core.objectives.times import LogNormal, TimeSampler
from fewstep.core.objectives.uncertainty import Uncertainty
from fewstep.core.objectives.weights import Weighting, weighting
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment, Phase, SinglePhase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import STUDENT, Losses, MakeOptimizer

QUANTITIES = ("x0", "output", "velocity")


@dataclass(frozen=True)
class Error:
    """A weighted distance between what the network says and the truth.

    Args:
        of: "x0", the network's raw "output" against the target of its prediction, or "velocity" on the
            normalised clock against eps − x0 (on rectified flow a velocity network's output).
        weight: of the distance at a time, a name of `weights.WEIGHTS` or a function of (path, t).
        distance: (batch, ...), (batch, ...) → (batch,).

    Raises:
        ValueError: `of` or the weight is unknown.
    """

    of: str = "x0"
    weight: str | Weighting = "uniform"
    distance: Distance = SquaredError()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.of not in QUANTITIES:
            raise ValueError(f"of must be one of {', '.join(QUANTITIES)}, got {self.of!r}")
        weighting(self.weight)

    def __call__(
        self, flow: FlowMap, out: Tensor, x: Tensor, t: Tensor, batch: SampleBatch, mask: Tensor | None
    ):
        """The error of every sample; where the mask is given, per element of it.

        The mask multiplies both sides, so a distance sees zeros outside of it, and its result is divided by
        the mask's mean.
        """
        said, truth = self._sides(flow, out, x, t, batch)
        weight = weighting(self.weight)(flow.path, t).to(x.dtype)
        if mask is None:
            return weight * self.distance(said, truth)
        least = 1 / mask[0].numel()
        share = mask.flatten(1).mean(1).clamp_min(least)
        if len(said[0]) != len(mask[0]):
            mask = torch.cat([mask] * flow.prediction.heads, dim=1)
        return weight * self.distance(said * mask, truth * mask) / share

    def _sides(
        self, flow: FlowMap, out: Tensor, x: Tensor, t: Tensor, batch: SampleBatch
    ) -> tuple[Tensor, Tensor]:
        assert batch.noise is not None
        path, prediction = flow.path, flow.prediction
        if self.of == "output":
            return out, prediction.target(path, t, batch.x0, batch.noise, batch.y)
        if self.of == "velocity":
            return flow.velocity_of(out, x, t), batch.noise - batch.x0
        return prediction.to_x0(path, t, x, out, batch.y), batch.x0


@dataclass(frozen=True)
class ConditionDropout:
    """All named conditions of a sample become their null together, with a probability.

    A network trained so also knows the unconditional distribution, which classifier-free guidance needs.

    Args:
        null: by name, the value that means "none": a number, or a tensor shaped like one sample's condition.
        probability: of dropping.

    Raises:
        ValueError: nothing is named or probability is not in [0, 1]; (when called) the batch lacks a name.

    Reference: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", algorithm 1.
    """

    null: Mapping[str, float | Tensor] = field(default_factory=dict)
    probability: float = 0.1

    def __post_init__(self) -> None:
        if not self.null:
            raise ValueError("null must name at least one condition, such as null={'label': 10}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {self.probability}")

    def __call__(self, batch: SampleBatch, generator: torch.Generator) -> SampleBatch:
        dropped = uniform(len(batch.x0), generator, batch.x0.device) < self.probability
        conditions: dict[str, Any] = dict(batch.conditions)
        for name, null in self.null.items():
            if name not in conditions:
                raise ValueError(
                    f"null names {name!r}; the batch has {', '.join(conditions) or 'no conditions'}"
                )
            value = conditions[name]
            empty = torch.as_tensor(null, device=value.device).to(value.dtype)
            conditions[name] = torch.where(dropped.reshape(-1, *[1] * (value.ndim - 1)), empty, value)
        return replace(batch, conditions=conditions)


class DenoisingObjective(SinglePhase):
    """Train a network to undo the path's noise.

    x_t = a·x0 + b·y + sigma·eps,  t ~ times,  (x0, eps) ~ coupling,
    loss = mean over the batch of Σ weight(t)·distance(said, truth) over the errors.

    Denoising score matching, EDM, eps-, v- and flow matching, reflow, and the training of a fake score are
    choices of prediction, error, times and coupling.

    Args:
        path: of the states.
        prediction: of the network.
        errors: one Error or several, which are added.
        times: which times are seen; a LossHistory follows the losses.
        coupling: which noise goes with which sample.
        dropout: of conditions; None: they are never dropped.
        masking: for samples with a mask; the default counts the error where the batch's mask is 1.
        uncertainty: a head u(t) that is trained along, for the loss e^(−u)·L + u; None: L itself.
        optimizer: None: that of the run.

    Raises:
        ValueError: there is no error.

    Reference: Karras et al. 2022, section 5; Lipman et al. 2023, "Flow Matching for Generative Modeling";
        Liu, Gong and Liu 2023, "Flow Straight and Fast".

    Example:
        >>> from fewstep.core import paths
        >>> from fewstep.core.nets import MLP, MLPConfig
        >>> objective = DenoisingObjective(paths.EDM(), "edm", Error("x0", "karras"))
        >>> generator = torch.Generator().manual_seed(0)
        >>> batch = torch.randn(64, 2, generator=generator)
        >>> loss = objective.loss(MLP(MLPConfig(shape=(2,))), batch, generator, Moment())["loss"]
        >>> loss.shape, loss.requires_grad
        (torch.Size([]), True)
    """

    def __init__(
        self,
        path: Path,
        prediction: str | Prediction,
        errors: Error | Sequence[Error] = (Error("x0", "karras"),),
        *,
        times: TimeSampler = LogNormal(),  # noqa: B008 - frozen
        coupling: Coupling = AsGiven(),  # noqa: B008 - frozen
        dropout: ConditionDropout | None = None,
        masking: Masking = Masking(),  # noqa: B008 - frozen
        uncertainty: Uncertainty | None = None,
        optimizer: MakeOptimizer | None = None,
    ) -> None:
        self.errors = (errors,) if isinstance(errors, Error) else tuple(errors)
        if not self.errors:
            raise ValueError("errors must hold at least one Error, got none")
        self.path, self.prediction = path, prediction
        self.times, self.coupling, self.dropout, self.masking = times, coupling, dropout, masking
        self.uncertainty, self.optimizer = uncertainty, optimizer

    def phases(self) -> tuple[Phase, ...]:
        """One phase, "train"."""
        trains = (STUDENT,) if self.uncertainty is None else (STUDENT, "uncertainty")
        return (Phase("train", self._loss, trains, optimizer=self.optimizer),)

    def modules(self) -> dict[str, nn.Module]:
        """The uncertainty's head and the history of the losses, if there are any."""
        found = {"uncertainty": self.uncertainty, "history": self.times}
        return {name: value for name, value in found.items() if isinstance(value, nn.Module)}

    def loss(self, student: nn.Module, batch: Batch, generator: torch.Generator, moment: Moment) -> Losses:
        """The mean loss of a batch; "error" is the one before history and uncertainty change its scale."""
        read = SampleBatch.read(batch)
        t = self.times(self.path, len(read.x0), generator, read.x0.device)
        read = self.coupling(read, self.path, generator, moment)
        if self.dropout is not None:
            read = self.dropout(read, generator)
        error = self.error(student, read, t, generator)
        loss = error
        if self.uncertainty is not None:
            u = self.uncertainty(self.path, t).to(error.dtype)
            loss = error * torch.exp(-u) + u
        if isinstance(self.times, LossHistory):
            loss = loss * self.times.importance(self.path, t).to(error.dtype)
            self.times.record(self.path, t, error.detach())
        if loss is error:
            return {"loss": error.mean()}
        return {"loss": loss.mean(), "error": error.detach().mean()}

    def error(self, student: nn.Module, batch: SampleBatch, t: Tensor, generator: torch.Generator) -> Tensor:
        """The errors of every sample at given times, shape (batch,); the batch holds its noise."""
        assert batch.noise is not None
        flow = batch.flow_map(student, self.path, self.prediction)
        x = self.path.corrupt(batch.x0, t, batch.noise, batch.y)
        mask = self.masking.mask_of(batch, generator)
        out = flow.predict(x if mask is None else self.masking.seen(x, batch.x0, mask), t)
        regions = [(1.0, None)] if mask is None else self.masking.regions(mask)
        parts = [
            share * error(flow, out, x, t, batch, where) for share, where in regions for error in self.errors
        ]
        return torch.stack(parts).sum(0)
