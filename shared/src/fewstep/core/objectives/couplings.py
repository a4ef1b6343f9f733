"""Couplings: which noise goes with which sample of the data."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from fewstep.core.objectives.sample_batch import SampleBatch, normal_like, uniform
from fewstep.core.paths import Path
from fewstep.core.training import Moment


@runtime_checkable
class Coupling(Protocol):
    """Gives a batch its noise; returns the batch, whose `noise` is then a tensor."""

    def __call__(
        self, batch: SampleBatch, path: Path, generator: torch.Generator, moment: Moment
    ) -> SampleBatch: ...


@dataclass(frozen=True)
class AsGiven:
    """The noise that the batch brings, or a fresh draw."""

    def __call__(
        self, batch: SampleBatch, path: Path, generator: torch.Generator, moment: Moment
    ) -> SampleBatch:
        return replace(batch, noise=batch.noise_or(generator))


@dataclass(frozen=True)
class Independent:
    """A fresh draw, whatever the batch brings."""

    def __call__(
        self, batch: SampleBatch, path: Path, generator: torch.Generator, moment: Moment
    ) -> SampleBatch:
        return replace(batch, noise=normal_like(batch.x0, generator))


@dataclass(frozen=True)
class Paired:
    """The stored noise of a pair: the sample that an ODE makes of the start state sigma(T)·noise, T = t_max.

    Where a(T) is not 0, the straight line from x0 that ends in that state is the path's with the noise

        noise − (a(T)/sigma(T))·x0,

    which is what the batch then holds; on rectified flow that is the noise itself.

    Reference: Liu, Gong and Liu 2023, "Flow Straight and Fast", section 2.1 (reflow).
    """

    def __call__(
        self, batch: SampleBatch, path: Path, generator: torch.Generator, moment: Moment
    ) -> SampleBatch:
        if batch.noise is None:
            raise ValueError(
                "batch must hold noise: this coupling needs pairs (see fewstep.core.objectives.pairs)"
            )
        a, _, sigma = path.coefficients(path.t_max)
        return replace(batch, noise=batch.noise - (a / sigma) * batch.x0 if a else batch.noise)


BETAS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: max(1 - share, 0.0),
    "exp": lambda share: math.exp(-share),
    "cos": lambda share: (1 + math.cos(math.pi * min(share, 1.0))) / 2,
}
"""Name → beta from 1 to 0 by the share k/K of the warm-up that is over."""


@dataclass(frozen=True)
class Annealed:
    """Pairs whose noise goes from fresh to stored: sqrt(1 − beta²)·noise + beta·eps', beta(k) from 1 to 0.

    Training starts as rectified flow and ends as reflow, which suits a student that is smaller than its
    teacher and so cannot begin with its weights.

    Args:
        kind: of beta(k), with K the length of the warm-up: "linear" 1 − k/K, "exp" e^(−k/K),
            "cos" (1 + cos(pi·k/K))/2.
        steps: K in updates; None: `share` of the run.
        share: of the run, 0 to 1; counts only when steps is None.

    Raises:
        ValueError: an option is unknown or out of range; (when called) the batch holds no noise.

    Reference: Zhu, Liu and Liu 2024, "SlimFlow", section 3.1.

    Example:
        >>> Annealed("cos", steps=100).beta(Moment(step=50))
        0.5
    """

    kind: str = "linear"
    steps: int | None = None
    share: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in BETAS:
            raise ValueError(f"kind must be one of {', '.join(BETAS)}, got {self.kind!r}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")

    def beta(self, moment: Moment) -> float:
        """How much of the noise is fresh."""
        share = moment.progress / self.share if self.steps is None else moment.step / self.steps
        return BETAS[self.kind](share)

    def __call__(
        self, batch: SampleBatch, path: Path, generator: torch.Generator, moment: Moment
    ) -> SampleBatch:
        pair = Paired()(batch, path, generator, moment)
        beta = self.beta(moment)
        assert pair.noise is not None
        fresh = normal_like(batch.x0, generator)
        return replace(pair, noise=math.sqrt(1 - beta * beta) * pair.noise + beta * fresh)


@dataclass(frozen=True)
class Mirrored:
    """Another coupling, then data and noise (and y and mask) of some samples mirrored together.

    The mirror image of a pair is a pair only if the ODE commutes with mirroring; SlimFlow takes it so.

    Args:
        coupling: the other one.
        probability: of mirroring a sample.
        dim: along which; −1 is left and right of a picture.

    Raises:
        ValueError: probability is not in [0, 1].

    Reference: Zhu, Liu and Liu 2024, "SlimFlow", section 3.1.
    """

    coupling: Coupling = Paired()
    probability: float = 0.5
    dim: int = -1

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must lie in [0, 1], got {self.probability}")

    def __call__(
        self, batch: SampleBatch, path: Path, generator: torch.Generator, moment: Moment
    ) -> SampleBatch:
        found = self.coupling(batch, path, generator, moment)
        count = len(found.x0)
        chosen = uniform(count, generator, found.x0.device) < self.probability
        chosen = chosen.reshape(-1, *[1] * (found.x0.ndim - 1))

        def mirrored(x: Tensor | None) -> Tensor | None:
            return x if x is None else torch.where(chosen, x.flip(self.dim), x)

        x0 = torch.where(chosen, found.x0.flip(self.dim), found.x0)
        mask = found.mask if found.mask is None else mirrored(found.mask.expand_as(found.x0))
        return replace(found, x0=x0, noise=mirrored(found.noise), y=mirrored(found.y), mask=mask)


@dataclass(frozen=True)
class OptimalTransport:
    """Each sample of a batch gets the draw that makes the sum of ‖x0 − eps‖² least over all assignments.

    The assignment couples the samples of a batch, and is made on the CPU: O(batch³), fine up to some 500.

    With conditions the plain assignment is biased: a class would see only the part of the noise that lies
    near its data, while sampling starts from all of it. So a batch with conditions is refused, unless the
    assignment stays `within` the samples of one label, or `biased` says that the bias is wanted.

    Args:
        within: name of the condition, one integer per sample, inside which noise is assigned.
        biased: also take batches with (other) conditions.

    Raises:
        ImportError: (when called) scipy is missing.
        ValueError: (when called) the batch has conditions that the options do not allow.

    Reference: Pooladian et al. 2023, "Multisample Flow Matching"; Tong et al. 2024, "Improving and
        Generalizing Flow-Based Generative Models with Minibatch Optimal Transport", section 3.
    """

    within: str | None = None
    biased: bool = False

    def __call__(
        self, batch: SampleBatch, path: Path, generator: torch.Generator, moment: Moment
    ) -> SampleBatch:
        self._check(batch)
        noise = normal_like(batch.x0, generator)
        groups = torch.zeros(len(noise), dtype=torch.long)
        if self.within is not None:
            groups = batch.conditions[self.within].reshape(len(noise), -1)[:, 0].long().cpu()
        cost = torch.cdist(batch.x0.flatten(1).double(), noise.flatten(1).double()).square().cpu()
        order = torch.arange(len(noise))
        for group in groups.unique():
            rows = (groups == group).nonzero()[:, 0]
            order[rows] = rows[_assignment(cost[rows][:, rows])]
        return replace(batch, noise=noise[order.to(noise.device)])

    def _check(self, batch: SampleBatch) -> None:
        if self.within is not None and not isinstance(batch.conditions.get(self.within), Tensor):
            raise ValueError(f"within={self.within!r} must be a condition of the batch, one label per sample")
        others = [name for name in batch.conditions if name != self.within]
        others += [] if batch.y is None else ["y"]
        if others and not self.biased:
            raise ValueError(
                f"minibatch optimal transport is biased for data with conditions ({', '.join(others)}): "
                "assign within='label', or pass biased=True"
            )


def _assignment(cost: Tensor) -> Tensor:
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise ImportError("minibatch optimal transport needs scipy (pip install scipy)") from error
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])
