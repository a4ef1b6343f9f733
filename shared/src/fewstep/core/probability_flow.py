"""Encoding data as noise and back, by the probability flow."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.paths import Path
from fewstep.core.solvers.dormand_prince import Tolerance
from fewstep.core.solvers.ode45 import carry
from fewstep.core.y_free import Frame, as_state


def encode(
    denoise: Callable[..., Tensor],
    path: Path,
    x0: Float[Tensor, "batch *rest"],
    *,
    y: Float[Tensor, "batch *rest"] | None = None,
    t: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    norm: str = "sample",
) -> Float[Tensor, "batch *rest"]:
    """Follow the probability flow from data to the noise at t_max: the inverse of `decode`.

    Args:
        denoise: a Denoiser, or any callable (x, t) -> x0; t has shape (batch,).
        path: how data becomes noise.
        x0: data, taken as a sample with the noise sigma_t/a_t.
        y: degraded input of a path that has one; by default the one that is bound.
        t: clean time; the path's t_min by default.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step, where data and noise have unit variance.
        norm: "sample", or "batch" for one step size for all.

    Returns:
        x at t_max.

    Reference: Song et al. 2021 (Score-SDE), section 4.3.
    """
    state = as_state(x0)
    frame = Frame(denoise, path, state, y)
    t = frame.clean_time(t)
    with torch.no_grad():
        z = path.coefficients(t)[0] * state
        done = carry(frame.ask, path, z, t, path.t_max, Tolerance(rtol, atol, norm))
        return frame.with_y(done.z, path.t_max).to(x0.dtype)


def decode(
    denoise: Callable[..., Tensor],
    path: Path,
    latent: Float[Tensor, "batch *rest"],
    *,
    y: Float[Tensor, "batch *rest"] | None = None,
    t: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    norm: str = "sample",
) -> Float[Tensor, "batch *rest"]:
    """Follow the probability flow from the noise at t_max to data: the inverse of `encode`.

    Args:
        latent: x at t_max. The other arguments are those of `encode`.

    Returns:
        z_t/a_t, which keeps the noise sigma_t/a_t, so that encoding it gives `latent` again. The solver
        "ode45" ends with x0 instead.

    Reference: Song et al. 2021 (Score-SDE), section 4.3.
    """
    state = as_state(latent)
    frame = Frame(denoise, path, state, y)
    t = frame.clean_time(t)
    with torch.no_grad():
        z = frame.with_y(state, path.t_max, -1.0)
        done = carry(frame.ask, path, z, path.t_max, t, Tolerance(rtol, atol, norm))
        return (done.z / path.coefficients(t)[0]).to(latent.dtype)
