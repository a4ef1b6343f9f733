"""Writing a photograph with its metadata, whole or not at all."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np

from fewstep.core.files import atomic_path

from . import metadata
from .picture import ImageError, Picture, Stream, convert_depth
from .png import encode_png
from .tiff import encode_tiff

EXTENSIONS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_SIDE_LIMIT = {"JPEG": 65500, "WEBP": 16383, "PNG": 2**31 - 1, "TIFF": 2**31 - 1}
_QUALITY = 95
_OPTIMIZED = 2**26
# A JPEG segment counts its length, which includes the two bytes of the count, in two bytes.
_SEGMENT = 65533


def extension_format(path: str | Path) -> str:
    """Say which format a file name asks for.

    Args:
        path: file name with one of the extensions jpg, jpeg, png, webp, tif, tiff.

    Returns:
        "JPEG", "PNG", "WEBP" or "TIFF".

    Raises:
        ImageError: another extension.

    Example:
        >>> extension_format("holiday.JPG")
        'JPEG'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in EXTENSIONS:
        raise ImageError(f"{path}: has no known image extension ({', '.join(EXTENSIONS)})")
    return EXTENSIONS[suffix]


def check_fits(width: int, height: int, format: str) -> None:
    """Refuse a size that a format cannot hold, before hours are spent on it.

    Args:
        width: columns.
        height: rows.
        format: "JPEG", "PNG", "WEBP" or "TIFF".

    Raises:
        ImageError: a side is too long.
    """
    if max(width, height) > _SIDE_LIMIT[format]:
        raise ImageError(
            f"a result of {width}×{height} pixels is more than {format} can hold "
            f"({_SIDE_LIMIT[format]} a side); choose PNG or TIFF"
        )


def write(picture: Picture, path: str | Path, strip_metadata: bool = False) -> Path:
    """Write to a file; the extension says the format. The file appears complete or not at all.

    Args:
        picture: what to write.
        path: the file; an existing one is replaced.
        strip_metadata: leave out EXIF (the ICC profile too: without it the colours are taken as sRGB).

    Returns:
        The path.

    Raises:
        ImageError: unknown extension, a size the format cannot hold, or a place that cannot be written.
    """
    path = Path(path)
    format = extension_format(path)
    try:
        with atomic_path(path) as temporary, temporary.open("w+b") as handle:
            encode(picture, handle, format, strip_metadata)
    except OSError as error:
        raise ImageError(f"{path}: cannot be written ({error.strerror or error})") from error
    return path


def encode(picture: Picture, handle: Stream, format: str, strip_metadata: bool = False) -> None:
    """Write to an open file.

    JPEG (quality 95, full colour resolution) and WebP have 8 bits; JPEG has no alpha, so what is transparent
    is laid over white; float samples become 16 bit in PNG. WebP is lossless when the source was.

    Args:
        picture: what to write.
        handle: an empty, seekable, binary file.
        format: "JPEG", "PNG", "WEBP" or "TIFF".
        strip_metadata: leave out EXIF, ICC profile and resolution.

    Raises:
        ImageError: unknown format, or a size the format cannot hold.
    """
    if format not in _SIDE_LIMIT:
        raise ImageError(f"format: expected one of {', '.join(_SIDE_LIMIT)}, got {format!r}")
    check_fits(picture.width, picture.height, format)
    if strip_metadata:
        picture = replace(picture, exif=None, icc=None, dpi=None)
    elif picture.exif:
        picture = replace(picture, exif=metadata.resized(picture.exif, picture.width, picture.height))
    if format == "TIFF":
        encode_tiff(picture, handle)
    elif format == "PNG":
        deep = picture.pixels.dtype != np.uint8
        pixels = convert_depth(picture.pixels, np.uint16 if deep else np.uint8)
        encode_png(picture.with_pixels(pixels), handle)
    elif format == "WEBP":
        _encode_webp(picture, handle)
    else:
        _encode_jpeg(picture, handle)


def _encode_webp(picture: Picture, handle: Stream) -> None:
    picture.to_pil().save(
        handle,
        "WEBP",
        lossless=picture.lossless,
        quality=80 if picture.lossless else _QUALITY,
        method=4,
        exact=True,
        exif=picture.exif or b"",
        icc_profile=picture.icc or b"",
    )


def _encode_jpeg(picture: Picture, handle: Stream) -> None:
    pixels = picture.as_bytes()
    if picture.has_alpha:
        pixels = _over_white(pixels)
    # Pillow would hold a second copy with four bytes a pixel; this encoder reads the rows where they are.
    packed = imagecodecs.jpeg8_encode(
        pixels[:, :, 0] if pixels.shape[2] == 1 else pixels,
        level=_QUALITY,
        subsampling="444",
        # Tables made for the picture save some per cent, but all its coefficients wait for them in memory.
        optimize=pixels.size <= _OPTIMIZED,
    )
    handle.write(packed[:2])
    handle.write(_jfif(picture.dpi))
    if picture.exif and len(picture.exif) <= _SEGMENT:
        handle.write(b"\xff\xe1" + struct.pack(">H", len(picture.exif) + 2) + picture.exif)
    if picture.icc:
        _write_profile(handle, picture.icc)
    # The encoder's own APP0 (JFIF, without resolution) is replaced by the one above.
    start = 4 + struct.unpack(">H", packed[4:6])[0] if packed[2:4] == b"\xff\xe0" else 2
    handle.write(memoryview(packed)[start:])


def _jfif(dpi: tuple[float, float] | None) -> bytes:
    x, y = (min(65535, max(1, round(v))) for v in dpi) if dpi else (1, 1)
    return b"\xff\xe0\x00\x10JFIF\0\x01\x01" + struct.pack(">BHHBB", 1 if dpi else 0, x, y, 0, 0)


def _write_profile(handle: Stream, icc: bytes) -> None:
    size = _SEGMENT - 14
    parts = [icc[k : k + size] for k in range(0, len(icc), size)]
    if len(parts) > 255:
        return
    for number, part in enumerate(parts, start=1):
        data = b"ICC_PROFILE\0" + bytes([number, len(parts)]) + part
        handle.write(b"\xff\xe2" + struct.pack(">H", len(data) + 2) + data)


def _over_white(pixels: np.ndarray) -> np.ndarray:
    out = np.empty((*pixels.shape[:2], pixels.shape[2] - 1), np.uint8)
    for top in range(0, len(pixels), 256):
        rows = pixels[top : top + 256].astype(np.float32)
        alpha = rows[:, :, -1:] / 255.0
        out[top : top + 256] = np.rint(rows[:, :, :-1] * alpha + 255.0 * (1.0 - alpha))
    return out
