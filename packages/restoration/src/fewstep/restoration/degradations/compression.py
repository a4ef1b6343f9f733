"""JPEG compression, in memory."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from .base import Degraded, check_clean, check_integers, check_range, draw_integer


@dataclass(frozen=True)
class Jpeg:
    """JPEG at a quality drawn uniformly, with chroma at half the resolution (4:2:0), as is usual.

    Args:
        low: least quality, 1 … 95.
        high: greatest quality.

    Raises:
        ValueError: not integers with 1 ≤ low ≤ high ≤ 95.

    Example:
        >>> Jpeg(10, 10)(np.full((20, 30, 3), 77, np.uint8), np.random.default_rng(0)).lq.shape
        (20, 30, 3)
    """

    low: int = 10
    high: int = 60

    def __post_init__(self) -> None:
        check_range("(low, high)", (self.low, self.high), 1, 95)
        check_integers("(low, high)", (self.low, self.high))

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Compress and decompress the image."""
        check_clean(clean)
        return Degraded(decode_jpeg(encode_jpeg(clean, draw_integer(rng, (self.low, self.high)))))


def encode_jpeg(image: np.ndarray, quality: int) -> bytes:
    """Compress an image with the tables of libjpeg at 4:2:0.

    Args:
        image: (height, width, 3) uint8.
        quality: 1 … 95.

    Returns:
        The content of a JPEG file.
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()


def decode_jpeg(content: bytes) -> np.ndarray:
    """Decompress an image.

    Args:
        content: of a JPEG file in colour.

    Returns:
        (height, width, 3) uint8.
    """
    with Image.open(io.BytesIO(content)) as opened:
        return np.array(opened)
