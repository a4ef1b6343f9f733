"""Pairs of times (t, s), t ≥ s, between which an average velocity is learned."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.objectives.times import LogitNormal, TimeSampler
from fewstep.core.paths import Path

Pair = tuple[Float64[Tensor, "count"], Float64[Tensor, "count"]]


@runtime_checkable
class TimePairs(Protocol):
    """Draws (t, s) with t ≥ s for every sample."""

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Pair: ...


@dataclass(frozen=True)
class Ordered:
    """The larger and the smaller of two draws; with probability 1 − ratio, s = t.

    Args:
        times: of both draws.
        ratio: share of pairs with s ≠ t. The rest learns the velocity itself.

    Raises:
        ValueError: ratio is not in [0, 1].

    Reference: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", section 4.3 and table 1.
    """

    times: TimeSampler = field(default_factory=lambda: LogitNormal(-0.4, 1.0))
    ratio: float = 0.25

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Pair:
        first, second = (self.times(path, count, generator, device) for _ in range(2))
        return _some_alike(
            torch.maximum(first, second), torch.minimum(first, second), self.ratio, generator, device
        )


@dataclass(frozen=True)
class Capped:
    """t from one distribution and s from another, cut off at t; with probability 1 − ratio, s = t.

    Args:
        times: of t.
        targets: of s.
        ratio: share of pairs whose s was drawn.

    Raises:
        ValueError: ratio is not in [0, 1].

    Reference: the second sampler of the authors' PyTorch code of MeanFlow (CIFAR-10, version 1).
    """

    times: TimeSampler = field(default_factory=lambda: LogitNormal(-0.6, 1.6))
    targets: TimeSampler = field(default_factory=lambda: LogitNormal(-4.0, 1.6))
    ratio: float = 0.75

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Pair:
        t = self.times(path, count, generator, device)
        s = torch.minimum(self.targets(path, count, generator, device), t)
        return _some_alike(t, s, self.ratio, generator, device)


def _some_alike(
    t: Tensor, s: Tensor, ratio: float, generator: torch.Generator, device: torch.device | str
) -> Pair:
    apart = uniform(len(t), generator, device) < ratio
    return t, torch.where(apart, s, t)


def _check_ratio(ratio: float) -> None:
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1], got {ratio!r}")
