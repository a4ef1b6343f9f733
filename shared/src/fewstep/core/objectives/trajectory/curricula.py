"""Curricula: how many grid points a stage of training has, and how slowly its target follows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from fewstep.core.training import Moment

Points = int | Callable[[Moment], int]
"""Points of a grid: always as many, or as the moment says."""


def points_at(points: Points, moment: Moment) -> int:
    """Return the number of points at a moment."""
    return points if isinstance(points, int) else points(moment)


def check_points(points: Points) -> None:
    """Raise ValueError where a fixed number of points leaves no interval."""
    if isinstance(points, int) and points < 2:
        raise ValueError(f"points must be at least 2, got {points}")


@dataclass(frozen=True)
class ProgressivePoints:
    """N = max(⌈sqrt(p·((s1 + 1)² − s0²) + s0²) − 1⌉, 1) + 1 points after a share p of the run.

    Args:
        start: s0.
        end: s1.

    Raises:
        ValueError: not 1 ≤ start ≤ end.

    Reference: Song, Dhariwal, Chen and Sutskever 2023, "Consistency Models", appendix C (N(k)).

    Example:
        >>> [ProgressivePoints(2, 200)(Moment(0, share)) for share in (0.0, 0.25, 1.0)]
        [2, 101, 201]
    """

    start: int = 2
    end: int = 150

    def __post_init__(self) -> None:
        _check_range(self.start, self.end)

    def __call__(self, moment: Moment) -> int:
        squares = (self.end + 1) ** 2 - self.start**2
        return max(math.ceil(math.sqrt(moment.progress * squares + self.start**2) - 1), 1) + 1


@dataclass(frozen=True)
class DoublingPoints:
    """N = min(s0·2^j, s1) + 1 points in the stage j = ⌊p·m⌋ of m = log2⌊s1/s0⌋ + 1 stages of equal length.

    Args:
        start: s0.
        end: s1.

    Raises:
        ValueError: not 1 ≤ start ≤ end.

    Reference: Song and Dhariwal 2023, "Improved Techniques for Training Consistency Models", section 3.4.

    Example:
        >>> [DoublingPoints()(Moment(0, share)) for share in (0.0, 0.126, 0.999)]
        [11, 21, 1281]
    """

    start: int = 10
    end: int = 1280

    def __post_init__(self) -> None:
        _check_range(self.start, self.end)

    def __call__(self, moment: Moment) -> int:
        stages = math.log2(self.end // self.start) + 1
        # A share of k/K may lie a rounding error below the stage that begins there.
        stage = math.floor(moment.progress * stages + 1e-9)
        return min(self.start * 2**stage, self.end) + 1


@dataclass(frozen=True)
class AdaptiveDecay:
    """mu = exp(s0·ln(mu0)/(N − 1)): the finer the grid, the slower the target follows the student.

    Args:
        points: the curriculum of N.
        initial: mu0.

    Raises:
        ValueError: initial is not in (0, 1).

    Reference: Song, Dhariwal, Chen and Sutskever 2023, "Consistency Models", appendix C (mu(k)).
    """

    points: ProgressivePoints = field(default_factory=ProgressivePoints)
    initial: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.initial < 1:
            raise ValueError(f"initial must lie in (0, 1), got {self.initial!r}")

    def __call__(self, moment: Moment) -> float:
        return math.exp(self.points.start * math.log(self.initial) / (self.points(moment) - 1))


def halved_steps(stages: float, start: int) -> int:
    """Return the steps of a progressive distillation's student after so many stage lengths.

    start, start/2, …, 4 take one length each, 2 and 1 take two; in the end it stays at 1.

    Example:
        >>> [halved_steps(stage, 8) for stage in (0, 1, 2, 3, 4, 5, 99)]
        [8, 4, 2, 2, 1, 1, 1]

    Reference: Song, Dhariwal, Chen and Sutskever 2023 (their baseline's schedule).
    """
    single = round(math.log2(start)) - 1
    if stages < single:
        return start >> math.floor(stages)
    return max(2 >> min(math.floor((stages - single) / 2), 2), 1)


def stage_lengths(start: int, end: int) -> int:
    """Return how many stage lengths lead from `start` steps to the end of the stage with `end` steps."""
    lengths = 0
    while halved_steps(lengths, start) > end:
        lengths += 1
    return lengths + (2 if end <= 2 else 1)


def _check_range(start: int, end: int) -> None:
    if not 1 <= start <= end:
        raise ValueError(f"start and end must satisfy 1 <= start <= end, got {start} and {end}")
