"""What a grid is, the grid of given times, and the checks that all grids share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

from fewstep.core.paths import Path

Times = tuple[float, ...]

SNR_FLOOR = -5.1
"""Half log-SNR that stands for pure noise where a = 0 (Lu et al. 2022, appendix D, cut tables there)."""


@runtime_checkable
class Grid(Protocol):
    """What ``get`` returns and ``sample`` takes: a function of (path, steps)."""

    def __call__(self, path: Path, steps: int, /) -> Times: ...


@dataclass(frozen=True)
class Explicit:
    """A grid of given times, whatever the path."""

    times: Times

    def __call__(self, path: Path, steps: int | None = None, /) -> Times:
        """Return the times, which must fit ``steps`` where that is given and lie on the path."""
        if steps is not None and steps != len(self.times) - 1:
            raise ValueError(f"steps must be {len(self.times) - 1} for this explicit grid, got {steps}")
        path.coefficients_at(self.times)  # raises where a time is outside the path
        return self.times


def explicit(times: Sequence[float]) -> Explicit:
    """Return the grid of exactly these times, the last one not asked.

    Raises:
        ValueError: fewer than two times, or not strictly decreasing.

    Example:
        >>> from fewstep.core import paths
        >>> explicit([1, 0.3, 0])(paths.RectifiedFlow(), 2)
        (1.0, 0.3, 0.0)
    """
    values = tuple(float(t) for t in times)
    if len(values) < 2:
        raise ValueError(f"times must hold a start and an end at least, got {values!r}")
    if not all(s > t for s, t in pairwise(values)):
        raise ValueError(f"times must be strictly decreasing, got {values!r}")
    return Explicit(values)


def check_request(steps: int, final: str) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an integer, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if final not in ("clean", "t_min"):
        raise ValueError(f"final must be 'clean' or 't_min', got {final!r}")


def table_times(path: Path) -> tuple[int, float]:
    """Return (number of network times of a discrete path, the smallest one)."""
    return round(path.t_max - path.t_clean), path.t_clean + 1


def integers(times: list[float]) -> list[float]:
    """Round ``times`` down, and up again where two of them would coincide; the last one stays."""
    # 1e-9: an integer that rounding left a hair low stays itself
    values = [float(math.floor(t + 1e-9)) for t in times]
    for i in reversed(range(len(values) - 1)):
        values[i] = max(values[i], values[i + 1] + 1)
    return values


def snr_range(path: Path, floor: float) -> tuple[float, float]:
    first = path.half_log_snr(path.t_max)
    if not first > -math.inf:
        first = floor
    return first, path.half_log_snr(path.t_min)


def pinned(path: Path, times: list[float], steps: int, final: str) -> Times:
    """Pin the ends of ``times`` to t_max and t_min exactly and append the clean end where it is wanted."""
    if len(times) > 1:
        times[-1] = path.t_min
    times[0] = path.t_max
    return decreasing([*times, path.t_clean] if final == "clean" else times, path, steps)


def ended(times: Sequence[float], path: Path, steps: int, final: str) -> Times:
    end = path.t_clean if final == "clean" else path.t_min
    if times[-1] <= end:
        raise ValueError(
            f"final={final!r} ends at {end:g}, but this grid already asks at {times[-1]:g}; "
            "use final='clean' or an offset"
        )
    return decreasing([*times, end], path, steps)


def decreasing(times: Sequence[float], path: Path, steps: int) -> Times:
    values = tuple(float(t) for t in times)
    if values[0] > path.t_max or not all(s > t for s, t in pairwise(values)):
        raise ValueError(
            f"steps={steps} is too many for this grid on {type(path).__name__} with t_max={path.t_max:g}, "
            f"which ends at {path.t_clean:g}"
        )
    return values
