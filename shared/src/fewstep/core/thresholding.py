"""Thresholding: x0 kept in the range of the data."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import predictions
from fewstep.core.wrapping import BaseDenoiser, Time, Wrapper


@dataclass(frozen=True)
class Static:
    """Clamp to [low, high].

    >>> Static()(torch.tensor([[-3.0, 0.5, 2.0]]))
    tensor([[-1.0000,  0.5000,  1.0000]])
    """

    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"low must be less than high, not {self.low} and {self.high}")

    def __call__(self, x0: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """Clamped x0."""
        return x0.clamp(self.low, self.high)


@dataclass(frozen=True)
class Dynamic:
    """Clamp each sample to a quantile of its own size and scale it back to [-1, 1].

    s = max(quantile(|x0|), minimum), not more than `cap`;  x0 <- clamp(x0, -s, s) / s.

    The paper and the DPM-Solver code have no cap (cap=None); diffusers caps s at its `sample_max_value`,
    whose default 1 turns the rule into a plain clamp (cap=1.0).

    Args:
        quantile: share of values of a sample that stay unclamped; interpolated linearly between values.
        minimum: s is at least this.
        cap: s is at most this.

    Reference: Saharia et al. 2022, "Photorealistic Text-to-Image Diffusion Models", section 2.3.

    >>> Dynamic(quantile=0.5)(torch.tensor([[-4.0, 1.0, 2.0], [0.1, 0.2, 0.3]]))
    tensor([[-1.0000,  0.5000,  1.0000],
            [ 0.1000,  0.2000,  0.3000]])
    """

    quantile: float = 0.995
    minimum: float = 1.0
    cap: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile must be in [0, 1], not {self.quantile}")
        if not self.minimum > 0:
            raise ValueError(f"minimum must be positive, not {self.minimum}")
        if self.cap is not None and self.cap < self.minimum:
            raise ValueError(f"cap must be at least the minimum ({self.minimum}), not {self.cap}")

    def __call__(self, x0: Float[Tensor, "batch *rest"]) -> Float[Tensor, "batch *rest"]:
        """Clamped and scaled x0."""
        s = magnitude_quantile(x0, self.quantile).clamp(self.minimum, self.cap)
        s = s.reshape(-1, *[1] * (x0.ndim - 1))
        return (torch.clamp(x0, -s, s) / s).to(x0.dtype)


class Thresholded(Wrapper):
    """A denoiser whose x0 goes through a rule.

    Args:
        inner: any denoiser.
        rule: `Static`, `Dynamic` or any function of x0. Around `Tiled` a dynamic rule sees whole samples,
            inside of it single windows.
    """

    def __init__(
        self,
        inner: BaseDenoiser | Callable[..., Tensor],
        rule: Callable[[Tensor], Tensor] = Static(),
    ) -> None:
        super().__init__(inner)
        if not callable(rule):
            raise TypeError(f"rule must be callable as rule(x0), such as Dynamic(0.995), not {rule!r}")
        self.rule = rule
        self.prediction = predictions.get("x0")

    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """Thresholded x0."""
        return self.rule(self.inner(x, t))

    def __call__(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """Thresholded x0."""
        return self.predict(x, t)


def magnitude_quantile(x: Float[Tensor, "batch *rest"], quantile: float) -> Float[Tensor, " batch"]:
    """Quantile of |x| of each sample, in float32 or better.

    By selection and not by sorting: torch.quantile sorts, and refuses more than 16 million values.
    """
    values = x.abs().reshape(x.shape[0], -1)
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    rank = quantile * (values.shape[1] - 1)
    below = int(rank)
    low = values.kthvalue(below + 1, dim=1).values
    if rank == below:
        return low
    return torch.lerp(low, values.kthvalue(below + 2, dim=1).values, rank - below)
