"""A PNG writer that needs one strip of rows in memory, for 8 and 16 bit."""

from __future__ import annotations

import struct
import zlib

import numpy as np

from .picture import Picture, Stream

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_STRIP_BYTES = 2**20


def encode_png(picture: Picture, handle: Stream) -> None:
    """Write an 8- or 16-bit PNG, strip by strip.

    Each row has the filter whose residuals, as signed bytes, have the smallest sum of magnitudes.

    Args:
        picture: uint8 or uint16 pixels, with at most 2³¹ − 1 rows and columns; its metadata goes along.
        handle: an empty file.

    Reference: ISO/IEC 15948:2003 (PNG), sections 9, 11 and 12.8.
    """
    height, width, channels = picture.pixels.shape
    depth = 8 * picture.pixels.dtype.itemsize
    handle.write(b"\x89PNG\r\n\x1a\n")
    _chunk(handle, b"IHDR", struct.pack(">IIBBBBB", width, height, depth, _COLOUR_TYPES[channels], 0, 0, 0))
    if picture.icc:
        _chunk(handle, b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc))
    if picture.dpi:
        per_metre = [round(v / 0.0254) for v in picture.dpi]
        _chunk(handle, b"pHYs", struct.pack(">IIB", *per_metre, 1))
    if picture.exif:
        _chunk(handle, b"eXIf", picture.exif.removeprefix(b"Exif\0\0"))
    _image_data(handle, picture.pixels)
    _chunk(handle, b"IEND", b"")


def _chunk(handle: Stream, kind: bytes, data: bytes) -> None:
    handle.write(struct.pack(">I", len(data)) + kind + data)
    handle.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


def _image_data(handle: Stream, pixels: np.ndarray) -> None:
    height, width, channels = pixels.shape
    pixel_bytes = channels * pixels.dtype.itemsize
    rows = max(1, _STRIP_BYTES // (width * pixel_bytes))
    deflate = zlib.compressobj(6)
    above = np.zeros(width * pixel_bytes, np.uint8)
    for top in range(0, height, rows):
        strip = np.ascontiguousarray(pixels[top : top + rows])
        if strip.dtype == np.uint16:
            strip = strip.astype(">u2")
        strip = strip.view(np.uint8).reshape(len(strip), -1)
        if packed := deflate.compress(_filter(strip, above, pixel_bytes).tobytes()):
            _chunk(handle, b"IDAT", packed)
        above = strip[-1]
    _chunk(handle, b"IDAT", deflate.flush())


def _filter(rows: np.ndarray, above: np.ndarray, pixel_bytes: int) -> np.ndarray:
    """Put the best of the five filters on each row, with its number in front."""
    up = np.concatenate([above[None], rows[:-1]])
    left, corner = np.zeros_like(rows), np.zeros_like(rows)
    left[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    corner[:, pixel_bytes:] = up[:, :-pixel_bytes]
    best = rows.copy()
    cost = _cost(rows)
    number = np.zeros(len(rows), np.uint8)
    mean = ((left.astype(np.uint16) + up) >> 1).astype(np.uint8)
    for k, predicted in enumerate((left, up, mean, _paeth(left, up, corner)), start=1):
        residual = rows - predicted
        smaller = (new := _cost(residual)) < cost
        best[smaller], cost[smaller], number[smaller] = residual[smaller], new[smaller], k
    return np.concatenate([number[:, None], best], axis=1)


def _cost(residual: np.ndarray) -> np.ndarray:
    return np.abs(residual.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64)


def _paeth(left: np.ndarray, up: np.ndarray, corner: np.ndarray) -> np.ndarray:
    """Whichever of left, up and corner is nearest to left + up − corner; ties in this order."""
    a, b, c = (x.astype(np.int16) for x in (left, up, corner))
    to_left, to_up, to_corner = np.abs(b - c), np.abs(a - c), np.abs(a + b - 2 * c)
    first = (to_left <= to_up) & (to_left <= to_corner)
    return np.where(first, left, np.where(to_up <= to_corner, up, corner))
