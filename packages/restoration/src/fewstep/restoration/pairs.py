"""Training pairs of one size: photographs that are degraded while training, and real pairs from folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data import dihedral, list_images, read_rgb, to_signed
from .degradations import Degradation, Degraded
from .preparation import Preparation


@dataclass(frozen=True)
class Crops:
    """Random crops of photographs, degraded as they are drawn.

    Args:
        photographs: (height, width, 3) uint8 each, none smaller than a patch.
        degradation: makes the input of a crop.
        patch: side of a crop.
        preparation: what is done to degraded photographs.

    Raises:
        ValueError: no photograph, or one smaller than a patch.
    """

    photographs: tuple[np.ndarray, ...]
    degradation: Degradation
    patch: int
    preparation: Preparation = field(default_factory=Preparation)

    def __post_init__(self) -> None:
        if not self.photographs:
            raise ValueError(f"photographs: none is as large as a patch of {self.patch} pixels")
        check_sizes(self.photographs, self.patch)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, Degraded]:
        """A clean crop under a symmetry of the square, and its degraded input."""
        whole = self.photographs[int(rng.integers(len(self.photographs)))]
        if self.preparation.exposure is not None:
            # The brightness of a crop is no measure of the photograph's.
            bad = self.degradation(whole, rng).lq
            clean, lq = crop((whole, self.preparation(bad)), self.patch, rng)
            return clean, Degraded(lq)
        clean = crop((whole,), self.patch, rng)[0]
        bad = self.degradation(clean, rng)
        return clean, replace(bad, lq=self.preparation(bad.lq, bad.mask))


@dataclass(frozen=True)
class RealPairs:
    """Random crops of pairs of photographs, of a bad and a good one of the same scene.

    Args:
        bad: (height, width, 3) uint8 each.
        good: the same scenes in the same sizes.
        patch: side of a crop.

    Raises:
        ValueError: no pair, sizes that differ within a pair, or one smaller than a patch.
    """

    bad: tuple[np.ndarray, ...]
    good: tuple[np.ndarray, ...]
    patch: int

    def __post_init__(self) -> None:
        if not self.bad or len(self.bad) != len(self.good):
            raise ValueError(f"pairs: expected as many bad as good, got {len(self.bad)} and {len(self.good)}")
        for index, (bad, good) in enumerate(zip(self.bad, self.good, strict=True)):
            if bad.shape != good.shape:
                raise ValueError(f"pairs: number {index} has sizes {bad.shape[:2]} and {good.shape[:2]}")
        check_sizes(self.good, self.patch)

    @classmethod
    def from_folders(cls, bad: str | Path, good: str | Path, patch: int) -> RealPairs:
        """Read pairs; the files of the two folders, sorted, belong together and have the same names.

        Raises:
            ValueError: a folder without images, names that differ, or sizes that differ within a pair.
        """
        files = list_images(bad), list_images(good)
        names = [[file.stem for file in part] for part in files]
        if names[0] != names[1]:
            odd = sorted(set(names[0]) ^ set(names[1]))[:3]
            raise ValueError(f"pairs: {bad} and {good} must hold files of the same names; not so: {odd}")
        read = [tuple(read_rgb(file) for file in part) for part in files]
        for file, *pair in zip(files[0], *read, strict=True):
            sizes = [f"{image.shape[1]}×{image.shape[0]}" for image in pair]
            if sizes[0] != sizes[1]:
                raise ValueError(f"pairs: {file.name} has sizes {sizes[0]} in {bad} and {sizes[1]} in {good}")
        return cls(read[0], read[1], patch)

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, Degraded]:
        """A crop of the good photograph, and of the bad one at the same place."""
        index = int(rng.integers(len(self.bad)))
        good, bad = crop((self.good[index], self.bad[index]), self.patch, rng)
        return good, Degraded(bad)


@dataclass(frozen=True)
class Mixture:
    """Batches whose crops come from several sources.

    Args:
        sources: what is drawn from.
        shares: how often each is, relative to the others.
    """

    sources: Sequence[Crops | RealPairs]
    shares: Sequence[float] = field(default=(1.0,))

    def batch(self, generator: np.random.Generator, n: int) -> dict[str, Tensor]:
        """Draw n crops.

        Args:
            generator: the source of the draws.
            n: batch size.

        Returns:
            "x0" and "y": (n, 3, patch, patch) in [-1, 1], the truth and the degraded input; "mask":
            (n, 1, patch, patch), 1 where unknown; "level": (n,), standard deviation on the scale 0 … 255, -1
            where it is not known.
        """
        weights = np.asarray(self.shares, float) / sum(self.shares)
        drawn = [self.sources[k].draw(generator) for k in generator.choice(len(weights), n, p=weights)]
        clean = np.stack([good for good, _ in drawn])
        masks = [np.zeros(clean.shape[1:3], bool) if bad.mask is None else bad.mask for _, bad in drawn]
        levels = [-1.0 if bad.level is None else bad.level for _, bad in drawn]
        return {
            "x0": to_signed(clean),
            "y": to_signed(np.stack([bad.lq for _, bad in drawn])),
            "mask": torch.from_numpy(np.stack(masks)[:, None]).float(),
            "level": torch.tensor(levels),
        }


def crop(images: Sequence[np.ndarray], patch: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The same random square of images of one size, under the same random symmetry."""
    height, width = images[0].shape[:2]
    top, left = int(rng.integers(height - patch + 1)), int(rng.integers(width - patch + 1))
    symmetry = int(rng.integers(8))
    parts = [image[top : top + patch, left : left + patch] for image in images]
    return [np.ascontiguousarray(dihedral(part, symmetry)) for part in parts]


def check_sizes(images: Sequence[np.ndarray], patch: int) -> None:
    """Refuse images smaller than a patch."""
    for index, image in enumerate(images):
        if min(image.shape[:2]) < patch:
            raise ValueError(f"photographs: number {index} of size {image.shape[:2]} is smaller than {patch}")
