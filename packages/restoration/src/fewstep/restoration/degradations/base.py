"""What a degradation is: a clean image becomes what a restorer is given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True)
class Degraded:
    """What a restorer is given in place of a clean image.

    Args:
        lq: (height, width, 3) uint8; smaller than the clean image where the degradation reduces it.
        mask: (height, width) bool, True where the image is unknown; None: everything is known, if badly.
        level: standard deviation of the noise on the scale 0 … 255; None: not known.
    """

    lq: np.ndarray
    mask: np.ndarray | None = None
    level: float | None = None


@runtime_checkable
class Degradation(Protocol):
    """Anything that draws a degraded image from a clean one; the clean image is never written to."""

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Degrade an image.

        Args:
            clean: (height, width, 3) uint8.
            rng: the source of all draws: the same state, the same result.

        Returns:
            The degraded image and what is known about it.

        Raises:
            TypeError: `clean` is not 8-bit.
            ValueError: `clean` is not (height, width, 3) with at least one pixel.
        """
        ...


def check_clean(clean: np.ndarray) -> None:
    """Refuse what is not an 8-bit colour image.

    Args:
        clean: what a degradation was given.

    Raises:
        TypeError: not an array of uint8.
        ValueError: not (height, width, 3) with at least one pixel.
    """
    if not isinstance(clean, np.ndarray) or clean.dtype != np.uint8:
        kind = clean.dtype if isinstance(clean, np.ndarray) else type(clean).__name__
        raise TypeError(f"clean must be an array of uint8, got {kind}")
    if clean.ndim != 3 or clean.shape[2] != 3 or clean.size == 0:
        raise ValueError(f"clean must be (height, width, 3) with at least one pixel, got shape {clean.shape}")


def check_range(name: str, given: Range, low: float, high: float = math.inf) -> None:
    """Refuse a range whose ends are not ordered finite numbers within limits.

    Args:
        name: the field, for the message.
        given: (lowest, highest).
        low: least allowed value.
        high: greatest allowed value.

    Raises:
        ValueError: not two finite numbers with low ≤ lowest ≤ highest ≤ high.

    Example:
        >>> check_range("gain", (8, 3), 0)
        Traceback (most recent call last):
        ...
        ValueError: gain must be (lowest, highest), numbers of at least 0, got (8, 3)
    """
    pair = isinstance(given, tuple | list) and len(given) == 2
    numbers = pair and all(isinstance(end, int | float) and math.isfinite(end) for end in given)
    if not numbers or not low <= given[0] <= given[1] <= high:
        limit = f"of at least {low:g}" if high == math.inf else f"within {low:g} … {high:g}"
        raise ValueError(f"{name} must be (lowest, highest), numbers {limit}, got {given!r}")


def check_integers(name: str, given: Range) -> None:
    """Refuse a range whose ends are not integers.

    Args:
        name: the field, for the message.
        given: (lowest, highest).

    Raises:
        ValueError: an end is not an integer.
    """
    if not all(isinstance(end, int) for end in given):
        raise ValueError(f"{name} must be (lowest, highest), integers, got {given!r}")


def check_share(name: str, given: float) -> None:
    """Refuse what is not a share or probability.

    Args:
        name: the field, for the message.
        given: its value.

    Raises:
        ValueError: not a number within 0 … 1.
    """
    if not isinstance(given, int | float) or not 0 <= given <= 1:
        raise ValueError(f"{name} must lie within 0 … 1, got {given!r}")


def draw(rng: np.random.Generator, given: Range) -> float:
    """Draw a number uniformly from a range.

    Args:
        rng: the source of the draw.
        given: (lowest, highest).

    Returns:
        The number.
    """
    return float(rng.uniform(given[0], given[1]))


def draw_integer(rng: np.random.Generator, given: tuple[int, int]) -> int:
    """Draw an integer uniformly from a range, both ends included.

    Args:
        rng: the source of the draw.
        given: (lowest, highest).

    Returns:
        The integer.
    """
    return int(rng.integers(given[0], given[1] + 1))


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Clip to 0 … 255 and round to 8 bit.

    Args:
        image: floating-point values on the scale 0 … 255; used as scratch.

    Returns:
        A new array of uint8 in the same shape.

    Example:
        >>> to_uint8(np.array([-3.0, 1.6, 300.0]))
        array([  0,   2, 255], dtype=uint8)
    """
    np.clip(image, 0.0, 255.0, out=image)
    np.rint(image, out=image)
    return image.astype(np.uint8)


@dataclass(frozen=True)
class Nothing:
    """No degradation: the input is the clean image, with noise of level 0.

    Example:
        >>> Nothing()(np.full((2, 2, 3), 9, np.uint8), np.random.default_rng(0)).lq.max()
        np.uint8(9)
    """

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Copy the image; nothing is drawn."""
        check_clean(clean)
        return Degraded(clean.copy(), level=0.0)


@dataclass(frozen=True, init=False)
class OneOf:
    """One degradation for each image, drawn by weights.

    Args:
        choices: pairs (degradation, weight); weights are positive and need not add up to one.

    Raises:
        ValueError: no choices, or something that is not a degradation with a positive weight.

    Example:
        >>> OneOf((Nothing(), 3.0), (Nothing(), 1.0)).shares
        (0.75, 0.25)
    """

    choices: tuple[tuple[Degradation, float], ...]

    def __init__(self, *choices: tuple[Degradation, float]) -> None:
        if not choices:
            raise ValueError("choices must hold at least one pair (degradation, weight)")
        for choice in choices:
            pair = isinstance(choice, tuple | list) and len(choice) == 2 and callable(choice[0])
            if not pair or not isinstance(choice[1], int | float) or not 0 < choice[1] < math.inf:
                raise ValueError(f"choices must be pairs (degradation, positive weight), got {choice!r}")
        object.__setattr__(self, "choices", tuple((made, float(weight)) for made, weight in choices))

    @property
    def shares(self) -> tuple[float, ...]:
        """How often each choice is drawn."""
        total = sum(weight for _, weight in self.choices)
        return tuple(weight / total for _, weight in self.choices)

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Draw a degradation, then what it makes of the image."""
        return self.choices[int(rng.choice(len(self.choices), p=self.shares))][0](clean, rng)
