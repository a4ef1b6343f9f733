"""What an IR-SDE learns: the clean image, from the states of all times of its path."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .irsde import IRSDE


@dataclass(frozen=True)
class CleanErrorOfAllTimes:
    """Mean absolute error of the predicted clean image, at all times of the path.

    L = E |x0_hat(x_t, t, y) − x0|,   x_t = a x0 + (1 − a) y + λ √(1 − a²) ε,   t one of 1 … T,

    with states in [0, 1]. Samplers of any number of calls, with any grid, visit times that were learnt. The
    published loss is that of the step from t to t − 1 and weighs the same error by how far this step goes;
    with the clean image predicted, a constant weight is what a sampler of few and long steps needs.

    Args:
        model: whose path and prediction the network has.
        start_share: how often the last time, where sampling starts, is drawn, relative to each other time.

    Reference: Luo et al. 2023, "Image Restoration with Mean-Reverting Stochastic Differential Equations",
        equations 6 and 14.
    """

    model: IRSDE
    start_share: float = 1.0

    def __call__(
        self, net: Callable[..., Tensor], batch: Mapping[str, Tensor], generator: torch.Generator
    ) -> Tensor:
        """The loss of a batch of `pairs.Mixture`: "x0", "y" and "mask"."""
        model, device = self.model, batch["x0"].device
        mask = batch["mask"] if "mask" in model.takes else None
        x0, y = (batch["x0"] + 1) / 2, model.prior(model.filled(batch["y"], mask))
        shares = torch.ones(model.config.steps, device=device)
        shares[-1] = self.start_share
        t = 1 + torch.multinomial(shares, len(x0), replacement=True, generator=generator).double()
        noise = torch.randn(x0.shape, device=device, generator=generator)
        denoise = model.bare_denoiser(net).given(y=y)
        assert denoise.path is not None
        x = denoise.path.corrupt(x0, t, noise, y)
        return (denoise(x, t).float() - x0).abs().mean()
