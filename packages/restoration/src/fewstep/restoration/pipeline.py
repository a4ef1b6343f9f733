"""From a photograph to a restored photograph."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from fewstep.core.devices import pick_device, pick_dtype

from .boundary import Boundary, boundary_beside
from .consistency import Measuring, Residual, make_consistent, make_measured
from .given import ImageLike, MaskLike, as_mask, as_picture
from .images import Picture
from .images.picture import convert_depth
from .methods.base import RestorationModel
from .methods.loading import load_model
from .passes import OnProgress, Passes
from .quality import Spread, estimate_level
from .restored import Restored, sample_paths
from .settings import AUTO, MODES, Settings

__all__ = ["Restored", "Restorer", "as_mask", "as_picture", "sample_paths"]


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

    def __init__(self, model: RestorationModel, device: str = "auto", dtype: str = "auto") -> None:
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
        return cls(load_model(name), device, dtype)

    @cached_property
    def boundary(self) -> Boundary | None:
        """The best start that ships with the model, if one does."""
        return boundary_beside(self.model)

    @property
    def scale(self) -> int:
        """Enlargement of the model."""
        return self.model.scale

    @property
    def modes(self) -> tuple[str, ...]:
        """What the model can do, of "faithful" and "detailed"; the first is what it does unless told."""
        return tuple(name for name, mode in MODES.items() if mode in self.model.modes)

    def __call__(
        self,
        image: ImageLike,
        mode: str | None = None,
        steps: int | None = None,
        solver: str | None = None,
        samples: int = 1,
        average: bool = False,
        tile: int | str = "auto",
        tile_pad: int | None = None,
        seed: int = 0,
        scale: float | None = None,
        level: float | str | None = None,
        uncertainty: bool = False,
        consistent: bool = False,
        start: str = "drawn",
        mask: MaskLike | None = None,
        on_progress: OnProgress | None = None,
    ) -> Restored:
        """Restore a photograph.

        The same seed gives the same noise whatever the tiles; alpha is restored as a grey image of its own.

        Args:
            image: a file, its bytes, a Pillow image, a Picture, or an array (height, width[, channels]) of
                uint8, uint16, or floating point in [0, 1].
            mode: as of `Settings`, like all that follow; by default "faithful" where the model has it, and
                "detailed" for uncertainty.
            steps: network calls per sample.
            solver: rule of the steps.
            samples: how many to draw.
            average: give their mean.
            tile: side of a tile, 0, or "auto".
            tile_pad: pixels around a tile.
            seed: of the noise.
            scale: enlargement.
            level: standard deviation of the noise on the scale 0 … 255, or "auto".
            uncertainty: also give the standard deviation over the samples.
            consistent: correct the result so that, degraded again, it is the photograph.
            start: the noise of the start, "drawn" or "best".
            mask: for a model that inpaints: a file, a Pillow image or an array of the photograph's size,
                white (or True) where it is to be filled.
            on_progress: called as on_progress(calls done, calls in all).

        Returns:
            The restored photograph(s), in the bit depth and with the metadata of the input.

        Raises:
            ImageError: the image cannot be used.
            ValueError: an argument outside its range.
        """
        mode = mode or ("detailed" if uncertainty else self.modes[0])
        settings = Settings(
            mode, steps, solver, samples, average, tile, tile_pad,
            seed, scale, level, uncertainty, consistent, start,
        )  # fmt: skip
        picture = as_picture(image)
        self._check_mask(mask is not None)
        holes = None if mask is None else as_mask(mask, picture)
        return self.run(picture, settings, on_progress, holes)

    def run(
        self,
        picture: Picture,
        settings: Settings,
        on_progress: OnProgress | None = None,
        mask: np.ndarray | None = None,
    ) -> Restored:
        """Restore a photograph that has been read, with settings that have been made.

        Args:
            picture: the photograph.
            settings: what to do.
            on_progress: as of a call.
            mask: (height, width) bool, True where the photograph is to be filled.

        Returns:
            As of a call.

        Raises:
            ValueError: as of `check`, and a mask that is missing or not taken.
        """
        self.check(settings)
        self._check_mask(mask is not None)
        start = time.perf_counter()
        if settings.level == AUTO:
            settings = replace(settings, level=estimate_level(picture))
        picture = self.model.preparation.picture(picture, mask)
        seeds = settings.seeds()
        begin = self.boundary if settings.start == "best" else None
        work = Passes(self.model, self.device, picture, settings, on_progress, mask, begin)
        with torch.inference_mode(), self._precision():
            pixels, deviation = self._pixels(work, picture, settings)
        residuals = self._corrected(work, picture, settings, pixels) if settings.consistent else ()
        return Restored(
            tuple(picture.with_pixels(result) for result in pixels),
            time.perf_counter() - start,
            work.calls,
            seeds,
            None if settings.level is None else float(settings.level),
            deviation,
            residuals,
        )

    def _pixels(
        self, work: Passes, picture: Picture, settings: Settings
    ) -> tuple[list[np.ndarray], np.ndarray | None]:
        """The results, and the standard deviation over the samples if it is wanted."""
        seeds, dtype = settings.seeds(), picture.pixels.dtype
        if not settings.uncertainty:
            return [
                work.restore(group) for group in ([seeds] if settings.average else [(s,) for s in seeds])
            ], None
        results, spread = [], None
        for seed in seeds:
            # Not rounded: where samples hardly differ, rounding would be most of the difference.
            sample = work.restore((seed,), np.dtype(np.float32))
            spread = spread or Spread(sample.shape)
            spread.add(sample)
            if not settings.average:
                results.append(convert_depth(sample, dtype.type))
        assert spread is not None
        return results or [spread.average(dtype)], spread.deviation(picture.colour.shape[2])

    def _corrected(
        self, work: Passes, picture: Picture, settings: Settings, pixels: Sequence[np.ndarray]
    ) -> tuple[Residual, ...]:
        """Make each result consistent with the photograph, in place."""
        if not isinstance(self.model, Measuring):
            return tuple(make_consistent(result, picture.pixels) for result in pixels)
        if work.tiling.tile:
            raise ValueError("consistent: this model measures whole photographs; set tile to 0")
        model = self.model
        return tuple(
            make_measured(result, picture, model, seed)
            for result, seed in zip(pixels, settings.seeds(), strict=True)
        )

    def check(self, settings: Settings) -> None:
        """Refuse settings that this model cannot follow.

        Args:
            settings: what to do.

        Raises:
            ValueError: a mode, a solver or steps that the model has not, a noise level that it is not told
                or that is missing, or consistency where there is nothing to be consistent with.
        """
        if settings.mode not in self.modes:
            raise ValueError(f"mode: this model has {' and '.join(self.modes)}, not {settings.mode!r}")
        self.model.steps_of(MODES[settings.mode], settings.steps)
        if settings.solver is not None and settings.solver not in self.model.solvers:
            raise ValueError(
                f"solver: expected one of {', '.join(self.model.solvers)}, got {settings.solver!r}"
            )
        self.model.solver_of(settings.solver)
        if settings.start == "best" and self.boundary is None:
            raise ValueError("start: no best start ships with this model; leave it drawn")
        if settings.level is not None and "level" not in self.model.takes:
            raise ValueError("level: this model is not told the noise level")
        if settings.level is None and self.model.needs_level:
            raise ValueError("level: this model must be told the noise level; auto estimates it")
        if settings.samples > 1 and not self.model.draws:
            raise ValueError("samples: this model draws nothing, so that all of them would be the same")
        measures = isinstance(self.model, Measuring)
        factor = self.scale if settings.scale is None else settings.scale
        if settings.consistent and (settings.results < settings.samples if measures else factor <= 1):
            raise ValueError(
                "consistent: an average of reconstructions has no measurements of its own"
                if measures
                else "consistent: for enlargement and compressed sensing, which have what they can be held to"
            )

    def _check_mask(self, given: bool) -> None:
        if ("mask" in self.model.takes) != given:
            wanted = "needs a mask" if "mask" in self.model.takes else "takes no mask"
            raise ValueError(f"mask: this model {wanted}")

    def _precision(self) -> AbstractContextManager:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.dtype)
