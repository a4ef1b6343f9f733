"""What a restoration gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .consistency import Residual
from .images import Picture, write


@dataclass(frozen=True, eq=False)
class Restored:
    """What a restoration gave.

    Args:
        pictures: one for each sample, or the one average.
        seconds: wall-clock time, reading not included.
        calls: how often the network was asked about a tile.
        seeds: seed of each sample.
        level: standard deviation of the noise that the model was told, on the scale 0 … 255; None: none.
        deviation: (height, width) float32, standard deviation over the samples in units of white, where it
            was asked for.
        residuals: of each picture, where consistency was asked for.
    """

    pictures: tuple[Picture, ...]
    seconds: float
    calls: int
    seeds: tuple[int, ...]
    level: float | None = None
    deviation: np.ndarray | None = None
    residuals: tuple[Residual, ...] = ()

    @property
    def picture(self) -> Picture:
        """The (first) restored photograph with its metadata."""
        return self.pictures[0]

    @property
    def pixels(self) -> np.ndarray:
        """Its pixels (height, width, channels) in the sample type of the input."""
        return self.picture.pixels

    @property
    def image(self) -> Image.Image:
        """It as an 8-bit Pillow image."""
        return self.picture.to_pil()

    def save(self, path: str | Path, strip_metadata: bool = False) -> list[Path]:
        """Write the photograph; several samples get -1, -2, … before the extension.

        Args:
            path: file with the extension jpg, png, webp or tiff.
            strip_metadata: leave out EXIF and ICC profile.

        Returns:
            The files.

        Raises:
            ImageError: a format that cannot hold it, or a place that cannot be written.
        """
        files = sample_paths(path, len(self.pictures))
        return [write(p, f, strip_metadata) for p, f in zip(self.pictures, files, strict=True)]


def sample_paths(path: str | Path, samples: int) -> list[Path]:
    """Name the files of several samples.

    Args:
        path: what the file of a single one is called.
        samples: how many there are.

    Returns:
        `samples` paths.

    Example:
        >>> [p.name for p in sample_paths("out/cat.png", 2)]
        ['cat-1.png', 'cat-2.png']
    """
    path = Path(path)
    if samples == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{k}{path.suffix}") for k in range(1, samples + 1)]
