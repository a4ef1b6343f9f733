"""Anything that is a photograph or a mask, taken as what the pipeline works on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .images import Picture, from_array, from_pil, read

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Picture
MaskLike = str | Path | bytes | Image.Image | np.ndarray


def as_picture(image: ImageLike) -> Picture:
    """Take anything that is a photograph.

    Args:
        image: a file, its bytes, a Pillow image, an array, or a Picture.

    Returns:
        The photograph.

    Raises:
        ImageError: it cannot be used.
        TypeError: it is something else.
    """
    if isinstance(image, Picture):
        return image
    if isinstance(image, str | Path | bytes):
        return read(image)
    if isinstance(image, Image.Image):
        return from_pil(image)
    if isinstance(image, np.ndarray):
        return from_array(image)
    raise TypeError(f"image: expected a file, a Pillow image or a numpy array, got {type(image).__name__}")


def as_mask(mask: MaskLike | Picture, picture: Picture) -> np.ndarray:
    """Take anything that marks pixels of a photograph: white, or True, is what is to be filled.

    Args:
        mask: a file, its bytes, a Pillow image, a Picture or an array of the photograph's size.
        picture: the photograph.

    Returns:
        (height, width) bool.

    Raises:
        ImageError: the mask cannot be read.
        ValueError: it has another size, or marks nothing or everything.
    """
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        marked = mask
    else:
        given = as_picture(mask)
        values = given.colour.astype(np.float64).mean(axis=2)
        marked = values > (0.5 if given.pixels.dtype == np.float32 else np.iinfo(given.pixels.dtype).max / 2)
    size = (picture.height, picture.width)
    if marked.shape != size:
        raise ValueError(
            f"mask: expected the photograph's size of {size[1]}×{size[0]} pixels, "
            f"got {marked.shape[-1]}×{marked.shape[0]}"
        )
    if not marked.any():
        raise ValueError("mask: nothing is marked; white pixels are those to be filled")
    if marked.all():
        raise ValueError(
            "mask: everything is marked, which leaves nothing to fill from; black pixels are kept"
        )
    return np.ascontiguousarray(marked)
