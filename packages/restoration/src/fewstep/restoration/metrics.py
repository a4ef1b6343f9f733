"""PSNR, SSIM and sharpness of a restored image, in the conventions whose tables people compare with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from skimage.metrics import structural_similarity

# ITU-R BT.601 luma as MATLAB's rgb2ycbcr gives it: 16…235 for 8-bit input.
_STUDIO = np.array([65.481, 128.553, 24.966]) / 255.0
# Full-range luma of the YCrCb transform: 0…255.
_FULL = np.array([0.299, 0.587, 0.114])


def luma_studio(image: np.ndarray) -> np.ndarray:
    """Studio-range luma Y = 16 + (65.481 R + 128.553 G + 24.966 B)/255 of values in [0, 255].

    Args:
        image: (height, width), taken as R = G = B, or (height, width, 3); uint8 or float in [0, 255].

    Returns:
        (height, width), float64, not rounded.
    """
    return 16.0 + _weighted(image, _STUDIO)


def luma_full(image: np.ndarray) -> np.ndarray:
    """Full-range luma Y = 0.299 R + 0.587 G + 0.114 B of values in [0, 255].

    Args:
        image: (height, width), taken as R = G = B, or (height, width, 3); uint8 or float in [0, 255].

    Returns:
        (height, width), float64, not rounded.
    """
    return _weighted(image, _FULL)


def colours(image: np.ndarray) -> np.ndarray:
    """All channels as they are, in float64.

    Args:
        image: (height, width) or (height, width, channels) in [0, 255].

    Returns:
        The same values in float64.
    """
    return image.astype(np.float64)


def _weighted(image: np.ndarray, weights: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        return image.astype(np.float64) * weights.sum()
    return image.astype(np.float64) @ weights


@dataclass(frozen=True)
class Convention:
    """What is compared in a table of results.

    Args:
        name: how it is asked for.
        plane: the values that are compared, from an image in [0, 255].
        rounded: whether the images are first brought to 8 bit, as a saved file would be.
        border: whether tables of super-resolution cut `scale` pixels from each side before comparing.
    """

    name: str
    plane: Callable[[np.ndarray], np.ndarray]
    rounded: bool
    border: bool


CONVENTIONS = {
    "y": Convention("y", luma_studio, rounded=True, border=True),
    "rgb": Convention("rgb", colours, rounded=True, border=False),
    "ycrcb": Convention("ycrcb", luma_full, rounded=False, border=False),
}


@dataclass(frozen=True)
class Score:
    """PSNR in dB (infinite for equal images) and SSIM of one image."""

    psnr: float
    ssim: float


def score(restored: np.ndarray, truth: np.ndarray, convention: str = "y", border: int = 0) -> Score:
    """Measure a restored image against the truth.

    "y": studio-range luma of the 8-bit images, as tables of super-resolution have it (with `border` = scale).
    "rgb": the three colours of the 8-bit images, as tables of denoising and deraining have it.
    "ycrcb": full-range luma, not rounded, as tables of compressed sensing have it.
    The three differ by more than a decibel: never mix them.

    Args:
        restored: (height, width) or (height, width, 3), in [0, 255]; uint8 or floating point.
        truth: the same shape, in [0, 255].
        convention: "y", "rgb" or "ycrcb".
        border: pixels cut from each side before comparing.

    Returns:
        PSNR with peak 255 and SSIM (`ssim`).

    Raises:
        ValueError: an unknown convention, unequal shapes, or nothing left inside the border.

    Example:
        >>> grey = np.full((32, 32, 3), 100, np.uint8)
        >>> round(score(grey + np.uint8(10), grey, "rgb").psnr, 2)
        28.13
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"convention: expected one of {', '.join(CONVENTIONS)}, got {convention!r}")
    if restored.shape != truth.shape:
        raise ValueError(f"restored: expected the shape of the truth {truth.shape}, got {restored.shape}")
    rule = CONVENTIONS[convention]
    first, second = (
        _inside(rule.plane(_to_bytes(x) if rule.rounded else x), border) for x in (restored, truth)
    )
    return Score(psnr(first, second), ssim(first, second))


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return image if image.dtype == np.uint8 else np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _inside(image: np.ndarray, border: int) -> np.ndarray:
    if border < 0 or min(image.shape[:2]) <= 2 * border:
        raise ValueError(f"border: expected 0 to less than half of the size {image.shape[:2]}, got {border}")
    return image[border : image.shape[0] - border, border : image.shape[1] - border]


def psnr(restored: np.ndarray, truth: np.ndarray, peak: float = 255.0) -> float:
    """Peak signal-to-noise ratio 10 log₁₀(peak² / mean squared error).

    Args:
        restored: any shape.
        truth: the same shape.
        peak: the largest possible value.

    Returns:
        Decibels; infinite for equal arrays.
    """
    error = float(np.mean((restored.astype(np.float64) - truth.astype(np.float64)) ** 2))
    return math.inf if error == 0.0 else 10.0 * math.log10(peak * peak / error)


def ssim(restored: np.ndarray, truth: np.ndarray, peak: float = 255.0) -> float:
    """Structural similarity: 11×11 Gaussian window with standard deviation 1.5, mean over the valid region.

    Args:
        restored: (height, width) or (height, width, channels), at least 11×11.
        truth: the same shape.
        peak: the largest possible value.

    Returns:
        Mean over pixels and channels, at most 1.

    Raises:
        ValueError: the image is smaller than the window.

    Reference: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility to
    structural similarity", section III-C.
    """
    if min(restored.shape[:2]) < 11:
        raise ValueError(f"restored: SSIM needs at least 11×11 pixels, got {restored.shape[:2]}")
    value: Any = structural_similarity(
        restored.astype(np.float64),
        truth.astype(np.float64),
        data_range=peak,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        channel_axis=2 if restored.ndim == 3 else None,
    )
    return float(value)


def sharpness(restored: np.ndarray, truth: np.ndarray) -> float:
    """Mean gradient magnitude of the restored luma divided by that of the true luma.

    Below 1 the result is softer than the truth (what a mean of possible images is), above 1 it is busier.

    Args:
        restored: (height, width) or (height, width, 3), in [0, 255].
        truth: the same shape.

    Returns:
        The ratio; infinite when only the truth is flat and 1 when both are.

    Example:
        >>> steps = np.tile(np.arange(0, 80, 10, dtype=np.uint8), (8, 1))
        >>> sharpness(steps // 2, steps)
        0.5
    """
    first, second = (_mean_gradient(luma_full(x)) for x in (restored, truth))
    if second == 0.0:
        return 1.0 if first == 0.0 else math.inf
    return first / second


def _mean_gradient(plane: np.ndarray) -> float:
    across = plane[:-1, 1:] - plane[:-1, :-1]
    down = plane[1:, :-1] - plane[:-1, :-1]
    return float(np.mean(np.hypot(across, down)))
