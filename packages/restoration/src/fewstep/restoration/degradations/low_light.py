"""Synthetic low light: a darkening curve and the noise of few photons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .base import Degraded, Range, check_clean, check_range, draw, to_uint8


@dataclass(frozen=True)
class LowLight:
    """A dark photograph of the same scene: gain · x^power + n, n ~ N(0, shot · d + read), on the scale 0 … 1.

    d = gain · x^power is the dark image before the noise.

    Args:
        power: range of the exponent.
        gain: range of the factor, within 0 … 1.
        shot: variance of the noise per brightness.
        read: variance of the noise in the dark.

    Raises:
        ValueError: a field out of its limits.

    Example:
        >>> dark = LowLight()(np.full((32, 32, 3), 200, np.uint8), np.random.default_rng(0)).lq
        >>> 40 < dark.mean() < 120
        np.True_
    """

    power: Range = (2.0, 3.0)
    gain: Range = (0.4, 0.7)
    shot: float = 4e-4
    read: float = 3e-5

    def __post_init__(self) -> None:
        check_range("power", self.power, 1.0)
        check_range("gain", self.gain, 0.0, 1.0)
        for name in ("shot", "read"):
            check_range(f"({name}, {name})", (getattr(self, name),) * 2, 0.0)

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Darken the image."""
        check_clean(clean)
        power, gain = draw(rng, self.power), draw(rng, self.gain)
        # Both depend on an 8-bit value only, so that 256 powers serve for any image.
        dark = gain * (np.arange(256) / 255.0) ** power
        spread = 255.0 * np.sqrt(self.shot * dark + self.read)
        out = rng.standard_normal(clean.shape, dtype=np.float32)
        out *= spread.astype(np.float32)[clean]
        out += (255.0 * dark).astype(np.float32)[clean]
        return Degraded(to_uint8(out))
