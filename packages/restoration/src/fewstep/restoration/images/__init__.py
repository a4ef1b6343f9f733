"""Photographs from and to files: JPEG, PNG, WebP and TIFF with their bit depth, alpha and metadata."""

from .memory import from_array, from_pil
from .picture import ImageError, Picture
from .reading import MAX_MEGAPIXELS, READABLE_EXTENSIONS, read
from .writing import EXTENSIONS, check_fits, encode, extension_format, write

__all__ = [
    "EXTENSIONS",
    "MAX_MEGAPIXELS",
    "READABLE_EXTENSIONS",
    "ImageError",
    "Picture",
    "check_fits",
    "encode",
    "extension_format",
    "from_array",
    "from_pil",
    "read",
    "write",
]
