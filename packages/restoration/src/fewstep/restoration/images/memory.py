"""Photographs that are in memory already: Pillow images and arrays."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms, ImageOps

from .metadata import ORIENTATION, tidy
from .picture import ImageError, Picture, checked_float


def from_array(array: np.ndarray) -> Picture:
    """Take an array as a photograph.

    Args:
        array: (height, width) or (height, width, 1 to 4): grey, grey and alpha, RGB, RGB and alpha; uint8,
            uint16, bool, or floating point in [0, 1].

    Returns:
        The photograph; float64 and float16 become float32.

    Raises:
        ImageError: another shape or type, or values that are not finite or outside [0, 1].

    Example:
        >>> from_array(np.zeros((4, 6))).pixels.shape
        (4, 6, 1)
    """
    if array.ndim not in (2, 3):
        raise ImageError(f"image: expected an array (height, width[, 1 to 4 channels]), got {array.shape}")
    if 0 in array.shape:
        raise ImageError(f"image: expected at least one pixel, got an array {array.shape}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    if np.issubdtype(array.dtype, np.floating):
        try:
            array = checked_float(array)
        except ImageError as error:
            raise ImageError(f"image: {error}") from error
    return Picture(np.ascontiguousarray(with_channels(array)))


def from_pil(image: Image.Image) -> Picture:
    """Take a Pillow image as a photograph, with its EXIF orientation applied.

    Args:
        image: of any mode that `read` takes.

    Returns:
        The photograph.

    Raises:
        ImageError: a pixel type that is not supported.
    """
    notes: list[str] = []
    _, exif = exif_of(image, notes)
    if image.mode.startswith("I;16"):
        pixels, icc = with_channels(np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)), None
    else:
        try:
            pixels, icc = pixels_of(ImageOps.exif_transpose(image), image.info.get("icc_profile"), notes)
        except ImageError as error:
            raise ImageError(f"image: {error}") from error
    return Picture(pixels, exif=exif, icc=icc or None, dpi=dpi_of(image.info.get("dpi")), notes=tuple(notes))


def with_channels(pixels: np.ndarray) -> np.ndarray:
    """Give a grey image its channel axis.

    Args:
        pixels: (height, width) or (height, width, channels).

    Returns:
        (height, width, channels).
    """
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def exif_of(image: Image.Image, notes: list[str]) -> tuple[int, bytes | None]:
    """Read the EXIF data of a Pillow image; damaged ones are left out, which `notes` is told.

    Args:
        image: an open image.
        notes: gets a sentence where there is something to say.

    Returns:
        (orientation 1 to 8, EXIF block with upright orientation or None).
    """
    try:
        exif = image.getexif()
        return int(exif.get(ORIENTATION, 1)), tidy(exif)
    except Exception:
        notes.append("has damaged EXIF data, which were left out")
        return 1, None


def dpi_of(value: object) -> tuple[float, float] | None:
    """Take what Pillow calls `dpi` if it makes sense.

    Args:
        value: anything.

    Returns:
        (horizontal, vertical) or None.
    """
    if isinstance(value, tuple) and len(value) == 2 and all(0 < float(v) < 1e6 for v in value):
        return float(value[0]), float(value[1])
    return None


def pixels_of(image: Image.Image, icc: bytes | None, notes: list[str]) -> tuple[np.ndarray, bytes | None]:
    mode = image.mode
    transparent = "transparency" in image.info
    if mode in ("CMYK", "LAB"):
        notes.append(f"is {mode}; the result is sRGB")
        return np.asarray(_to_srgb(image, icc)), _srgb_profile()
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if transparent or mode == "PA" else "RGB")
        notes.append(f"has a palette; the result is {image.mode}")
    elif mode == "1":
        image = image.convert("L")
        notes.append("is black and white only; the result is 8-bit grey")
    elif mode in ("L", "RGB") and transparent:
        image = image.convert("LA" if mode == "L" else "RGBA")
    elif mode in ("La", "RGBa"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    elif mode in ("RGBX", "YCbCr", "HSV"):
        image = image.convert("RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        raise ImageError(f"has the pixel type {mode}, which is not supported (8 or 16 bit, or float TIFF)")
    return with_channels(np.asarray(image)), icc


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    target = ImageCms.createProfile("sRGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(icc)) if icc else None
        if source is None and image.mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        if source is not None:
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
    except (ImageCms.PyCMSError, OSError):
        # A profile that does not fit its image: the plain formula below is the best that is left.
        pass
    return image.convert("RGB")


def _srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
