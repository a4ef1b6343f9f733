"""The passes of a model over one photograph: its colours, its alpha, its samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fewstep.core.devices import memory_budget
from fewstep.core.noise import NoiseField

from .canvas import canvas
from .images import Picture
from .methods.resshift import ResShift
from .settings import MODES, Settings
from .tiles import TileNoise, Tiling, restore_into

OnProgress = Callable[[int, int], object]


class Passes:
    """Restores one photograph, sample by sample; knows how it is cut and counts the calls.

    Args:
        model: what restores a tile.
        device: where it is.
        picture: the photograph.
        settings: what to do.
        on_progress: called as on_progress(calls done, calls in all).
    """

    def __init__(
        self,
        model: ResShift,
        device: torch.device,
        picture: Picture,
        settings: Settings,
        on_progress: OnProgress | None = None,
    ) -> None:
        self.model = model
        self.device = device
        self.picture = picture
        self.settings = settings
        self.on_progress = on_progress
        self.calls = 0
        size = (picture.height, picture.width)
        self.out_size = settings.out_size(size, model.config.scale)
        self.tiling = Tiling.choose(
            size,
            settings.tile,
            settings.tile_pad,
            model.reach,
            model.pixel_bytes,
            memory_budget(device),
            model.config.scale,
        )
        steps = model.steps_of(MODES[settings.mode], settings.steps)
        layers = 1 + (picture.has_alpha and not _is_flat(picture.pixels[:, :, -1]))
        windows = len(self.tiling.blender(size).windowing.layout(size))
        self.total = windows * layers * settings.samples * steps

    def restore(self, seeds: Sequence[int]) -> np.ndarray:
        """Restore all channels, as the mean over samples.

        Args:
            seeds: of the samples.

        Returns:
            (out height, out width, channels) in the sample type of the photograph.
        """
        source = self.picture.pixels
        target = canvas((*self.out_size, source.shape[2]), source.dtype)
        colours = self.picture.colour.shape[2]
        self._layer(target[:, :, :colours], source[:, :, :colours], seeds)
        if self.picture.has_alpha:
            alpha = source[:, :, colours:]
            if _is_flat(alpha):
                target[:, :, colours:] = alpha[0, 0]
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

        restore_into(target, source, function, self.tiling, self.model.config.scale)

    def _tiles(self, tiles: Tensor, places: Sequence[tuple[int, int]], seed: int) -> Tensor:
        noise = TileNoise(NoiseField(seed, self.model.state_channels), places, self.model.state_ratio)
        restored = self.model.restore(
            tiles,
            steps=self.settings.steps,
            solver=self.settings.solver,
            mode=MODES[self.settings.mode],
            noise=noise,
            on_step=lambda info: self._count(len(places)),
        )
        return restored.float()

    def _count(self, calls: int) -> None:
        self.calls += calls
        # Tiles may have become smaller, and more, since memory ran out.
        self.total = max(self.total, self.calls)
        if self.on_progress is not None:
            self.on_progress(self.calls, self.total)


def _is_flat(channel: np.ndarray) -> bool:
    return bool((channel == channel.flat[0]).all())
