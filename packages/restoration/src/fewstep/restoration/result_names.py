"""What the files of results are called."""

from __future__ import annotations

from pathlib import Path

# What is added to the names of results; those of an enlargement say how large it is.
SUFFIXES = {
    "denoise": "_denoised",
    "derain": "_derained",
    "low-light": "_brightened",
    "jpeg": "_deblocked",
    "inpaint": "_filled",
    "compressed-sensing": "_rebuilt",
}
MAP = "uncertainty"


def sibling(first: Path, number: int) -> Path:
    """File of another sample.

    Args:
        first: that of the first sample, which ends in -1.
        number: of the sample, from 1.

    Returns:
        The file.

    Example:
        >>> sibling(Path("out/cat_x4-1.png"), 3).name
        'cat_x4-3.png'
    """
    return first.with_name(f"{first.stem.removesuffix('-1')}-{number}{first.suffix}")


def map_file(first: Path, samples: int) -> Path:
    """File of the map of uncertainty.

    Args:
        first: that of the first sample, or of their average.
        samples: how many files of samples there are.

    Returns:
        The file: PNG, or TIFF beside TIFF.

    Example:
        >>> map_file(Path("cat_x4-1.jpg"), 3).name, map_file(Path("cat_x4.tif"), 1).name
        ('cat_x4-uncertainty.png', 'cat_x4-uncertainty.tif')
    """
    suffix = first.suffix if first.suffix.lower() in (".tif", ".tiff") else ".png"
    stem = first.stem.removesuffix("-1") if samples > 1 else first.stem
    return first.with_name(f"{stem}-{MAP}{suffix}")
