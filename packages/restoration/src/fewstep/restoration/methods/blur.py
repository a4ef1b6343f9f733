"""Gaussian blur as a linear operator whose singular values are known."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.guidance import LinearOperator
from fewstep.core.guidance.operators import Gain


class Blur(LinearOperator):
    """Circular convolution with a Gaussian, which the Fourier transform diagonalises.

    Args:
        sigma: standard deviation in pixels.
        tolerance: frequencies that pass with less than this count as not seen.

    Raises:
        ValueError: a number is not positive.

    Example:
        >>> flat = torch.full((1, 1, 4, 6), 0.5)
        >>> torch.allclose(Blur(1.5).forward(flat), flat)
        True
    """

    def __init__(self, sigma: float = 1.6, tolerance: float = 1e-2) -> None:
        if sigma <= 0 or tolerance <= 0:
            raise ValueError(f"sigma and tolerance must be above 0, got {sigma} and {tolerance}")
        self.sigma, self.tolerance = sigma, tolerance

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """The blurred image."""
        return self._passed(x, self._response(x))

    def adjoint(self, y: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """The same as `forward`: a Gaussian is symmetric."""
        return self.forward(y)

    def pseudo_inverse(self, y: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        """Frequencies that passed, brought back to their size."""
        response = self._response(y)
        return self._passed(y, torch.where(response > 0, 1 / response.clamp_min(self.tolerance), 0.0))

    def filtered(
        self, x: Float[Tensor, "batch channels h w"], gain: Gain
    ) -> Float[Tensor, "batch channels h w"]:
        """Every frequency times the gain of its response."""
        response = self._response(x)
        return self._passed(x, gain(response.flatten()).reshape(response.shape))

    def _response(self, x: Tensor) -> Tensor:
        """What passes of every frequency, in float64; 0 for what is not seen."""
        down = torch.fft.fftfreq(x.shape[2], dtype=torch.float64, device=x.device)
        across = torch.fft.rfftfreq(x.shape[3], dtype=torch.float64, device=x.device)
        squares = down[:, None] ** 2 + across**2
        response = torch.exp(-2 * (torch.pi * self.sigma) ** 2 * squares)
        return torch.where(response >= self.tolerance, response, 0.0)

    def _passed(self, x: Tensor, factor: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(x) * factor.to(x)
        return torch.fft.irfft2(spectrum, s=x.shape[2:])
