"""Learning-rate schedules: functions of the progress of a run in [0, 1]."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up followed by half a cosine; starts and ends at `floor`.

    factor(p) = floor + (1 − floor)·p/warmup                                   for p < warmup
    factor(p) = floor + (1 − floor)·(1 + cos(π (p − warmup)/(1 − warmup)))/2   otherwise

    A function of progress, not of steps: a run that ends by the clock anneals as one that ends by steps.

    Args:
        warmup: share of the run in which the rate rises.
        floor: factor at both ends.

    Raises:
        ValueError: warmup is not in [0, 1) or floor not in [0, 1].

    Reference: Loshchilov and Hutter (2017), SGDR, eq. 5.

    Example:
        >>> schedule = CosineSchedule(warmup=0.1, floor=0.0)
        >>> [round(schedule(p), 3) for p in (0.0, 0.05, 0.1, 0.55, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """

    warmup: float = 0.02
    floor: float = 0.01

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup!r}")
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor must be in [0, 1], got {self.floor!r}")

    def __call__(self, progress: float) -> float:
        """Factor of the learning rate at `progress` in [0, 1]."""
        progress = min(max(progress, 0.0), 1.0)
        if progress < self.warmup:
            return self.floor + (1 - self.floor) * progress / self.warmup
        angle = math.pi * (progress - self.warmup) / (1 - self.warmup)
        return self.floor + (1 - self.floor) * (1 + math.cos(angle)) / 2


@dataclass(frozen=True)
class ConstantSchedule:
    """Linear warm-up, then the full rate until the end.

    Args:
        warmup: share of the run in which the rate rises from nothing.

    Raises:
        ValueError: warmup is not in [0, 1).
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {self.warmup!r}")

    def __call__(self, progress: float) -> float:
        """Factor of the learning rate at `progress` in [0, 1]."""
        return min(1.0, progress / self.warmup) if self.warmup else 1.0
