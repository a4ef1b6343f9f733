"""Likelihood of data under a denoiser, by the change of variables along the probability flow."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.noise import SampleNoise
from fewstep.core.paths import Path
from fewstep.core.solvers.dormand_prince import Tolerance, dormand_prince
from fewstep.core.solvers.ode45 import Flow
from fewstep.core.y_free import Frame, as_state, over

_CHUNK = 64
"""Rows of a Jacobian that are computed together."""


class Likelihood(NamedTuple):
    """What `log_likelihood` found.

    Attributes:
        nats: log p(x0), one per sample.
        bits_per_dim: −(log2 p(x0))/n − log2(bin_width), one per sample; smaller is better.
        latent: the noise x_T that the flow leads to, shaped like x0.
        calls: network calls (each with one or more vector–Jacobian products).
    """

    nats: Float[Tensor, " batch"]
    bits_per_dim: Float[Tensor, " batch"]
    latent: Tensor
    calls: int


def log_likelihood(
    denoise: Callable[..., Tensor],
    path: Path,
    x0: Float[Tensor, "batch *rest"],
    divergence: str = "exact",
    *,
    y: Float[Tensor, "batch *rest"] | None = None,
    t: float | None = None,
    probe: str | Tensor = "rademacher",
    probes: int = 1,
    seed: int | Sequence[int] = 0,
    bin_width: float = 1.0,
    prior: Callable[[Tensor], Tensor] | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    norm: str = "sample",
) -> Likelihood:
    """Compute log p(x0) by the change of variables along the probability flow.

    With u = z/rho, rho = sqrt(a² + sigma²), v = atan(sigma/a) and z = x − b·y, the flow of any path is
    du/dv = (cos(v)·u − D)/sin(v), and with n values in a sample

        log p(x0) = log p_T(z_T) + n·log(a_t·rho_T/rho_t) + int (n·cos(v) − rho·trace(dD/dz))/sin(v) dv

    from the clean time t to t_max, z_t = a_t·x0. D is differentiated backwards, whatever the prediction, by
    one batch of vector–Jacobian products a call. A network says nothing below t: x0 is taken as a sample with
    the noise sigma_t/a_t, as in the published code, and the result is the density of x0 + (sigma_t/a_t)·eps.
    The default prior is the law from which sampling starts, which is not quite that of the data at t_max.

    bits/dim of 8-bit data: scale them to x0 with uniform dequantisation noise and give the width of one
    level, 2/256 for [−1, 1] (adds 7 bits) and 1/256 for [0, 1] (adds 8). 1 gives those of the density.

    Args:
        denoise: a Denoiser, or any callable (x, t) -> x0; t has shape (batch,).
        path: how data becomes noise.
        x0: data, shape (batch, ...).
        divergence: "exact" (n vector–Jacobian products a call) or "hutchinson" (unbiased, `probes` a call).
        y: degraded input of a path that has one; by default the one that is bound.
        t: clean time; the path's t_min by default.
        probe: "rademacher" or "gaussian", or the draws themselves: ([probes,] batch, ...).
        probes: how many draws are averaged; the same ones along the whole flow.
        seed: sample i draws from seed + i, or one seed per sample.
        bin_width: width of a quantisation level in units of x0.
        prior: log density at t_max, a function of x_T (batch, ...) that returns (batch,).
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step, for u and for the log density per value.
        norm: "sample", or "batch" for one step size for all, which couples the samples.

    Raises:
        ValueError: if an option is unknown, or the path has no noise to start from.
        RuntimeError: if the integration cannot meet the tolerance.

    Example:
        >>> from fewstep.core import paths
        >>> normal = lambda x, t: x / (1 + t.view(-1, 1) ** 2)  # the denoiser of unit normal data
        >>> found = log_likelihood(normal, paths.EDM(), torch.zeros(1, 2, dtype=torch.float64))
        >>> round(float(found.nats), 3), round(-math.log(2 * math.pi), 3)
        (-1.838, -1.838)

    Reference: Song et al. 2021 (Score-SDE), section 4.3 and appendix D.2; Grathwohl et al. 2019 (FFJORD);
        Theis, van den Oord and Bethge 2016, section 3.1 (dequantisation).
    """
    if not 0.0 < bin_width < math.inf:
        raise ValueError(f"bin_width must be a finite number above 0, not {bin_width}")
    state = as_state(x0)
    frame = Frame(denoise, path, state, y)
    t = frame.clean_time(t)
    a, size = path.coefficients(t)[0], state[0].numel()
    draws = _probes(divergence, probe, probes, seed, state)
    with torch.no_grad():
        z, change = _integrate(frame, a * state, t, path.t_max, Tolerance(rtol, atol, norm), draws)
        latent = frame.with_y(z, path.t_max)
        ends = frame.prior(z) if prior is None else prior(latent).double()
    nats = ends + change + size * math.log(a)
    bits = -(nats / size + math.log(bin_width)) / math.log(2.0)
    return Likelihood(nats.to(x0.dtype), bits.to(x0.dtype), latent.to(x0.dtype), frame.calls)


def density_change(
    denoise: Callable[..., Tensor],
    path: Path,
    x: Float[Tensor, "batch *rest"],
    start: float,
    end: float,
    *,
    y: Float[Tensor, "batch *rest"] | None = None,
    rtol: float = 1e-6,
    atol: float = 1e-6,
    norm: str = "sample",
) -> tuple[Float[Tensor, "batch *rest"], Float[Tensor, " batch"]]:
    """Follow the probability flow between two times, in either direction, with the exact divergence.

    Args:
        denoise: a Denoiser, or any callable (x, t) -> x0; t has shape (batch,).
        path: how data becomes noise.
        x: states at time `start`, shape (batch, ...).
        start: where they stand.
        end: where they go; sigma > 0 at both.
        y: degraded input of a path that has one.
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step.
        norm: "sample", or "batch" for one step size for all.

    Returns:
        (x at `end`, log p_start(x_start) − log p_end(x_end)).
    """
    state = as_state(x)
    frame = Frame(denoise, path, state, y)
    with torch.no_grad():
        z = frame.with_y(state, start, -1.0)
        z, change = _integrate(frame, z, start, end, Tolerance(rtol, atol, norm), None)
        return frame.with_y(z, end).to(x.dtype), change.to(x.dtype)


def _integrate(
    frame: Frame, z: Tensor, start: float, end: float, tolerance: Tolerance, draws: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(z at `end`, log density at the start − that at the end); the state is u and the latter/sqrt(n)."""
    flow, size = Flow(frame.path), z[0].numel()
    # the square root makes the tolerance that of the log density per value
    root = math.sqrt(size)

    def slope(v: Tensor, state: Tensor) -> Tensor:
        w = flow.weights(v)
        u = state[:, :-1].view_as(z)
        denoised, trace, length = _with_trace(lambda at: frame.ask(at, w.t), over(w.scale, u) * u, draws)
        rate = over(w.p, u) * u + over(w.q, u) * denoised
        growth = length * w.p + w.q * w.scale * trace
        return torch.cat([rate.flatten(1), (growth / root).to(u.dtype)[:, None]], dim=1)

    ends = [torch.full(z.shape[:1], flow.at(t), dtype=torch.float64, device=z.device) for t in (start, end)]
    scales = [flow.weights(v).scale for v in ends]
    u = (z / over(scales[0], z)).flatten(1)
    _, state, _ = dormand_prince(
        slope, ends[0], ends[1], torch.cat([u, torch.zeros_like(u[:, :1])], dim=1), tolerance
    )
    change = root * state[:, -1].double() + size * (scales[1] / scales[0]).log()
    return over(scales[1], z) * state[:, :-1].view_as(z), change


