"""Distances that see more than single elements: features of a network, and the fine detail of pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Features = Callable[[Tensor], Tensor | Sequence[Tensor]]


@dataclass(frozen=True)
class FeatureDistance:
    """Mean over the layers of the mean squared difference between two samples' features.

    With `unit` the features of every position are divided by their norm over the channels (dimension 1), as
    LPIPS does. LPIPS itself is `FeatureDistance(features)` for its network with the learned channel weights
    multiplied in; no weights come with this library.

    Args:
        features: (batch, ...) → one tensor (batch, channels, ...) or several; it must be frozen and in
            evaluation mode, and it lies where the samples are.
        weights: of the layers; None: all 1/number.
        unit: whether every position's features get norm 1.

    Raises:
        ValueError: (when called) there is not one weight per layer.

    Reference: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
        equation 1.
    """

    features: Features
    weights: tuple[float, ...] | None = None
    unit: bool = True

    def __call__(
        self, x: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch"]:
        ours, theirs = self._layers(x), self._layers(y)
        weights = self.weights or (1 / len(ours),) * len(ours)
        if len(weights) != len(ours):
            raise ValueError(f"weights must be one per layer, {len(ours)}, got {len(weights)}")
        parts = [
            w * (a - b).square().flatten(1).mean(1) for w, a, b in zip(weights, ours, theirs, strict=True)
        ]
        return torch.stack(parts).sum(0)

    def _layers(self, x: Tensor) -> list[Tensor]:
        found = self.features(x)
        layers = [found] if isinstance(found, Tensor) else list(found)
        if not self.unit:
            return layers
        return [layer / (layer.square().sum(1, keepdim=True) + 1e-10).sqrt() for layer in layers]


@dataclass(frozen=True)
class HighFrequency:
    """Mean squared difference of what is left of two samples without their low frequencies.

    E keeps the frequencies of length above `cutoff`, as a share of the highest one of an axis, over all
    dimensions after batch and channels (of a sample without channels: over its one dimension). By Parseval
    the distance is that part of the squared error which lies in these frequencies.

    Args:
        cutoff: 0 removes the mean alone, 1 keeps only what is above the highest frequency of an axis.

    Raises:
        ValueError: cutoff is not in [0, 1].

    Reference: Zhang and Hooi 2023, "HiPA: Enabling One-Step Text-to-Image Diffusion Models via
        High-Frequency-Promoting Adaptation".
    """

    cutoff: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.cutoff <= 1:
            raise ValueError(f"cutoff must lie in [0, 1], got {self.cutoff}")

    def __call__(
        self, x: Float[Tensor, "batch *shape"], y: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch"]:
        return high_pass(x - y, self.cutoff).square().flatten(1).mean(1)


def high_pass(x: Float[Tensor, "batch *shape"], cutoff: float) -> Float[Tensor, "batch *shape"]:
    """The part of x whose frequency is longer than cutoff·(highest frequency of an axis)."""
    dims = tuple(range(min(2, x.ndim - 1), x.ndim))
    axes = [torch.fft.fftfreq(x.shape[dim], device=x.device, dtype=torch.float64) * 2 for dim in dims]
    squares = [axis.square() for axis in axes]
    radius = squares[0]
    for square in squares[1:]:
        radius = radius[..., None] + square
    return torch.fft.ifftn(torch.fft.fftn(x, dim=dims) * (radius > cutoff**2), dim=dims).real
