"""Samples as a picture: a grid of bytes, and its PNG file."""

import io

import numpy as np
import torch
from torch import Tensor


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape can be shown: (1 or 3, height, width)."""
    return len(shape) == 3 and shape[0] in (1, 3)


def grid_of(samples: Tensor, columns: int | None = None, gap: int = 1) -> np.ndarray:
    """Return samples in [−1, 1] as one picture, row by row.

    Args:
        samples: (count, 1 or 3, height, width); values outside of the range are cut off, NaN is black.
        columns: samples in a row (None: about as many as there are rows).
        gap: white pixels between two samples.

    Returns:
        uint8, (height, width) for one channel, else (height, width, 3).

    Raises:
        ValueError: samples of this shape are no pictures.

    Example:
        >>> grid_of(torch.zeros(4, 1, 8, 8)).shape
        (17, 17)
    """
    if not is_picture(tuple(samples.shape[1:])) or len(samples) == 0:
        raise ValueError(f"samples must be (count, 1 or 3, height, width), got {tuple(samples.shape)}")
    count, channels, height, width = samples.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    bytes_ = (samples.detach().float().nan_to_num(-1).clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, np.uint8)
    for i, sample in enumerate(bytes_.cpu().permute(0, 2, 3, 1).numpy()):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = sample
    return sheet[:, :, 0] if channels == 1 else sheet


def png_bytes(picture: np.ndarray, enlarge: int = 1) -> bytes:
    """Return the PNG file of a uint8 picture, every pixel enlarged to a square.

    Raises:
        ImportError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("pictures need Pillow: pip install pillow") from error
    large = picture.repeat(enlarge, axis=0).repeat(enlarge, axis=1)
    file = io.BytesIO()
    Image.fromarray(large).save(file, format="PNG")
    return file.getvalue()
