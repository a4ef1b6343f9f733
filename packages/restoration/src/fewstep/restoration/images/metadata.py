"""EXIF blocks: made upright when read, brought to the new size when written."""

from __future__ import annotations

from collections.abc import MutableMapping

import numpy as np
from PIL import Image

from .picture import Stream

ORIENTATION = 0x0112
EXIF_IFD = 0x8769
GPS_IFD = 0x8825
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
_INTEROP_IFD = 0xA005
# Tags that say how the source file stores its pixels; in another file they would be false.
_STRUCTURE = frozenset(
    (*range(254, 267), 273, *range(277, 282), 284, *range(288, 294), 297, 301, *range(317, 344), 347)
) | frozenset((*range(512, 533), 700, 33723, 34377, 34675, 37724, 50341))

# Orientation, resolution and its unit: a block of these alone says nothing about the photograph.
_UNTELLING = frozenset((ORIENTATION, 282, 283, 296))


def tidy(exif: Image.Exif) -> bytes | None:
    """Keep what an EXIF directory says about the photograph, with the orientation set to upright.

    Args:
        exif: directory as Pillow reads it; its file must still be open.

    Returns:
        "Exif\\0\\0" and a TIFF structure, or None when nothing is left.

    Raises:
        Exception: whatever Pillow raises on a damaged directory.
    """
    kept = Image.Exif()
    for tag, value in exif.items():
        if tag not in _STRUCTURE and tag not in (EXIF_IFD, GPS_IFD):
            kept[tag] = value
    if ORIENTATION in kept:
        kept[ORIENTATION] = 1
    described = False
    for directory in (EXIF_IFD, GPS_IFD):
        content = {t: v for t, v in exif.get_ifd(directory).items() if t != _INTEROP_IFD}
        if content:
            kept.get_ifd(directory).update(content)
            described = True
    return _serialise(kept) if described or set(kept) - _UNTELLING else None


def raw_text(text: str | bytes) -> bytes:
    """Give back the bytes of a text that Pillow decoded; it would write what is not ASCII as question marks.

    Args:
        text: the value of a text tag.

    Returns:
        The bytes in the file (often UTF-8, which no tag declares).
    """
    return text if isinstance(text, bytes) else text.encode("latin-1", "replace")


def nested(exif: Image.Exif) -> dict[int, dict]:
    """The directories for the exposure and the place, as far as there are any.

    Args:
        exif: main directory.

    Returns:
        Tag of the directory → its content, which may be changed in place.
    """
    # Asking Pillow for a directory that is missing would create an empty one.
    present = set(exif) | set(exif._ifds)
    return {tag: exif.get_ifd(tag) for tag in (EXIF_IFD, GPS_IFD) if tag in present}


def _keep_text(directory: MutableMapping) -> None:
    for tag, value in list(directory.items()):
        if isinstance(value, str) and not value.isascii():
            directory[tag] = raw_text(value)


def _serialise(exif: Image.Exif) -> bytes:
    _keep_text(exif)
    for directory in nested(exif).values():
        _keep_text(directory)
    return exif.tobytes()


def parse(block: bytes) -> Image.Exif:
    """Read an EXIF block that `tidy` made.

    Args:
        block: "Exif\\0\\0" and a TIFF structure.

    Returns:
        The directory.
    """
    exif = Image.Exif()
    exif.load(block)
    return exif


def resized(block: bytes, width: int, height: int) -> bytes:
    """Correct the size in pixels that an EXIF block states.

    Args:
        block: EXIF block.
        width: columns of the image it goes with.
        height: rows.

    Returns:
        The EXIF block.
    """
    exif = parse(block)
    details = nested(exif).get(EXIF_IFD, {})
    for tag, size in ((_PIXEL_WIDTH, width), (_PIXEL_HEIGHT, height)):
        if tag in details:
            details[tag] = size
    return _serialise(exif)


def from_tiff(handle: Stream) -> Image.Exif:
    """Read the first directory of a TIFF file, whatever its pixels are.

    Args:
        handle: the file, anywhere.

    Returns:
        The directory.
    """
    exif = Image.Exif()
    handle.seek(0)
    exif.load_from_fp(handle)
    return exif


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an image as its EXIF orientation (1 to 8) asks.

    Args:
        pixels: (height, width, channels).
        orientation: 1 as it is; 2 mirrored; 3 upside down; 4 both; 5 transposed; 6 to be turned clockwise;
            7 transposed across the other diagonal; 8 to be turned counter-clockwise. Others count as 1.

    Returns:
        (height, width, channels), or with height and width exchanged.

    Reference: CIPA DC-008 (Exif 2.32), section 4.6.4 A, tag Orientation.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
