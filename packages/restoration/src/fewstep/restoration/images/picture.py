"""The record of one photograph: pixels as they are stored, and what came with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from io import BufferedIOBase
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    Stream = IO[bytes]
else:
    # What open files and io.BytesIO are; at run time IO[bytes] asks for attributes that BytesIO has not.
    Stream = BufferedIOBase

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class ImageError(ValueError):
    """A file or an array that cannot be used as an image; the message is one sentence that names it."""


@dataclass(frozen=True, eq=False)
class Picture:
    """One photograph, upright, with its bit depth and metadata.

    Args:
        pixels: (height, width, channels): uint8, uint16, or float32 in [0, 1]. Channels: 1 grey, 2 grey and
            alpha, 3 RGB, 4 RGB and alpha (alpha is not multiplied into the colours).
        format: where it came from: "JPEG", "PNG", "WEBP" or "TIFF" (other sources: "PNG").
        lossless: whether its file kept every value.
        exif: EXIF block ("Exif\\0\\0" and a TIFF structure), orientation already applied.
        icc: ICC profile of the colours.
        dpi: resolution in pixels per inch (horizontal, vertical).
        notes: what a user should hear about how it was read, one sentence each.
    """

    pixels: np.ndarray
    format: str = "PNG"
    lossless: bool = True
    exif: bytes | None = None
    icc: bytes | None = None
    dpi: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] not in _MODES or 0 in self.pixels.shape:
            raise ImageError(f"pixels: expected (height, width, 1 to 4 channels), got {self.pixels.shape}")
        if self.pixels.dtype not in (np.uint8, np.uint16, np.float32):
            raise ImageError(f"pixels: expected uint8, uint16 or float32, got {self.pixels.dtype}")

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[0]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[1]

    @property
    def has_alpha(self) -> bool:
        """Whether the last channel is an alpha channel."""
        return self.pixels.shape[2] in (2, 4)

    @property
    def colour(self) -> np.ndarray:
        """The channels without alpha, (height, width, 1 or 3)."""
        return self.pixels[:, :, : -1 if self.has_alpha else None]

    @property
    def peak(self) -> float:
        """The value of white: 255, 65535 or 1."""
        return 1.0 if self.pixels.dtype == np.float32 else float(np.iinfo(self.pixels.dtype).max)

    def with_pixels(self, pixels: np.ndarray) -> Picture:
        """The same photograph with other pixels.

        Args:
            pixels: (height, width, channels).

        Returns:
            A new record with the same metadata.
        """
        return replace(self, pixels=pixels)

    def as_bytes(self) -> np.ndarray:
        """The pixels in 8 bit, rounded.

        Returns:
            (height, width, channels) uint8.
        """
        return convert_depth(self.pixels, np.uint8)

    def to_pil(self) -> Image.Image:
        """An 8-bit Pillow image of mode L, LA, RGB or RGBA, with the ICC profile in its `info`.

        Returns:
            A Pillow image.
        """
        pixels = self.as_bytes()
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        if self.icc:
            image.info["icc_profile"] = self.icc
        return image


def convert_depth(pixels: np.ndarray, dtype: type) -> np.ndarray:
    """Bring pixels to another sample type; the value of white stays white.

    Args:
        pixels: any shape: uint8, uint16, or float32 in [0, 1].
        dtype: np.uint8, np.uint16 or np.float32.

    Returns:
        The same shape in `dtype`, rounded to nearest.

    Example:
        >>> convert_depth(np.array([0, 128, 65535], np.uint16), np.uint8)
        array([  0,   0, 255], dtype=uint8)
    """
    if pixels.dtype == dtype:
        return pixels
    out = np.empty(pixels.shape, dtype)
    peak = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    source = 1.0 if pixels.dtype == np.float32 else np.iinfo(pixels.dtype).max
    # Some hundred rows at a time: the float copy of a large image never exists as a whole.
    for top in range(0, len(pixels), 256):
        rows = pixels[top : top + 256].astype(np.float64) * (peak / source)
        out[top : top + 256] = rows if dtype == np.float32 else np.rint(np.clip(rows, 0, peak))
    return out


def checked_float(pixels: np.ndarray) -> np.ndarray:
    """Make sure that floating-point pixels are numbers in [0, 1].

    Args:
        pixels: any shape, floating point.

    Returns:
        The same in float32, clipped to [0, 1].

    Raises:
        ImageError: NaN, infinity, or values clearly outside [0, 1].
    """
    bad = int(np.count_nonzero(~np.isfinite(pixels)))
    if bad:
        raise ImageError(f"has {bad} values that are not finite numbers (NaN or infinity)")
    low, high = float(pixels.min()), float(pixels.max())
    # A thousandth beyond the ends is what resampling filters leave; it is clipped.
    if low < -1e-3 or high > 1.0 + 1e-3:
        raise ImageError(f"has float values from {low:g} to {high:g}; they must lie in [0, 1]")
    return np.clip(pixels, 0.0, 1.0).astype(np.float32)
