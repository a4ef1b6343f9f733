"""A smooth first guess of what a mask hides, for networks that inpaint."""

from __future__ import annotations

import numpy as np

# Rounds of relaxation at every level of the pyramid.
ROUNDS = 16


def smooth_fill(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Fill unknown pixels with a nearly harmonic function of the known ones around them.

    Each unknown pixel is about the mean of its four neighbours, Δx = 0 with x known outside. The equation is
    relaxed from coarse to fine: known pixels are averaged over squares of 2, 4, 8 … pixels until no square is
    without one; going back, squares without one begin with the value of the next coarser square, and are
    relaxed in `ROUNDS` rounds of Jacobi's rule.

    Args:
        image: (height, width, channels) uint8, uint16 or floating point.
        mask: (height, width) bool, True where unknown.

    Returns:
        A new array of the image's type; known pixels are unchanged. Where nothing is known, all is grey.

    Raises:
        ValueError: sizes that differ.

    Reference: Gortler, Grzeszczuk, Szeliski & Cohen 1996, "The Lumigraph", section 3.4 (pull and push);
        Bornemann & Deuflhard 1996, "The cascadic multigrid method for elliptic problems".

    Example:
        >>> row = np.array([0, 9, 9, 9, 80], np.uint8)[None, :, None]
        >>> smooth_fill(row, np.array([[False, True, True, True, False]]))[0, :, 0].tolist()
        [0, 19, 39, 59, 80]
    """
    if image.shape[:2] != mask.shape:
        raise ValueError(f"mask must have the image's size {image.shape[:2]}, got {mask.shape}")
    whole = np.issubdtype(image.dtype, np.integer)
    if mask.all():
        return np.full_like(image, (np.iinfo(image.dtype).max + 1) // 2 if whole else 0.5)
    filled = _filled(np.where(mask[..., None], 0, image).astype(np.float32), ~mask)
    made = np.rint(filled).astype(image.dtype) if whole else filled.astype(image.dtype)
    return np.where(mask[..., None], made, image)


def _filled(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Fill a (height, width, channels) float32 image that is 0 where it is not known."""
    if known.all():
        return image
    height, width = known.shape
    sides = ((0, height % 2), (0, width % 2))
    count = _sums(np.pad(known, sides).astype(np.float32)[..., None])
    total = _sums(np.pad(image, (*sides, (0, 0))))
    coarse = _filled(total / np.maximum(count, 1), count[..., 0] > 0)
    finer = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return _relaxed(np.where(known[..., None], image, finer), ~known)


def _sums(image: np.ndarray) -> np.ndarray:
    """Sums over squares of 2 × 2 pixels."""
    return image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]


def _relaxed(image: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """Rounds of Jacobi's rule at the unknown pixels; beyond the edge the image goes on as it is."""
    height, width = unknown.shape
    rows, columns = np.nonzero(unknown)
    flat = image.reshape(height * width, -1).copy()
    here = rows * width + columns
    around = [
        np.maximum(rows - 1, 0) * width + columns,
        np.minimum(rows + 1, height - 1) * width + columns,
        rows * width + np.maximum(columns - 1, 0),
        rows * width + np.minimum(columns + 1, width - 1),
    ]
    for _ in range(ROUNDS):
        flat[here] = sum(flat[index] for index in around) / 4
    return flat.reshape(image.shape)
