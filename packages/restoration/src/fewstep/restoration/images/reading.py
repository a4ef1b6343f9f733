"""Reading a photograph, and refusing in one sentence what is none."""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import imagecodecs
from PIL import Image, ImageOps, UnidentifiedImageError

from . import tiff
from .memory import dpi_of, exif_of, pixels_of, with_channels
from .metadata import upright
from .picture import ImageError, Picture, Stream

MAX_MEGAPIXELS = 100.0
# Decoders for other formats stay closed: what is never called cannot be attacked.
_READABLE = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
READABLE_EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif"))
_PILLOW_LIMIT = threading.Lock()


def read(source: str | Path | bytes, max_megapixels: float = MAX_MEGAPIXELS, name: str = "") -> Picture:
    """Read a JPEG, PNG, WebP, TIFF, BMP or GIF photograph.

    Bit depth (8, 16, float TIFF), grey or colour, alpha, EXIF and ICC profile are kept; the EXIF orientation
    is applied. A palette or 1-bit image becomes RGB(A) or 8-bit grey, since a restored image has values in
    between; CMYK becomes sRGB, through its ICC profile when it has one. Of an animation the first frame is
    read.

    Args:
        source: a file, or the bytes of one.
        max_megapixels: refuse larger images before anything is decoded.
        name: what errors call the image (the file's own name by default).

    Returns:
        The photograph; `notes` says what was changed.

    Raises:
        ImageError: missing, empty, not an image, truncated, too large, or with values that are not numbers.
    """
    if isinstance(source, bytes):
        return _read(io.BytesIO(source), max_megapixels, name or "the input")
    path = Path(source)
    name = name or str(path)
    if path.is_dir():
        raise ImageError(f"{name}: is a folder, not an image")
    if path.exists() and not path.is_file():
        raise ImageError(f"{name}: is not a regular file")
    try:
        with path.open("rb") as handle:
            return _read(handle, max_megapixels, name)
    except OSError as error:
        raise ImageError(f"{name}: cannot be opened ({error.strerror or error})") from error


def _read(handle: Stream, max_megapixels: float, name: str) -> Picture:
    head = handle.read(32)
    if not head:
        raise ImageError(f"{name}: is empty (0 bytes)")
    handle.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if tiff.is_tiff(head) and tiff.is_deep(handle, lambda w, h: _check_size(w, h, max_megapixels)):
                return tiff.read_deep(handle)
            handle.seek(0)
            return _read_pillow(handle, head, max_megapixels)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: is not a JPEG, PNG, WebP or TIFF image") from error
    except MemoryError as error:
        raise ImageError(f"{name}: does not fit into memory") from error
    except Exception as error:
        # Decoders raise whatever they like on damaged data: struct.error, zlib.error, KeyError, SyntaxError …
        detail = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise ImageError(f"{name}: is damaged or truncated ({detail})") from error


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            f"has {width}×{height} pixels ({width * height / 1e6:.0f} megapixels), more than the limit of "
            f"{max_megapixels:g} megapixels (raise it with max_megapixels or --max-megapixels)"
        )


@contextmanager
def _own_size_check() -> Iterator[None]:
    """Let `_check_size` decide about large images instead of Pillow's global limit."""
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _read_pillow(handle: Stream, head: bytes, max_megapixels: float) -> Picture:
    with _own_size_check():
        Image.init()
        image = Image.open(handle, formats=_READABLE)
    with image:
        _check_size(*image.size, max_megapixels)
        notes = []
        # MPO is a JPEG with a second picture (depth, gain map) behind it, not an animation.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            notes.append("has several frames or pages, of which the first was read")
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        lossless = kind in ("PNG", "TIFF", "BMP", "GIF") or (kind == "WEBP" and _is_lossless_webp(handle))
        # Pixels before metadata: asked for EXIF, Pillow decodes a PNG, and would hide that it is damaged.
        if kind == "PNG" and head[24] == 16:
            handle.seek(0)
            pixels = with_channels(imagecodecs.png_decode(handle.read()))
            orientation, exif = exif_of(image, notes)
            pixels, icc = upright(pixels, orientation), image.info.get("icc_profile")
        else:
            with _own_size_check():
                image.load()
            orientation, exif = exif_of(image, notes)
            turned = image if orientation == 1 else ImageOps.exif_transpose(image)
            pixels, icc = pixels_of(turned, image.info.get("icc_profile"), notes)
        dpi = dpi_of(image.info.get("dpi"))
    if kind in ("BMP", "GIF"):
        kind = "PNG"
    return Picture(pixels, kind, lossless, exif, icc or None, dpi, tuple(notes))


def _is_lossless_webp(handle: Stream) -> bool:
    """Whether the first image chunk of a WebP file is VP8L; an extended file has chunks before it."""
    handle.seek(12)
    while len(chunk := handle.read(8)) == 8:
        if chunk[:4] in (b"VP8 ", b"VP8L"):
            return chunk[:4] == b"VP8L"
        size = int.from_bytes(chunk[4:], "little")
        handle.seek(16 if chunk[:4] == b"ANMF" else size + size % 2, io.SEEK_CUR)
    return False
