"""Blur kernels of the second-order degradation: Gaussian, generalised Gaussian, plateau and sinc."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.fft
from scipy.special import j1

from .base import Range, check_integers, check_range, check_share, draw, draw_integer


def squared_distance(side: int, sigma: tuple[float, float], angle: float) -> np.ndarray:
    """Squared distances from the centre in units of the spread: rᵀ Σ⁻¹ r, Σ = U diag(σ₁², σ₂²) Uᵀ.

    Args:
        side: of the kernel in pixels, odd.
        sigma: spread along and across the main axis in pixels.
        angle: from the columns' direction to the main axis in radians, towards the rows' direction.

    Returns:
        (side, side).

    Raises:
        ValueError: an even side.
    """
    if side < 1 or side % 2 == 0:
        raise ValueError(f"side must be odd and positive, got {side}")
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    along = (math.cos(angle) * x + math.sin(angle) * y) / sigma[0]
    across = (math.cos(angle) * y - math.sin(angle) * x) / sigma[1]
    return along**2 + across**2


def normalised(kernel: np.ndarray) -> np.ndarray:
    """Scale a kernel to the sum 1."""
    return kernel / kernel.sum()


def gaussian(side: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0) -> np.ndarray:
    """Generalised Gaussian kernel, exp(−½ (rᵀ Σ⁻¹ r)^β); β = 1 is the Gaussian.

    Args:
        side: of the kernel in pixels, odd.
        sigma: spread along and across the main axis in pixels.
        angle: of the main axis in radians.
        beta: below 1 with heavier tails, above 1 with a flatter top.

    Returns:
        (side, side), which adds up to one.

    Reference: Wang, Xie, Dong, Shan 2021, "Real-ESRGAN", section 3.1.

    Example:
        >>> gaussian(3, (1.0, 1.0)).round(3).tolist()[1]
        [0.124, 0.204, 0.124]
    """
    return normalised(np.exp(-0.5 * squared_distance(side, sigma, angle) ** beta))


def plateau(side: int, sigma: tuple[float, float], angle: float = 0.0, beta: float = 1.0) -> np.ndarray:
    """Plateau kernel, 1 / (1 + (rᵀ Σ⁻¹ r)^β): half its height at a distance of one spread.

    Args:
        side: of the kernel in pixels, odd.
        sigma: spread along and across the main axis in pixels.
        angle: of the main axis in radians.
        beta: how steeply it falls.

    Returns:
        (side, side), which adds up to one.

    Reference: Wang, Xie, Dong, Shan 2021, "Real-ESRGAN", section 3.1.
    """
    return normalised(1.0 / (1.0 + squared_distance(side, sigma, angle) ** beta))


def sinc(side: int, cutoff: float) -> np.ndarray:
    """Ideal circular low-pass filter, ω J₁(ω r) / (2π r), cut to a square: it rings at edges.

    Args:
        side: of the kernel in pixels, odd.
        cutoff: ω in radians per pixel, up to π.

    Returns:
        (side, side), which adds up to one.

    Reference: Wang, Xie, Dong, Shan 2021, "Real-ESRGAN", section 3.3, equation 6.
    """
    r = np.sqrt(squared_distance(side, (1.0, 1.0), 0.0))
    r[side // 2, side // 2] = 1.0
    kernel = cutoff * j1(cutoff * r) / (2 * math.pi * r)
    kernel[side // 2, side // 2] = cutoff**2 / (4 * math.pi)
    return normalised(kernel)


@dataclass(frozen=True)
class KernelMix:
    """A random blur kernel: with probability `sinc` a sinc filter, otherwise one of six kinds by `shares`.

    Args:
        side: range of the side in pixels, odd integers.
        sigma: range of the spreads in pixels.
        shares: how often Gaussian, generalised Gaussian and plateau are drawn, each first round, then with
            two spreads and any angle.
        beta_gaussian: range of β of the generalised Gaussian, on both sides of 1: either side equally often.
        beta_plateau: the same of the plateau.
        sinc: probability of a sinc filter.

    Raises:
        ValueError: a field out of its limits.

    Example:
        >>> KernelMix()(np.random.default_rng(0)).shape
        (17, 17)
    """

    side: tuple[int, int] = (3, 19)
    sigma: Range = (0.2, 3.0)
    shares: tuple[float, float, float, float, float, float] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    beta_gaussian: Range = (0.5, 4.0)
    beta_plateau: Range = (1.0, 2.0)
    sinc: float = 0.1

    def __post_init__(self) -> None:
        check_range("side", self.side, 1)
        check_integers("side", self.side)
        if not self.side[0] % 2 or not self.side[1] % 2:
            raise ValueError(f"side must be odd at both ends, got {self.side!r}")
        check_range("sigma", self.sigma, 0.05)
        for name in ("beta_gaussian", "beta_plateau"):
            given = getattr(self, name)
            check_range(name, given, 0.1)
            if not given[0] <= 1 <= given[1]:
                raise ValueError(f"{name} must reach from at most 1 to at least 1, got {given!r}")
        if len(self.shares) != 6 or min(self.shares) < 0 or not math.isclose(sum(self.shares), 1.0):
            raise ValueError(f"shares must be 6 numbers that add up to 1, got {self.shares!r}")
        check_share("sinc", self.sinc)

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a kernel: (side, side), which adds up to one."""
        side = 2 * draw_integer(rng, (self.side[0] // 2, self.side[1] // 2)) + 1
        if rng.random() < self.sinc:
            # A small kernel cannot hold a filter of a low cut-off.
            return sinc(side, draw(rng, (math.pi / (3 if side < 13 else 5), math.pi)))
        kind = int(rng.choice(6, p=self.shares))
        first = draw(rng, self.sigma)
        sigma, angle = (first, first), 0.0
        if kind % 2:
            sigma, angle = (first, draw(rng, self.sigma)), draw(rng, (-math.pi, math.pi))
        if kind < 2:
            return gaussian(side, sigma, angle)
        if kind < 4:
            return gaussian(side, sigma, angle, draw_beta(rng, self.beta_gaussian))
        return plateau(side, sigma, angle, draw_beta(rng, self.beta_plateau))


def draw_beta(rng: np.random.Generator, given: Range) -> float:
    """Draw an exponent: below and above 1 equally often, uniformly there.

    Args:
        rng: the source of the draws.
        given: (lowest, highest), with 1 between them.

    Returns:
        The exponent.
    """
    return draw(rng, (given[0], 1.0) if rng.random() < 0.5 else (1.0, given[1]))


def blur(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate an image, mirrored at its border, with a kernel; large kernels cost no more than small ones.

    Args:
        image: (channels, height, width) float32.
        kernel: (side, side), odd.

    Returns:
        (channels, height, width) float32.
    """
    half = kernel.shape[0] // 2
    padded = np.pad(image, ((0, 0), (half, half), (half, half)), mode="reflect")
    size = [scipy.fft.next_fast_len(n, real=True) for n in padded.shape[1:]]
    # The transform of the mirrored kernel: the product is then a correlation.
    response = np.asarray(scipy.fft.rfft2(kernel[::-1, ::-1].astype(np.float32), size))
    spectrum = np.asarray(scipy.fft.rfft2(padded, size))
    out = np.asarray(scipy.fft.irfft2(spectrum * response, size))
    return out[:, 2 * half : 2 * half + image.shape[1], 2 * half : 2 * half + image.shape[2]]