def _with_trace(
    function: Callable[[Tensor], Tensor], z: Tensor, draws: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """A function's value, the trace of its Jacobian J and the trace of the identity, for each sample.

    With draws w they are the means of w·J·w and w·w, whose errors cancel where J is near the identity.
    """
    with torch.enable_grad():
        at = z.detach().requires_grad_()
        value = function(at)
    size = z[0].numel()
    if draws is None:
        basis = torch.eye(size, dtype=z.dtype, device=z.device).view(size, 1, *z.shape[1:])
        ways = basis.expand(size, *z.shape)
    else:
        ways = draws
    pulled = torch.cat([_pulled(value, at, part) for part in ways.split(_CHUNK)])
    traces = torch.stack([ways * pulled, ways * ways]).flatten(3).double().sum(3)
    jacobian, identity = traces.sum(1) if draws is None else traces.mean(1)
    return value.detach(), jacobian, identity


def _pulled(value: Tensor, at: Tensor, ways: Tensor) -> Tensor:
    """The vector–Jacobian products of some directions (k, batch, ...)."""
    if not value.requires_grad:
        return torch.zeros_like(ways)
    (found,) = torch.autograd.grad(
        value, at, ways, retain_graph=True, is_grads_batched=True, materialize_grads=True
    )
    return found


def _probes(
    divergence: str, probe: str | Tensor, count: int, seed: int | Sequence[int], like: Tensor
) -> Tensor | None:
    """Draws of shape (probes, batch, ...); None for the exact divergence."""
    if divergence not in ("exact", "hutchinson"):
        raise ValueError(f"divergence must be 'exact' or 'hutchinson', not {divergence!r}")
    if count < 1:
        raise ValueError(f"probes must be at least 1, not {count}")
    if isinstance(probe, str) and probe not in ("rademacher", "gaussian"):
        raise ValueError(f"probe must be 'rademacher', 'gaussian' or a tensor, not {probe!r}")
    if divergence == "exact":
        return None
    if isinstance(probe, Tensor):
        given = probe if probe.ndim == like.ndim + 1 else probe[None]
        if given.shape[1:] != like.shape:
            raise ValueError(f"probe must have the shape {tuple(like.shape)} of x0, not {tuple(probe.shape)}")
        return given.to(like)
    source = SampleNoise(seed, len(like), like.device)
    draws = torch.empty((count, *like.shape), dtype=like.dtype, device=like.device)
    for draw in draws:
        source.fill(draw)
    return draws if probe == "gaussian" else torch.where(draws < 0, -1.0, 1.0).to(like)
