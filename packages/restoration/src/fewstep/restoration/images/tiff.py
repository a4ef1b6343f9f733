"""TIFF files with 16-bit or floating-point samples, which Pillow does not read or write."""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable

import numpy as np
import tifffile
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from . import metadata
from .picture import ImageError, Picture, Stream, checked_float

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB = 0, 1, 2
_ASSOCIATED_ALPHA, _FREE_ALPHA = 1, 2
_LONG = 4
# Above this a classic TIFF cannot hold its offsets, and EXIF directories of big files are not written.
_CLASSIC_LIMIT = 2**32 - 2**25


# Damaged files are reported by an exception; without a handler the logger would write to stderr as well.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def is_tiff(head: bytes) -> bool:
    """Whether a file that starts with these bytes is a TIFF.

    Args:
        head: at least four bytes.

    Returns:
        True for classic and big TIFF of either byte order.
    """
    return head[:4] in _MAGIC


def is_deep(handle: Stream, check_size: Callable[[int, int], None]) -> bool:
    """Whether the first page has more than 8 bits a sample.

    Args:
        handle: the file, at its start.
        check_size: called with (width, height); raises when the image is too large.

    Returns:
        False for what Pillow reads.

    Raises:
        ImageError: samples that are no pixels (complex or signed numbers, more than 16 bits).
    """
    with tifffile.TiffFile(handle) as file:
        page = file.pages.first
        check_size(page.imagewidth, page.imagelength)
        kind = np.dtype(page.dtype) if page.dtype is not None else None
        if kind is None:
            raise ImageError("has samples of a type that is not supported (8 or 16 bit, or float)")
        if kind in (np.uint8, np.bool_):
            return False
        if kind not in (np.uint16, np.float16, np.float32, np.float64):
            raise ImageError(f"has samples of type {kind}, which is not supported (8 or 16 bit, or float)")
        return True


def read_deep(handle: Stream) -> Picture:
    """Read the first page of a TIFF file with 16-bit or floating-point samples.

    Args:
        handle: the file.

    Returns:
        The photograph, uint16 or float32.

    Raises:
        ImageError: no grey or RGB image, or values that are not finite or outside [0, 1].
    """
    handle.seek(0)
    notes = []
    with tifffile.TiffFile(handle) as file:
        page = file.pages.first
        if len(file.pages) > 1:
            notes.append("has several frames or pages, of which the first was read")
        pixels = _channels_last(page.asarray(), page)
        if pixels.dtype != np.uint16:
            pixels = checked_float(pixels)
        if int(page.photometric) == _MIN_IS_WHITE:
            pixels = (65535 - pixels) if pixels.dtype == np.uint16 else np.float32(1) - pixels
        extra = [int(v) for v in page.extrasamples]
        if extra and extra[0] == _ASSOCIATED_ALPHA:
            pixels = _divide_by_alpha(pixels)
        icc = page.iccprofile
        dpi = _dpi(page)
    orientation, exif = 1, None
    try:
        directory = metadata.from_tiff(handle)
        orientation, exif = int(directory.get(metadata.ORIENTATION, 1)), metadata.tidy(directory)
    except Exception:
        notes.append("has damaged EXIF data, which were left out")
    pixels = metadata.upright(pixels, orientation)
    return Picture(pixels, "TIFF", True, exif, icc or None, dpi, tuple(notes))


def _channels_last(pixels: np.ndarray, page: tifffile.TiffPage) -> np.ndarray:
    if int(page.photometric) not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB):
        kind = getattr(page.photometric, "name", page.photometric)
        raise ImageError(f"is a 16-bit or float TIFF of kind {kind}; only grey and RGB are supported")
    axes = page.axes
    if axes == "SYX":
        pixels, axes = pixels.transpose(1, 2, 0), "YXS"
    if axes == "YX":
        pixels, axes = pixels[:, :, None], "YXS"
    if axes != "YXS":
        raise ImageError(f"has the axes {axes}; only flat images are supported")
    colours = 3 if int(page.photometric) == _RGB else 1
    alpha = [int(v) in (_ASSOCIATED_ALPHA, _FREE_ALPHA) for v in page.extrasamples][:1] == [True]
    if pixels.shape[2] not in (colours, colours + alpha):
        raise ImageError(
            f"has {pixels.shape[2]} channels; only grey and RGB, with or without alpha, are supported"
        )
    return pixels


