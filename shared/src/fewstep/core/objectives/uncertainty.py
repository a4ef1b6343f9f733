"""Uncertainty: a learned log-variance that balances the losses of different times."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.nets.init import zeroed
from fewstep.core.paths import Path


class Uncertainty(nn.Module):
    """u(t), linear in waves of the half log-SNR; zero at the start.

    With the loss e^(−u)·L + u the best u is ln E[L] at that time, so every time ends with the same share of
    the gradient, whatever the weighting was.

    Args:
        waves: number of frequencies.

    Reference: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models",
        section 2.2 and equation 21.
    """

    rates: Tensor

    def __init__(self, waves: int = 16) -> None:
        super().__init__()
        # Half log-SNRs lie within ±10 or so: half a wave over all of it, up to about one wave per unit.
        rates = torch.logspace(math.log10(0.15), math.log10(6.0), waves)
        self.register_buffer("rates", rates, persistent=False)
        self.last = zeroed(nn.Linear(2 * waves, 1))

    def forward(self, path: Path, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch"]:
        """One number per sample."""
        lam = path.half_log_snr_at(t).clamp(-10, 10).to(self.last.weight.dtype)
        angle = lam[:, None] * self.rates.to(lam.dtype)
        return self.last(torch.cat([angle.cos(), angle.sin()], dim=-1))[:, 0]
