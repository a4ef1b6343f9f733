"""Noise: Gaussian of a known level, and the two kinds of the second-order degradation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Degraded, check_clean, check_range, draw, to_uint8

# ITU-R BT.601 luma.
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class GaussianNoise:
    """White Gaussian noise of one level for each image: round(clip(x + σ z)), σ ~ U[low, high].

    Args:
        low: least standard deviation on the scale 0 … 255.
        high: greatest standard deviation.

    Raises:
        ValueError: not 0 ≤ low ≤ high.

    Example:
        >>> noisy = GaussianNoise(25, 25)(np.full((64, 64, 3), 128, np.uint8), np.random.default_rng(0))
        >>> noisy.level, round(float(noisy.lq.std()))
        (25.0, 25)
    """

    low: float = 0.0
    high: float = 50.0

    def __post_init__(self) -> None:
        check_range("(low, high)", (self.low, self.high), 0.0)

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Add noise; `level` of the result is the σ that was drawn."""
        check_clean(clean)
        level = draw(rng, (self.low, self.high))
        noisy = gaussian_noise(clean.shape, rng, level, channels=3)
        noisy += clean
        return Degraded(to_uint8(noisy), level=level)


def gaussian_noise(
    shape: tuple[int, ...], rng: np.random.Generator, level: float, channels: int
) -> np.ndarray:
    """Draw white Gaussian noise.

    Args:
        shape: (height, width, 3).
        rng: the source of the draws.
        level: standard deviation.
        channels: 3, each channel its own; 1, the same for all (grey noise).

    Returns:
        (height, width, channels) float32.
    """
    noise = rng.standard_normal((*shape[:2], channels), dtype=np.float32)
    noise *= np.float32(level)
    return noise


def poisson_noise(image: np.ndarray, rng: np.random.Generator, scale: float, channels: int) -> np.ndarray:
    """Draw shot noise, which grows with the brightness: scale · (Poisson(x v/255) / v − x/255) · 255.

    v is the number of different values in the image, rounded up to a power of two, as in the published code:
    an image of few values is taken for one of few photons.

    Args:
        image: (height, width, 3) floating point on the scale 0 … 255.
        rng: the source of the draws.
        scale: factor of the noise.
        channels: 3, each channel its own; 1, that of the luma for all (grey noise).

    Returns:
        (height, width, channels) float32.

    Reference: Wang, Xie, Dong, Shan 2021, "Real-ESRGAN", section 3.1 and its published implementation.
    """
    source = image if channels == 3 else (image @ LUMA)[..., None]
    pixels = to_uint8(source.astype(np.float32))
    values = np.count_nonzero(np.bincount(pixels.ravel(), minlength=256))
    photons = (2.0 ** np.ceil(np.log2(values))) / 255.0
    noise = (rng.poisson(pixels * photons) / photons).astype(np.float32)
    noise -= pixels
    noise *= np.float32(scale)
    return noise
