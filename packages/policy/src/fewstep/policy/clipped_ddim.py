"""DDIM with a clipped chunk and the network's own noise, as Diffusion Policy samples."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.flow_map import FlowMap


def clipped_ddim(
    flow: FlowMap,
    times: Sequence[float],
    x: Float[Tensor, "batch *shape"],
    clip: float,
) -> Float[Tensor, "batch *shape"]:
    """Go down a grid of times.

    eps = (x − a_t·x0)/sigma_t with x0 the network's estimate, not clipped;
    x ← a_s·clamp(x0, ±clip) + sigma_s·eps.

    The core's thresholding recomputes eps from the clipped estimate, so that x stays on the path; diffusers'
    DDIM, and with it every published policy, keeps the network's.

    Args:
        flow: network and path.
        times: decreasing, the clean end last.
        x: the state at the first time.
        clip: of the estimate.

    Returns:
        The state at the last time.

    Reference: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", eq. 12; Chi et al. 2023,
        "Diffusion Policy", which samples by diffusers' DDIMScheduler with clip_sample=True.
    """
    path = flow.path
    for t, s in itertools.pairwise(times):
        a_t, _, sigma_t = path.coefficients(t)
        a_s, _, sigma_s = path.coefficients(s)
        x0 = flow.x0(x, torch.full((len(x),), t, dtype=torch.float64, device=x.device))
        eps = (x - a_t * x0) / sigma_t
        x = a_s * x0.clamp(-clip, clip) + sigma_s * eps
    return x
