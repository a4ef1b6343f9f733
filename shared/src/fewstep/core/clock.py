"""The normalised clock: every path without y is rectified flow in another time and scale.

With z = x − b·y and the clock tau = sigma/(a + sigma) in [0, 1],

    z/(a + sigma) = (1 − tau)·x0 + tau·eps,

so straight lines, average velocities and the like are defined once and hold on every path.
"""

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from fewstep.core.paths import Path


def spread(values: Tensor, like: Tensor) -> Tensor:
    """One number per sample, (batch,), as a tensor that multiplies `like` in its dtype."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def clock_at(path: Path, t: Shaped[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
    """Return tau of every time."""
    a, _, sigma = path.evaluate(t)
    return sigma / (a + sigma)


def clock_rate_at(path: Path, t: Shaped[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
    """Return dtau/dt at every time.

    Raises:
        ValueError: the path is a table, which has no rates.
    """
    if path.is_discrete:
        raise ValueError(f"a loss with a derivative by time needs a continuous path, not {path}")
    a, _, sigma = path.evaluate(t)
    da, _, dsigma = path.derivatives_at(t)
    return (dsigma * a - sigma * da) / (a + sigma).square()


def time_of_clock(path: Path, tau: Shaped[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
    """Return the time of every tau, at most t_max and at least t_clean."""
    tau = tau.double()
    return path.time_at(torch.log1p(-tau) - tau.log())


def normalised(path: Path, x: Tensor, t: Shaped[Tensor, "batch"], y: Tensor | None = None) -> Tensor:
    """Return z/(a + sigma)."""
    a, b, sigma = path.evaluate(t)
    z = x if y is None else x - spread(b, x) * y
    return z / spread(a + sigma, x)


def denormalised(path: Path, z: Tensor, t: Shaped[Tensor, "batch"], y: Tensor | None = None) -> Tensor:
    """Return x of z/(a + sigma)."""
    a, b, sigma = path.evaluate(t)
    x = z * spread(a + sigma, z)
    return x if y is None else x + spread(b, x) * y
