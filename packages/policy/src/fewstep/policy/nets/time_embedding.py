"""Sines and cosines of diffusion times."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn


class SinusoidalPosEmb(nn.Module):
    """Position embedding of one time: [sin(t·f_0), …, sin(t·f_m), cos(t·f_0), …, cos(t·f_m)].

    f_i = 10000^(−i/m), m = dim/2 − 1: frequencies from 1 to 1/10000 inclusive, made for levels 0, 1, 2, …;
    a continuous time in [0, 1] should be multiplied by some 100 first.

    Args:
        dim: numbers per time, even and at least 4.
        scale: factor on the time.

    Raises:
        ValueError: dim is odd or too small.

    Reference: Chi et al. 2023, "Diffusion Policy", released code; Vaswani et al. 2017, sec. 3.5.

    Example:
        >>> SinusoidalPosEmb(4)(torch.tensor([0, 2])).shape
        torch.Size([2, 4])
    """

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        if dim < 4 or dim % 2:
            raise ValueError(f"dim must be even and at least 4, got {dim}")
        self.dim, self.scale = dim, scale

    def forward(self, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch dim"]:
        """Embed times: integers and half precision in float32, float64 in itself."""
        exact = t.dtype if t.dtype == torch.float64 else torch.float32
        half = self.dim // 2
        falling = torch.arange(half, device=t.device, dtype=exact) * -(math.log(10000.0) / (half - 1))
        angles = (t.to(exact) * self.scale)[:, None] * falling.exp()
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def spread_times(
    t: Shaped[Tensor, "*batch"] | float, x: Float[Tensor, "batch *shape"]
) -> Shaped[Tensor, "batch"]:
    """One time per sample of x, on its device."""
    times = t if isinstance(t, Tensor) else torch.tensor(t)
    return times.to(x.device).expand(x.shape[0])


def encoded(encoder: nn.Sequential, *times: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch width"]:
    """Times through [SinusoidalPosEmb, Linear, …], side by side if there are several.

    Angles have float32 at least, the rest the precision of the weights.
    """
    waves, first = encoder[0], encoder[1]
    assert isinstance(first, nn.Linear)
    exact = first.weight.dtype == torch.float64
    sides = [waves(time.double() if exact else time) for time in times]
    told = sides[0] if len(sides) == 1 else torch.cat(sides, dim=-1)
    return encoder[1:](told.to(first.weight.dtype))
