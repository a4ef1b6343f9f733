"""Antialiased bicubic resizing: the convention in which super-resolution data sets and tables are made."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Pixels = TypeVar("Pixels", np.ndarray, Tensor)


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = −1/2: 1.5|x|³ − 2.5|x|² + 1 up to 1, −0.5|x|³ + 2.5|x|² − 4|x| + 2 up to 2.

    Args:
        x: distances in samples, any shape.

    Returns:
        The kernel at these distances.

    Reference: Keys 1981, "Cubic convolution interpolation for digital image processing", eq. 15.
    """
    x = np.abs(x)
    inner = (1.5 * x - 2.5) * x * x + 1.0
    outer = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1.0, inner, np.where(x < 2.0, outer, 0.0))


@lru_cache(maxsize=64)
def taps(size: int, out_size: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Say which input samples, with which weights, make each output sample of one axis.

    Output sample i (from 0) is centred at (i + ½)/scale − ½. A reduction stretches the kernel by 1/scale, so
    that it also removes what the coarser grid cannot hold. Beyond its ends the signal is mirrored, the end
    sample repeated.

    Args:
        size: input length in samples.
        out_size: output length in samples.
        scale: output samples per input sample.

    Returns:
        (indices, weights), both (out_size, taps); the weights of a row add up to one.
    """
    stretch = min(scale, 1.0)
    centre = (np.arange(out_size) + 0.5) / scale - 0.5
    count = math.ceil(4.0 / stretch) + 2
    indices = np.floor(centre - 2.0 / stretch).astype(np.int64)[:, None] + np.arange(count)
    weights = cubic(stretch * (centre[:, None] - indices))
    weights /= weights.sum(axis=1, keepdims=True)
    used = np.any(weights != 0.0, axis=0)
    mirrored = indices % (2 * size)
    mirrored = np.where(mirrored < size, mirrored, 2 * size - 1 - mirrored)
    return mirrored[:, used], weights[:, used]


def resize_axis(x: Tensor, dim: int, indices: np.ndarray, weights: np.ndarray) -> Tensor:
    """Apply the taps of one axis: out[i] = Σ_k weights[i, k] · x[indices[i, k]].

    Args:
        x: floating-point tensor, any shape.
        dim: the axis to resize.
        indices: (out, taps) rows of `x` along `dim`.
        weights: (out, taps).

    Returns:
        `x` with `out` entries along `dim`.
    """
    along = [1] * x.ndim
    along[dim] = -1
    index = torch.from_numpy(indices).to(x.device)
    weight = torch.from_numpy(weights).to(x.device, x.dtype)
    out = x.index_select(dim, index[:, 0]) * weight[:, 0].reshape(along)
    for k in range(1, indices.shape[1]):
        out.addcmul_(x.index_select(dim, index[:, k]), weight[:, k].reshape(along))
    return out


def imresize(image: Pixels, scale: float) -> Pixels:
    """Resize by a factor with antialiased bicubic interpolation; the result is not clipped.

    The output has ⌈scale · size⌉ samples an axis. Agrees with MATLAB's `imresize(image, scale)`, by which
    the low-resolution halves of Set5, Set14, BSD100 and DIV2K are made.

    Args:
        image: floating-point array (height, width[, channels]) or tensor (..., height, width).
        scale: output samples per input sample, the same for both axes.

    Returns:
        The resized array or tensor, in the type of `image`.

    Raises:
        TypeError: `image` does not hold floating-point numbers.
        ValueError: `scale` is not positive, or `image` has no pixels.

    Example:
        >>> imresize(np.ones((8, 12, 3)), 0.25).shape
        (2, 3, 3)
    """
    if not (isinstance(scale, int | float) and math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale: expected a positive number, got {scale!r}")
    # 1e-9: a factor such as 1/3 or 0.7 is not exact in binary and must not add a row by rounding up.
    height, width = (max(1, math.ceil(scale * n - 1e-9)) for n in _spatial(image))
    return _resize(image, (height, width), (float(scale), float(scale)))


def imresize_to(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize to a given size with antialiased bicubic interpolation; each axis has its own factor.

    Args:
        image: floating-point array (height, width[, channels]) or tensor (..., height, width).
        size: (height, width) of the result.

    Returns:
        The resized array or tensor, in the type of `image`.

    Raises:
        TypeError: `image` does not hold floating-point numbers.
        ValueError: `size` is not positive, or `image` has no pixels.

    Example:
        >>> imresize_to(torch.zeros(2, 3, 10, 10), (5, 20)).shape
        torch.Size([2, 3, 5, 20])
    """
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size: expected (height, width) of at least 1, got {size!r}")
    height, width = _spatial(image)
    return _resize(image, size, (size[0] / height, size[1] / width))


def _spatial(image: Any) -> tuple[int, int]:
    if isinstance(image, Tensor):
        if not image.is_floating_point():
            raise TypeError(f"image: expected floating-point values, got {image.dtype}")
        if image.ndim < 2:
            raise ValueError(f"image: expected (..., height, width), got shape {tuple(image.shape)}")
        height, width = image.shape[-2:]
    elif isinstance(image, np.ndarray):
        if not np.issubdtype(image.dtype, np.floating):
            raise TypeError(f"image: expected floating-point values, got {image.dtype}")
        if image.ndim not in (2, 3):
            raise ValueError(f"image: expected (height, width[, channels]), got shape {image.shape}")
        height, width = image.shape[:2]
    else:
        raise TypeError(f"image: expected a numpy array or a tensor, got {type(image).__name__}")
    if height < 1 or width < 1:
        raise ValueError(f"image: expected at least one pixel, got {height}×{width}")
    return height, width


def _resize(image: Any, size: tuple[int, int], scales: tuple[float, float]) -> Any:
    if isinstance(image, np.ndarray):
        x, dims = torch.from_numpy(np.require(image, requirements=["C", "W"])), (0, 1)
    else:
        x, dims = image, (image.ndim - 2, image.ndim - 1)
    # The axis that shrinks most goes first: the second one then has less to do.
    for axis in sorted((0, 1), key=lambda k: scales[k]):
        source = x.shape[dims[axis]]
        if size[axis] != source or scales[axis] != 1.0:
            x = resize_axis(x, dims[axis], *taps(source, size[axis], scales[axis]))
    return x.numpy() if isinstance(image, np.ndarray) else x
