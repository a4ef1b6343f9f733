"""Brightening before the network: the one thing about a dark photograph that no window of it can tell."""

from __future__ import annotations

import numpy as np

_BINS = 4096
_HALVINGS = 30


def exposure_gamma(image: np.ndarray, mean: float) -> float:
    """The power that gives an image a mean brightness.

    gamma ≤ 1 with mean(x^gamma) = mean over all pixels and channels, x on the scale 0 … 1; 1 where the image
    is as bright already, and at least 0.05.

    Args:
        image: (height, width, channels) uint8, uint16, or floating point in [0, 1].
        mean: brightness that is wanted, between 0 and 1.

    Returns:
        gamma.

    Raises:
        ValueError: mean out of its range.

    Example:
        >>> round(exposure_gamma(np.full((2, 2, 3), 0.09), 0.3), 3)
        0.5
    """
    if not 0 < mean < 1:
        raise ValueError(f"mean must lie between 0 and 1, got {mean}")
    if image.dtype == np.uint8:
        counts, values = np.bincount(image.ravel(), minlength=256), np.arange(256) / 255.0
    else:
        peak = 65535.0 if image.dtype == np.uint16 else 1.0
        counts, edges = np.histogram(image, bins=_BINS, range=(0.0, peak))
        values = (edges[:-1] + edges[1:]) / (2 * peak)
    shares = counts / max(counts.sum(), 1)
    low, high = 0.05, 1.0
    if shares @ values >= mean:
        return 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if shares @ values**middle > mean else (low, middle)
    return low


def exposed(image: np.ndarray, mean: float) -> np.ndarray:
    """The image with each value x replaced by x^gamma, so that its mean is `mean`.

    Args:
        image: as of `exposure_gamma`.
        mean: as of `exposure_gamma`.

    Returns:
        A new array of the same type and shape.

    Example:
        >>> exposed(np.full((2, 2, 3), 23, np.uint8), 0.3).mean().item()
        77.0
    """
    gamma = exposure_gamma(image, mean)
    if image.dtype in (np.uint8, np.uint16):
        peak = int(np.iinfo(image.dtype).max)
        table = np.rint(peak * (np.arange(peak + 1) / peak) ** gamma).astype(image.dtype)
        return table[image]
    return image**gamma
