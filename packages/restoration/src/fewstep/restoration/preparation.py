"""What is done to a whole photograph before a network sees tiles of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .exposure import exposed
from .filling import smooth_fill
from .images import Picture


@dataclass(frozen=True)
class Preparation:
    """Steps whose result depends on the whole photograph, so that no tile can do them.

    Args:
        exposure: mean brightness, between 0 and 1, that the photograph is given by a power (None: as it is).
        fill: whether what a mask hides is filled smoothly.

    Example:
        >>> Preparation(exposure=0.3)(np.full((2, 2, 3), 23, np.uint8)).mean().item()
        77.0
    """

    exposure: float | None = None
    fill: bool = False

    def __call__(self, image: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """Prepare colours.

        Args:
            image: (height, width, channels) uint8, uint16, or floating point in [0, 1].
            mask: (height, width) bool, True where unknown.

        Returns:
            An array of the same type and shape; the image itself where there is nothing to do.
        """
        if self.exposure is not None:
            image = exposed(image, self.exposure)
        return smooth_fill(image, mask) if self.fill and mask is not None else image

    def picture(self, picture: Picture, mask: np.ndarray | None = None) -> Picture:
        """Prepare the colours of a photograph; alpha and metadata stay as they are."""
        made = self(picture.colour, mask)
        if made is picture.colour:
            return picture
        pixels = picture.pixels.copy()
        pixels[:, :, : made.shape[2]] = made
        return picture.with_pixels(pixels)
