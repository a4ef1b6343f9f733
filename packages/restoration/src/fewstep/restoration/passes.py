"""The passes of a model over one photograph: its colours, its alpha, its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.core.devices import memory_budget
from fewstep.core.layout import Window
from fewstep.core.noise import NoiseField

from .boundary import Boundary
from .canvas import canvas
from .images import Picture
from .images.picture import convert_depth
from .methods.base import Noise, RestorationModel
from .settings import MODES, Settings
from .tiles import TileNoise, Tiling, crop, restore_into

OnProgress = Callable[[int, int], object]


class Passes:
    """Restores one photograph, sample by sample; knows how it is cut and counts the calls.

    Args:
        model: what restores a tile.
        device: where it is.
        picture: the photograph.
        settings: what to do.
        on_progress: called as on_progress(calls done, calls in all).
        mask: (height, width) bool, True where the photograph is unknown.
        boundary: the start of every sample (None: drawn).
    """

    def __init__(
        self,
        model: RestorationModel,
        device: torch.device,
        picture: Picture,
        settings: Settings,
        on_progress: OnProgress | None = None,
        mask: np.ndarray | None = None,
        boundary: Boundary | None = None,
    ) -> None:
        self.boundary = boundary
        self.model = model
        self.device = device
        self.picture = picture
        self.settings = settings
        self.on_progress = on_progress
        self.mask = mask
        self.level = None if settings.level is None else float(settings.level)
        self.calls = 0
        size = (picture.height, picture.width)
        self.out_size = settings.out_size(size, model.scale)
        steps = model.steps_of(MODES[settings.mode], settings.steps)
        self.tiling = Tiling.choose(
            size,
            settings.tile,
            settings.tile_pad,
            # Every call looks as far again.
            None if model.reach is None else model.reach * steps,
            model.pixel_bytes,
            memory_budget(device),
            model.scale,
            model.config.padding,
        )
        layers = 1 + (picture.has_alpha and not _is_flat(picture.pixels[:, :, -1]))
        covered = self.tiling.extended(size)
        windows = len(self.tiling.blender(covered).windowing.layout(covered))
        self.total = windows * layers * settings.samples * steps

    def restore(self, seeds: Sequence[int], dtype: np.dtype | None = None) -> np.ndarray:
        """Restore all channels, as the mean over samples.

        Args:
            seeds: of the samples.
            dtype: sample type of the result, uint8, uint16 or float32 in [0, 1]; by default the photograph's.

        Returns:
            (out height, out width, channels).
        """
        source = self.picture.pixels
        target = canvas((*self.out_size, source.shape[2]), dtype or source.dtype)
        colours = self.picture.colour.shape[2]
        self._layer(target[:, :, :colours], source[:, :, :colours], seeds)
        if self.picture.has_alpha:
            alpha = source[:, :, colours:]
            if _is_flat(alpha):
                target[:, :, colours:] = convert_depth(alpha[:1, :1], target.dtype.type)
            else:
                self._layer(target[:, :, colours:], alpha, seeds)
        return target

    def _layer(self, target: np.ndarray, source: np.ndarray, seeds: Sequence[int]) -> None:
        def function(tiles: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
            tiles = tiles.to(self.device)
            total = self._tiles(tiles, places, seeds[0])
            for seed in seeds[1:]:
                total += self._tiles(tiles, places, seed)
            return total / len(seeds)

        restore_into(target, source, function, self.tiling, self.model.scale)

    def _tiles(self, tiles: Tensor, places: Sequence[tuple[int, int]], seed: int) -> Tensor:
        noise: Noise = TileNoise(NoiseField(seed, self.model.state_channels), places, self.model.state_ratio)
        if self.boundary is not None:
            noise = self.boundary.over(noise, places, self.model.state_ratio)
        restored = self.model.restore(
            tiles,
            steps=self.settings.steps,
            mask=self._masks(tiles, places),
            level=self.level,
            solver=self.settings.solver,
            mode=MODES[self.settings.mode],
            # Compressed sensing draws what it measures from this, and no noise.
            seed=seed,
            noise=noise,
            on_step=lambda info: self._count(len(places)),
        )
        return restored.float()

    def _masks(self, tiles: Tensor, places: Sequence[tuple[int, int]]) -> Tensor | None:
        """The mask of each tile, (batch, 1, h, w)."""
        if self.mask is None:
            return None
        shape = (tiles.shape[2], tiles.shape[3])
        parts = [torch.from_numpy(crop(self.mask, Window(place, shape))) for place in places]
        return torch.stack(parts)[:, None].to(tiles)

    def _count(self, calls: int) -> None:
        self.calls += calls
        # Tiles may have become smaller, and more, since memory ran out.
        self.total = max(self.total, self.calls)
        if self.on_progress is not None:
            self.on_progress(self.calls, self.total)


def _is_flat(channel: np.ndarray) -> bool:
    return bool((channel == channel.flat[0]).all())
