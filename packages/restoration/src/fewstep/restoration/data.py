"""Training pairs for super-resolution: crops of photographs kept in memory, with their reductions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .images import READABLE_EXTENSIONS, ImageError
from .resize import imresize


def list_images(source: str | Path | Iterable[str | Path]) -> list[Path]:
    """Name the image files of a folder (and the folders in it), sorted; or return a list of files as it is.

    Args:
        source: a folder or an iterable of files.

    Returns:
        Paths.

    Raises:
        ValueError: the folder does not exist or holds no image.
    """
    if not isinstance(source, str | Path):
        files = [Path(name) for name in source]
    else:
        if not Path(source).is_dir():
            raise ValueError(f"source: expected a folder of images, got {str(source)!r}")
        files = sorted(p for p in Path(source).rglob("*") if p.suffix.lower() in READABLE_EXTENSIONS)
    if not files:
        raise ValueError(f"source: no images ({', '.join(sorted(READABLE_EXTENSIONS))}) in {str(source)!r}")
    return files


def reduce_image(image: np.ndarray, scale: int) -> np.ndarray:
    """Make the low-resolution half of a pair: antialiased bicubic, clipped and rounded to 8 bit.

    Args:
        image: (height, width, 3) uint8, both sides multiples of `scale`.
        scale: the reduction.

    Returns:
        (height/scale, width/scale, 3) uint8.
    """
    small = imresize(image.astype(np.float64), 1.0 / scale)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def read_rgb(file: str | Path, multiple: int = 1) -> np.ndarray:
    """Read an 8-bit RGB image and cut it (right and bottom) to a multiple of `multiple`.

    Args:
        file: image file.
        multiple: what both sides become multiples of.

    Returns:
        (height, width, 3) uint8.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        with Image.open(file) as opened:
            pixels = np.asarray(opened.convert("RGB"))
    except OSError as error:
        raise ImageError(f"{file}: cannot be read ({error})") from error
    height, width = (n - n % multiple for n in pixels.shape[:2])
    return pixels[:height, :width]


@dataclass(frozen=True)
class PairedCrops:
    """Random crops of photographs with their reductions, from arrays in memory.

    A reduction is made once, of the whole image and rounded to 8 bit, as the images of a test set are; a crop
    of it therefore knows its true surroundings at its border.

    Args:
        truth: HR images (height, width, 3) uint8.
        reduced: LR images (height/scale, width/scale, 3) uint8.
        scale: HR pixels per LR pixel.
        patch: side of an HR crop in pixels, a multiple of `scale`.

    Example:
        >>> crops = PairedCrops.from_arrays([np.zeros((64, 48, 3), np.uint8)], scale=4, patch=32)
        >>> batch = crops.batch(np.random.default_rng(0), 2)
        >>> tuple(batch["x0"].shape), tuple(batch["lq"].shape)
        ((2, 3, 32, 32), (2, 3, 8, 8))
    """

    truth: tuple[np.ndarray, ...]
    reduced: tuple[np.ndarray, ...]
    scale: int = 4
    patch: int = 96

    def __post_init__(self) -> None:
        if self.patch < self.scale or self.patch % self.scale:
            raise ValueError(f"patch: expected a multiple of scale {self.scale}, got {self.patch}")
        if not self.truth:
            raise ValueError(f"truth: no image is as large as a patch of {self.patch} pixels")

    @classmethod
    def from_files(
        cls, source: str | Path | Iterable[str | Path], scale: int = 4, patch: int = 96
    ) -> PairedCrops:
        """Read every image of a folder or a list; images smaller than a patch are left out.

        Args:
            source: a folder (searched with its sub-folders) or an iterable of files.
            scale: HR pixels per LR pixel.
            patch: side of an HR crop in pixels.

        Returns:
            The crops.

        Raises:
            ValueError: no images, or none as large as a patch.
        """
        return cls.from_arrays((read_rgb(file) for file in list_images(source)), scale=scale, patch=patch)

    @classmethod
    def from_arrays(cls, images: Iterable[np.ndarray], scale: int = 4, patch: int = 96) -> PairedCrops:
        """Use images that are in memory; those smaller than a patch are left out.

        Args:
            images: (height, width, 3) uint8 each.
            scale: HR pixels per LR pixel.
            patch: side of an HR crop in pixels.

        Returns:
            The crops.

        Raises:
            ValueError: no image is as large as a patch.
        """
        truth = []
        for image in images:
            height, width = (n - n % scale for n in image.shape[:2])
            if min(height, width) >= patch:
                truth.append(np.ascontiguousarray(image[:height, :width]))
        return cls(tuple(truth), tuple(reduce_image(image, scale) for image in truth), scale, patch)

    def __len__(self) -> int:
        return len(self.truth)

    def batch(self, generator: np.random.Generator, n: int) -> dict[str, Tensor]:
        """Draw n crops: an image, a place on its LR grid and a symmetry of the square, all uniformly.

        Args:
            generator: the source of the draws.
            n: batch size.

        Returns:
            "x0": (n, 3, patch, patch) and "lq": (n, 3, patch/scale, patch/scale), float32 in [−1, 1].
        """
        pairs = [self._crop(generator) for _ in range(n)]
        return {
            "x0": to_signed(np.stack([hr for hr, _ in pairs])),
            "lq": to_signed(np.stack([lr for _, lr in pairs])),
        }

    def _crop(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        index = int(generator.integers(len(self.truth)))
        hr, lr = self.truth[index], self.reduced[index]
        side = self.patch // self.scale
        top = int(generator.integers(lr.shape[0] - side + 1))
        left = int(generator.integers(lr.shape[1] - side + 1))
        symmetry = int(generator.integers(8))
        high = hr[self.scale * top :, self.scale * left :][: self.patch, : self.patch]
        low = lr[top : top + side, left : left + side]
        return dihedral(high, symmetry), dihedral(low, symmetry)


def dihedral(image: np.ndarray, index: int) -> np.ndarray:
    """Apply a symmetry of the square: index mod 4 quarter turns, then for 4…7 a mirror.

    Args:
        image: (height, width, ...).
        index: 0 (nothing) to 7.

    Returns:
        A view of `image`.
    """
    turned = np.rot90(image, index % 4)
    return turned[:, ::-1] if index >= 4 else turned


def to_signed(images: np.ndarray) -> Tensor:
    """Bring 8-bit images to what networks see: x/127.5 − 1.

    Args:
        images: (batch, height, width, channels) uint8.

    Returns:
        (batch, channels, height, width) float32 in [−1, 1].
    """
    pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)
