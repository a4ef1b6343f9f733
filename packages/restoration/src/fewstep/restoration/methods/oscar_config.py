"""What a one-step codec is built from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fewstep.core import paths


@dataclass(frozen=True)
class OscarConfig:
    """Everything a one-step codec is built from.

    Args:
        luma: latent channels that begin as cosine coefficients of the brightness.
        chroma: latent channels that begin as cosine coefficients of each of two colour differences.
        steps: the quantiser's step of every rate, from the coarsest, in units in which the image is [-1, 1]
            and the transform orthonormal.
        dead_zone: share of a step that is added to the cell around 0 on each side.
        network_options: arguments of `nets.codec.LatentNet`.
        detail: feature channels of the decoder's branch for details.
        scale: 1: the size is kept.
        padding: side of a cell of the latent in pixels.

    Raises:
        ValueError: a number out of its range.

    Reference: Guo et al. 2025, "OSCAR: One-Step Diffusion Codec Across Multiple Bit-rates", section 3: one
        network for all rates, each with its time. Quantiser and autoencoder are our own.
    """

    luma: int = 40
    chroma: int = 12
    steps: tuple[float, ...] = (2.4, 1.7, 1.2, 0.85, 0.6, 0.42, 0.3, 0.2)
    dead_zone: float = 0.15
    network_options: Mapping[str, Any] = field(default_factory=dict)
    detail: int = 32
    scale: int = 1
    padding: int = 8

    def __post_init__(self) -> None:
        for name in ("luma", "chroma"):
            if not 1 <= getattr(self, name) <= 64:
                raise ValueError(f"{name} must lie in 1 … 64, got {getattr(self, name)}")
        falling = all(a > b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or len(self.steps) > 255 or not falling or self.steps[-1] <= 0:
            raise ValueError(f"steps must be 1 … 255 positive numbers that fall, got {self.steps}")
        if not 0 <= self.dead_zone < 0.5:
            raise ValueError(f"dead_zone must lie in [0, 0.5), got {self.dead_zone}")
        if self.detail < 1:
            raise ValueError(f"detail must be at least 1, got {self.detail}")
        if (self.scale, self.padding) != (1, 8):
            raise ValueError(f"scale and padding must be 1 and 8, got {self.scale} and {self.padding}")

    @property
    def channels(self) -> int:
        """Latent channels."""
        return self.luma + 2 * self.chroma

    def path(self) -> paths.VP:
        """The path among whose states the quantised latents are counted."""
        return paths.VP.cosine()
