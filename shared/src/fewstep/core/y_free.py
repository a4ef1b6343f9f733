"""The frame z = x − b·y, in which z = a·x0 + sigma·eps on every path, for code that asks by itself."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fewstep.core.paths import Path
from fewstep.core.wrapping import BaseDenoiser


def over(weight: Tensor, like: Tensor) -> Tensor:
    """A number per sample, shaped to multiply a batch."""
    return weight.to(like.dtype).view(-1, *[1] * (like.ndim - 1))


def as_state(x: Tensor) -> Tensor:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise TypeError(f"data must be a floating-point tensor, not {getattr(x, 'dtype', type(x).__name__)}")
    return x.to(torch.promote_types(x.dtype, torch.float32))


class Frame:
    """A denoiser in the y-free frame z = x − b·y."""

    def __init__(
        self, denoise: Callable[..., Tensor], path: Path, like: Tensor, y: Tensor | None = None
    ) -> None:
        y = getattr(denoise, "y", None) if y is None else y
        if path.uses_y and y is None:
            raise ValueError(f"y is missing: {type(path).__name__} uses the degraded input")
        if isinstance(denoise, BaseDenoiser) and y is not None and denoise.y is None:
            denoise = denoise.given(y=y)
        self.y = y.to(like).expand_as(like) if y is not None and path.uses_y else None
        self.denoise, self.path, self.calls = denoise, path, 0

    def ask(self, z: Tensor, t: float | Tensor) -> Tensor:
        self.calls += 1
        return self.denoise(self.with_y(z, t), t).to(z.dtype)

    def with_y(self, z: Tensor, t: float | Tensor, sign: float = 1.0) -> Tensor:
        if self.y is None:
            return z
        b = self.path.evaluate(torch.as_tensor(t, dtype=torch.float64, device=z.device).expand(len(z)))[1]
        return z + over(sign * b, z) * self.y

    def clean_time(self, t: float | None) -> float:
        t = self.path.t_min if t is None else float(t)
        if not self.path.t_clean <= t < self.path.t_max or self.path.coefficients(t)[2] <= 0.0:
            raise ValueError(f"t must lie below t_max = {self.path.t_max:g} and have sigma > 0, not {t!r}")
        return t

    def prior(self, z: Tensor) -> Tensor:
        """Log density of the law from which sampling starts."""
        weight_y, sigma = self.path.start_weights()
        if sigma <= 0.0:
            raise ValueError(f"prior is needed: {type(self.path).__name__} starts from y without noise")
        b = self.path.coefficients(self.path.t_max)[1]
        gap = z if self.y is None else z - (weight_y - b) * self.y
        square = gap.flatten(1).double().square().sum(1) / sigma**2
        return -0.5 * (square + z[0].numel() * math.log(2.0 * math.pi * sigma**2))
