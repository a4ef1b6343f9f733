"""Regularisers of a judge: how steep it may be around the data."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fewstep.core.objectives.sample_batch import normal_like
from fewstep.core.training import Moment

Judge = Callable[[Tensor], Tensor]
"""States → logits, at fixed times and conditions."""


@runtime_checkable
class Regulariser(Protocol):
    """A penalty of a judge at states of data, one number per sample; None in updates that have none."""

    def __call__(
        self, judge: Judge, x: Tensor, generator: torch.Generator, moment: Moment
    ) -> Float[Tensor, "batch"] | None: ...


@dataclass(frozen=True)
class R1:
    """gamma/2·‖∇_x l(x)‖² with l the mean of a sample's logits, by a second derivative.

    Args:
        gamma: its strength; with `every` > 1 it is not multiplied (StyleGAN2 does; DDGAN and EMDM do not).
        every: it is paid in every so many updates of the judge.

    Raises:
        ValueError: gamma is negative or every below 1.

    Reference: Mescheder, Geiger and Nowozin 2018, "Which Training Methods for GANs do actually Converge?",
        eq. 9; Xiao, Kreis and Vahdat 2022 (DDGAN), appendix C, for gamma = 0.02 and every = 15.
    """

    gamma: float = 0.02
    every: int = 1

    def __post_init__(self) -> None:
        _require_strength("gamma", self.gamma)
        if self.every < 1:
            raise ValueError(f"every must be at least 1, got {self.every}")

    def __call__(
        self, judge: Judge, x: Tensor, generator: torch.Generator, moment: Moment
    ) -> Float[Tensor, "batch"] | None:
        """The penalty, in the updates whose turn it is."""
        if moment.step % self.every:
            return None
        # Of the kernels of attention only the plain one has a second derivative.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
            at = x.detach().requires_grad_()
            logits = judge(at).flatten(1).mean(1)
            (slope,) = torch.autograd.grad(logits.sum(), at, create_graph=True)
        return self.gamma / 2 * slope.flatten(1).square().sum(1)


@dataclass(frozen=True)
class ApproximateR1:
    """weight·(l(x) − l(x + sigma·n))², n ~ N(0, I): R1 without a second derivative.

    For small sigma its mean is weight·sigma²·‖∇l‖² + O(sigma⁴), that is R1 with gamma = 2·weight·sigma².
    The difference is taken logit by logit, then averaged over a sample's logits.

    Args:
        weight: its strength.
        sigma: standard deviation of the perturbation.

    Raises:
        ValueError: weight is negative or sigma not positive.

    Reference: Lin et al. 2025, "Diffusion Adversarial Post-Training for One-Step Video Generation", eq. 8.
    """

    weight: float = 100.0
    sigma: float = 0.01

    def __post_init__(self) -> None:
        _require_strength("weight", self.weight)
        if not self.sigma > 0:
            raise ValueError(f"sigma must be positive, got {self.sigma}")

    def __call__(
        self, judge: Judge, x: Tensor, generator: torch.Generator, moment: Moment
    ) -> Float[Tensor, "batch"]:
        """The penalty."""
        moved = x + self.sigma * normal_like(x, generator)
        return self.weight * (judge(x) - judge(moved)).flatten(1).square().mean(1)


def _require_strength(name: str, value: float) -> None:
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}")
