"""The choices of a restoration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeGuard

# What a user asks for → the operating point of the model.
MODES = {"faithful": "mean", "detailed": "sample"}
AUTO = "auto"
STARTS = ("drawn", "best")


@dataclass(frozen=True)
class Settings:
    """How a photograph is restored.

    Args:
        mode: "faithful" (the mean of what the truth may be: highest PSNR, soft where the input says nothing)
            or "detailed" (one possible truth: sharp, with invented texture).
        steps: network calls per sample; None for the mode's own.
        solver: rule of the steps, one that the method has; None for the published one.
        samples: how many to draw, with the seeds seed, seed + 1, …
        average: give their mean instead of each.
        tile: side of a tile in input pixels, 0 for none, "auto" by size and memory.
        tile_pad: input pixels around a tile that are restored with it; None for the network's reach.
        seed: of the noise.
        scale: enlargement; None for the model's own. Another one is made from it by antialiased bicubic.
        level: standard deviation of the noise on the scale 0 … 255, for models that are told it; "auto": as
            estimated from each photograph; None: not known.
        uncertainty: also give the standard deviation over the samples, pixel by pixel.
        consistent: correct the result so that, degraded again, it is the photograph: reduced in size, or
            measured by compressed sensing.
        start: the noise of the start, "drawn" or "best": the one that ships with the model, found once to be
            good on average (optimal boundary conditions).
    """

    mode: str = "faithful"
    steps: int | None = None
    solver: str | None = None
    samples: int = 1
    average: bool = False
    tile: int | str = "auto"
    tile_pad: int | None = None
    seed: int = 0
    scale: float | None = None
    level: float | str | None = None
    uncertainty: bool = False
    consistent: bool = False
    start: str = "drawn"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode: expected {' or '.join(MODES)}, got {self.mode!r}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}")
        if not (self.tile == "auto" or (isinstance(self.tile, int) and (self.tile == 0 or self.tile >= 16))):
            raise ValueError(f"tile: expected 'auto', 0 (no tiles) or at least 16 pixels, got {self.tile!r}")
        if self.tile_pad is not None and self.tile_pad < 0:
            raise ValueError(f"tile_pad: expected 0 or more pixels, got {self.tile_pad}")
        if not (self.level in (None, AUTO) or (is_number(self.level) and 0 <= self.level <= 255)):
            raise ValueError(f"level: expected a standard deviation in 0 … 255 or 'auto', got {self.level!r}")
        if not 1 <= self.samples <= 1000:
            raise ValueError(f"samples: expected 1 to 1000, got {self.samples}")
        if self.scale is not None and not 0 < self.scale <= 64:
            raise ValueError(f"scale: expected more than 0 and at most 64, got {self.scale}")
        if self.start not in STARTS:
            raise ValueError(f"start: expected {' or '.join(STARTS)}, got {self.start!r}")
        if self.start == "best" and self.samples > 1:
            raise ValueError(f"samples: expected 1 with the best start, which is one, got {self.samples}")
        if self.uncertainty and self.samples < 2:
            raise ValueError(f"uncertainty: expected samples of at least 2, got {self.samples}")
        if self.uncertainty and self.mode != "detailed":
            raise ValueError(
                "uncertainty: expected mode 'detailed', whose samples differ as the possible truths do, "
                f"got {self.mode!r}"
            )

    @property
    def results(self) -> int:
        """How many photographs are given back."""
        return 1 if self.average else self.samples

    def seeds(self) -> tuple[int, ...]:
        """The seed of each sample."""
        return tuple(range(self.seed, self.seed + self.samples))

    def out_size(self, size: tuple[int, int], model_scale: int) -> tuple[int, int]:
        """Say how large a result will be.

        Args:
            size: (height, width) of the photograph.
            model_scale: enlargement of the model.

        Returns:
            (height, width), at least one pixel.

        Example:
            >>> Settings(scale=1.5).out_size((10, 11), model_scale=4)
            (15, 16)
        """
        factor = model_scale if self.scale is None else self.scale
        return max(1, round(factor * size[0])), max(1, round(factor * size[1]))


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number, True and False not among them."""
    return isinstance(value, int | float) and not isinstance(value, bool)