def _divide_by_alpha(pixels: np.ndarray) -> np.ndarray:
    peak = 65535.0 if pixels.dtype == np.uint16 else 1.0
    alpha = pixels[:, :, -1:].astype(np.float32)
    colour = np.where(alpha > 0, pixels[:, :, :-1] * (peak / np.maximum(alpha, 1e-6)), 0.0).clip(0.0, peak)
    colour = np.rint(colour) if pixels.dtype == np.uint16 else colour
    return np.concatenate([colour.astype(pixels.dtype), pixels[:, :, -1:]], axis=2)


def _dpi(page: tifffile.TiffPage) -> tuple[float, float] | None:
    try:
        x, y = page.get_resolution(unit="inch")
    except (ValueError, ZeroDivisionError, KeyError):
        return None
    return (float(x), float(y)) if 1 < x < 1e6 and 1 < y < 1e6 else None


def encode_tiff(picture: Picture, handle: Stream) -> None:
    """Write a TIFF of any sample type, deflated, strip by strip.

    Args:
        picture: what to write; its metadata goes along.
        handle: an empty seekable file.
    """
    channels = picture.pixels.shape[2]
    # A row of a wide image is a strip; a narrow one has strips of about a megabyte.
    row = picture.width * channels * picture.pixels.dtype.itemsize
    big = picture.pixels.nbytes > _CLASSIC_LIMIT
    directory = metadata.parse(picture.exif) if picture.exif else None
    tags = [] if directory is None else _plain_tags(directory)
    # BigTIFF counts with eight bytes where the directories made here have four.
    nested = {} if directory is None or big else metadata.nested(directory)
    tifffile.imwrite(
        handle,
        picture.pixels[:, :, 0] if channels == 1 else picture.pixels,
        bigtiff=big,
        byteorder="<",
        photometric="rgb" if channels >= 3 else "minisblack",
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if picture.has_alpha else None,
        compression="zlib",
        predictor=True,
        rowsperstrip=max(1, min(picture.height, 2**20 // row)),
        resolution=picture.dpi,
        resolutionunit="inch" if picture.dpi else None,
        iccprofile=picture.icc,
        extratags=tags,
        software=False,
        metadata=None,
    )
    if nested:
        _add_directories(handle, nested)


def _plain_tags(directory: Image.Exif) -> list[tuple[int, str, int, bytes, bool]]:
    """The text tags of the main directory (camera, author, date …); resolution is written by itself."""
    texts = {tag: metadata.raw_text(v) for tag, v in directory.items() if isinstance(v, str | bytes)}
    return [(tag, "s", 0, text, True) for tag, text in texts.items() if text]


def _add_directories(handle: Stream, directories: dict[int, dict]) -> None:
    """Give a classic little-endian TIFF further directories that its first one points to.

    The first directory is written again behind them, two entries longer, since nothing can be inserted.
    """
    entries = _first_directory(handle)
    for tag, content in directories.items():
        nested = ImageFileDirectory_v2(ifh=b"II*\0\0\0\0\0", group=tag)
        for key, value in content.items():
            nested[key] = metadata.raw_text(value) if isinstance(value, str) else value
        offset = _seek_even_end(handle)
        handle.write(nested.tobytes(offset))
        entries.append(struct.pack("<HHII", tag, _LONG, 1, offset))
    offset = _seek_even_end(handle)
    handle.write(struct.pack("<H", len(entries)) + b"".join(sorted(entries, key=_tag)) + bytes(4))
    handle.seek(4)
    handle.write(struct.pack("<I", offset))


def _first_directory(handle: Stream) -> list[bytes]:
    handle.seek(4)
    handle.seek(*struct.unpack("<I", handle.read(4)))
    (count,) = struct.unpack("<H", handle.read(2))
    return [handle.read(12) for _ in range(count)]


def _tag(entry: bytes) -> int:
    return int.from_bytes(entry[:2], "little")


def _seek_even_end(handle: Stream) -> int:
    """Go to the end, to an even offset, where directories have to start."""
    end = handle.seek(0, 2)
    handle.write(bytes(end % 2))
    return end + end % 2
