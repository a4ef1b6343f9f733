"""From a photograph to a restored photograph."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fewstep.core.devices import pick_device, pick_dtype

from .images import Picture, from_array, from_pil, read, write
from .methods.resshift import ResShift
from .passes import OnProgress, Passes
from .settings import MODES, Settings

ImageLike = str | Path | bytes | Image.Image | np.ndarray | Picture


@dataclass(frozen=True, eq=False)
class Restored:
    """What a restoration gave.

    Args:
        pictures: one for each sample, or the one average.
        seconds: wall-clock time, reading not included.
        calls: how often the network was asked about a tile.
        seeds: seed of each sample.
    """

    pictures: tuple[Picture, ...]
    seconds: float
    calls: int
    seeds: tuple[int, ...]

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


class Restorer:
    """A loaded model that restores photographs of any size.

    Args:
        model: what restores a tile.
        device: "auto" (a GPU when there is one), "cpu", "cuda", "cuda:1", "mps".
        dtype: what the network computes in: "float32", "bfloat16", "float16", or "auto": bfloat16 on a GPU
            that has it, float32 elsewhere. The state of the sampler is float32 in any case.

    Raises:
        ValueError: an unknown device or dtype.
    """

    def __init__(self, model: ResShift, device: str = "auto", dtype: str = "auto") -> None:
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        # Convolutions on CPUs and tensor cores are faster when the channels of a pixel lie together.
        self.model = model.to(self.device).to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    @classmethod
    def from_pretrained(
        cls, name: str | Path = "resshift-x4", device: str = "auto", dtype: str = "auto"
    ) -> Restorer:
        """Load a model: a name that ships with the package, else a folder, else a Hugging Face Hub id.

        Args:
            name: which one.
            device: as of `Restorer`.
            dtype: as of `Restorer`.

        Returns:
            The restorer.
        """
        return cls(ResShift.from_pretrained(str(name)), device, dtype)

    @property
    def scale(self) -> int:
        """Enlargement of the model."""
        return self.model.config.scale

    def __call__(
        self,
        image: ImageLike,
        mode: str = "faithful",
        steps: int | None = None,
        solver: str = "ancestral",
        samples: int = 1,
        average: bool = False,
        tile: int | str = "auto",
        tile_pad: int | None = None,
        seed: int = 0,
        scale: float | None = None,
        on_progress: OnProgress | None = None,
    ) -> Restored:
        """Restore a photograph.

        The same seed gives the same noise whatever the tiles; alpha is restored as a grey image of its own.

        Args:
            image: a file, its bytes, a Pillow image, a Picture, or an array (height, width[, channels]) of
                uint8, uint16, or floating point in [0, 1].
            mode: as of `Settings`, like all that follow.
            steps: network calls per sample.
            solver: rule of the steps.
            samples: how many to draw.
            average: give their mean.
            tile: side of a tile, 0, or "auto".
            tile_pad: pixels around a tile.
            seed: of the noise.
            scale: enlargement.
            on_progress: called as on_progress(calls done, calls in all).

        Returns:
            The restored photograph(s), in the bit depth and with the metadata of the input.

        Raises:
            ImageError: the image cannot be used.
            ValueError: an argument outside its range.
        """
        settings = Settings(mode, steps, solver, samples, average, tile, tile_pad, seed, scale)
        return self.run(as_picture(image), settings, on_progress)

    def run(self, picture: Picture, settings: Settings, on_progress: OnProgress | None = None) -> Restored:
        """Restore a photograph that has been read, with settings that have been made.

        Args:
            picture: the photograph.
            settings: what to do.
            on_progress: as of a call.

        Returns:
            As of a call.
        """
        start = time.perf_counter()
        seeds = settings.seeds()
        passes = [seeds] if settings.average else [(seed,) for seed in seeds]
        work = Passes(self.model, self.device, picture, settings, on_progress)
        with torch.inference_mode(), self._precision():
            pictures = tuple(picture.with_pixels(work.restore(group)) for group in passes)
        return Restored(pictures, time.perf_counter() - start, work.calls, seeds)

    def check(self, settings: Settings) -> None:
        """Refuse settings that this model cannot follow.

        Args:
            settings: what to do.

        Raises:
            ValueError: more steps than the model has.
        """
        self.model.steps_of(MODES[settings.mode], settings.steps)

    def _precision(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)


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
