"""Editing without inversion: a source and a target branch that share their noise (InfEdit's DDCM)."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import grids
from fewstep.core.noise import GivenNoise, SampleNoise
from fewstep.core.paths import Path
from fewstep.core.solvers.base import levels
from fewstep.core.step_info import OnStep, StepInfo

Denoise = Callable[[Tensor, float], Tensor]


def edit(
    source: Denoise,
    target: Denoise,
    x0: Float[Tensor, "batch *rest"],
    path: Path | None = None,
    *,
    steps: int = 12,
    grid: str | Sequence[float] | grids.Grid = "trailing",
    eta: float = 1.0,
    y: Float[Tensor, "batch *rest"] | None = None,
    seed: int | Sequence[int] = 0,
    noise: Callable[[Tensor], Tensor] | None = None,
    on_step: OnStep | None = None,
) -> Float[Tensor, "batch *rest"]:
    """Change a known sample from what `source` describes into what `target` describes.

    The source branch stays the known sample plus noise, so nothing is inverted, and both branches share that
    noise e. The target takes the difference of the two denoised estimates; one step from t to s is
        x0' = x0 + target(x_tgt, t) − source(x_src, t),
        e   = sqrt(1 − eta)·(x_tgt − a_t·x0' − b_t·y)/sigma_t + sqrt(eta)·w,
        x_tgt = a_s·x0' + b_s·y + sigma_s·e,      x_src = a_s·x0 + b_s·y + sigma_s·e.
    Every step makes two network calls, one in each branch: 2·steps in all. With `source` and `target` the
    same function the result is x0.

    Args:
        source: (x, t) -> x0 under the description of x0, a Denoiser with its conditions bound say.
        target: the same under the description that is wanted.
        x0: the sample to edit.
        path: the path; the target's own by default.
        steps: steps of a named grid.
        grid: a name of `grids.names()`, a function (path, steps), or strictly decreasing times. Begin below
            path.t_max for a smaller edit.
        eta: share of fresh noise in every step, 0 to 1; 1 as published ("virtual inversion").
        y: degraded input, if the path uses it; the target's own by default.
        seed: sample i draws from a generator seeded with seed + i; or one seed per sample.
        noise: `noise(like)` replaces the generators: the start, then one draw a step (none if eta = 0).
        on_step: called with a StepInfo of the target branch; returning False stops and returns its state.

    Returns:
        The edited sample, in the dtype of x0 (half precision comes from a float32 state).

    Raises:
        ValueError: if path or y is missing, eta is out of range or the grid is not decreasing.

    Example:
        >>> import torch
        >>> from fewstep.core import paths
        >>> towards = lambda centre: lambda x, t: (x + t * t * centre) / (1 + t * t)
        >>> edit(towards(0.0), towards(3.0), torch.zeros(1, 2), paths.EDM(), grid="karras")
        tensor([[3.0000, 3.0000]])

    Reference: Xu, Huang, Pan, Ma and Chai 2024, "Inversion-Free Image Editing with Natural Language"
        (InfEdit), denoising diffusion consistent models.
    """
    path = getattr(target, "path", None) if path is None else path
    if path is None:
        raise ValueError("path is missing, and target is a plain callable without one")
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must lie between 0 and 1, not {eta}")
    y = getattr(target, "y", None) if y is None else y
    if path.uses_y and y is None:
        raise ValueError(f"y is missing: {type(path).__name__} uses the degraded input")
    chosen = grids.get(grid)
    points = levels(path, chosen.times if isinstance(chosen, grids.Explicit) else chosen(path, steps))
    state = torch.promote_types(x0.dtype, torch.float32)
    clean = x0.to(state)
    draws = SampleNoise(seed, x0.shape[0], x0.device) if noise is None else GivenNoise(noise)

    shift = y.to(clean) if path.uses_y and y is not None else clean.new_zeros(())

    def offset(t: float) -> Tensor:
        return path.coefficients(t)[1] * shift

    with torch.no_grad():
        e = torch.empty_like(clean)
        draws.fill(e)
        x, fresh = clean, torch.empty_like(e)
        for k, (t, s) in enumerate(itertools.pairwise(points)):
            z, known = t.a * x + t.sigma * e, t.a * clean + t.sigma * e
            wanted, given = target(z + offset(t.t), t.t), source(known + offset(t.t), t.t)
            x = clean + (wanted - given).to(state)
            e = (z - t.a * x) / t.sigma
            if s.sigma > 0.0 and eta > 0.0:
                draws.fill(fresh)
                e = math.sqrt(1.0 - eta) * e + math.sqrt(eta) * fresh
            z = s.a * x + s.sigma * e
            info = StepInfo(k + 1, len(points) - 1, s.t, 2 * (k + 1), z + offset(s.t), partial(_same, x))
            if on_step is not None and on_step(info) is False:
                return info.x.to(x0.dtype)
        return (z + offset(points[-1].t)).to(x0.dtype)


def _same(x: Tensor) -> Tensor:
    return x
