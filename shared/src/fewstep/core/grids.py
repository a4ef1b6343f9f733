"""Grids: the decreasing sequence of times that is visited.

A grid is a function of (path, steps) that returns steps + 1 decreasing times. The network is asked at the
first ``steps`` of them; the last is the path's clean end, or its ``t_min`` with ``final="t_min"`` (the sample
then keeps the little noise of t_min).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch

from fewstep.core.paths import Path

Times = tuple[float, ...]

SNR_FLOOR = -5.1
"""Half log-SNR that stands for pure noise where a = 0 (Lu et al. 2022, appendix D, cut tables there)."""


@runtime_checkable
class Grid(Protocol):
    """What ``get`` returns and ``sample`` takes: a function of (path, steps)."""

    def __call__(self, path: Path, steps: int, /) -> Times: ...


def uniform(path: Path, steps: int, final: str = "clean") -> Times:
    """Return equal steps of time from t_max to the end; integers (rounded down) on a discrete path.

    Example:
        >>> from fewstep.core import paths
        >>> uniform(paths.RectifiedFlow(), 4)
        (1.0, 0.75, 0.5, 0.25, 0.0)
        >>> uniform(paths.ResShift(), 4)
        (3.0, 2.0, 1.0, 0.0, -1.0)
    """
    return power(path, steps, final, exponent=1.0)


def quadratic(path: Path, steps: int, final: str = "clean") -> Times:
    """Return equal steps of the square root of time, which visits the clean end more densely.

    Reference: Lu et al. 2022, appendix D ("time_quadratic").
    """
    return power(path, steps, final, exponent=2.0)


def power(path: Path, steps: int, final: str = "clean", exponent: float = 2.0) -> Times:
    """Return equal steps of (t - t_clean)^(1/exponent); integers (rounded down) on a discrete path.

    Reference: Zhang and Chen 2023 (DEIS), appendix H.3.
    """
    _check(steps, final)
    if not (math.isfinite(exponent) and exponent > 0):
        raise ValueError(f"exponent must be a finite number above 0, got {exponent!r}")

    def between(end: float, count: int) -> list[float]:
        first, last = ((t - path.t_clean) ** (1 / exponent) for t in (path.t_max, end))
        inner = [(first + (last - first) * i / count) ** exponent + path.t_clean for i in range(1, count)]
        return [path.t_max, *inner, end]

    times = between(path.t_clean if final == "clean" else path.t_min, steps)
    if final == "clean" and steps > 1 and times[-2] < path.t_min:
        times = [*between(path.t_min, steps - 1), path.t_clean]
    return _decreasing(_integers(times) if path.is_discrete else times, path, steps)


def logsnr(path: Path, steps: int, final: str = "clean", floor: float = SNR_FLOOR) -> Times:
    """Return equal steps of log(a/sigma) from t_max to t_min (then the clean end).

    Where a(t_max) = 0 the first time is t_max and the equal steps start at the half log-SNR ``floor``.

    Reference: Lu et al. 2022, section 3.4.
    """
    _check(steps, final)
    first, last = _snr_range(path, floor)
    count = steps if final == "clean" else steps + 1
    lam = torch.linspace(first, last, count, dtype=torch.float64)
    return _between_ends(path, path.time_at(lam).tolist(), steps, final)


def karras(path: Path, steps: int, final: str = "clean", rho: float = 7.0, floor: float = SNR_FLOOR) -> Times:
    """Return equal steps of (sigma/a)^(1/rho) from t_max to t_min (then the clean end).

    Reference: Karras et al. 2022, equation 5.
    """
    _check(steps, final)
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be a finite number above 0, got {rho!r}")
    first, last = (math.exp(-lam / rho) for lam in _snr_range(path, floor))
    count = steps if final == "clean" else steps + 1
    lam = -rho * torch.linspace(first, last, count, dtype=torch.float64).log()
    return _between_ends(path, path.time_at(lam).tolist(), steps, final)


def trailing(path: Path, steps: int, final: str = "clean") -> Times:
    """Return the times t_max, t_max - N/steps, …: round(N - i·N/steps) - 1 on a table of N times.

    Reference: Lin et al. 2024, table 2.
    """
    _check(steps, final)
    if path.is_discrete:
        count, first = _table(path)
        return _ended(
            [first + round(count - i * count / steps) - 1 for i in range(steps)], path, steps, final
        )
    return _ended([path.t_max * (1 - i / steps) for i in range(steps)], path, steps, final)


def leading(path: Path, steps: int, final: str = "clean", offset: int = 0) -> Times:
    """Return the times i·⌊N/steps⌋ + offset on a table of N times: starts below t_max.

    On a continuous path the times are t_max·i/steps, with t_min in place of 0.

    Reference: Song, Meng and Ermon 2021 (DDIM); offset 1 as Stable Diffusion is configured.
    """
    _check(steps, final)
    if path.is_discrete:
        count, first = _table(path)
        return _ended(
            [first + i * (count // steps) + offset for i in reversed(range(steps))], path, steps, final
        )
    return _ended(
        [max(path.t_max * i / steps, path.t_min) for i in reversed(range(steps))], path, steps, final
    )


def linspace(path: Path, steps: int, final: str = "clean") -> Times:
    """Return equally spaced times from t_max to t_min, rounded to integers on a table.

    Both ends are asked and the clean end follows; with ``final="t_min"`` t_min is the end that is not asked.

    Reference: Lin et al. 2024, table 2.
    """
    _check(steps, final)
    gaps = steps - 1 if final == "clean" else steps
    times = [path.t_max - (path.t_max - path.t_min) * i / max(gaps, 1) for i in range(steps)]
    if final == "clean" and steps > 1:
        times[-1] = path.t_min
    return _ended([float(round(t)) for t in times] if path.is_discrete else times, path, steps, final)


def ddim_quadratic(path: Path, steps: int, final: str = "clean") -> Times:
    """Return the integers below linspace(0, sqrt(0.8·N), steps)² on a table of N times.

    On a continuous path: linspace(sqrt(t_min), sqrt(0.8·t_max), steps)².

    Reference: Song, Meng and Ermon 2021 (DDIM), appendix D.2.
    """
    _check(steps, final)
    count, first = _table(path) if path.is_discrete else (path.t_max, 0.0)
    low, high = 0.0 if path.is_discrete else math.sqrt(path.t_min), math.sqrt(0.8 * count)
    roots = [low + (high - low) * i / (steps - 1) for i in range(steps)] if steps > 1 else [high]
    times = [first + root * root for root in reversed(roots)]
    if path.is_discrete:
        return _ended(_integers([*times, first - 1])[:-1], path, steps, final)
    return _ended([max(t, path.t_min) for t in times], path, steps, final)


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


_GRIDS: dict[str, Callable[..., Times]] = {
    "uniform": uniform,
    "logsnr": logsnr,
    "karras": karras,
    "quadratic": quadratic,
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "ddim-quadratic": ddim_quadratic,
}


def names() -> tuple[str, ...]:
    """Return the names that ``get`` knows."""
    return tuple(_GRIDS)


def get(name: str | Grid | Sequence[float]) -> Grid:
    """Return the grid of that name; a grid is returned as it is, a sequence of times becomes ``explicit``.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if not isinstance(name, str):
        return name if callable(name) else explicit(name)
    if name not in _GRIDS:
        raise ValueError(
            f"grid must be one of {', '.join(map(repr, _GRIDS))} or a sequence of times, got {name!r}"
        )
    return _GRIDS[name]


def _check(steps: int, final: str) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an integer, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if final not in ("clean", "t_min"):
        raise ValueError(f"final must be 'clean' or 't_min', got {final!r}")


def _table(path: Path) -> tuple[int, float]:
    """Return (number of network times of a discrete path, the smallest one)."""
    return round(path.t_max - path.t_clean), path.t_clean + 1


def _integers(times: list[float]) -> list[float]:
    """Round ``times`` down, and up again where two of them would coincide; the last one stays."""
    # 1e-9: an integer that rounding left a hair low stays itself
    values = [float(math.floor(t + 1e-9)) for t in times]
    for i in reversed(range(len(values) - 1)):
        values[i] = max(values[i], values[i + 1] + 1)
    return values


def _snr_range(path: Path, floor: float) -> tuple[float, float]:
    first = path.half_log_snr(path.t_max)
    if not first > -math.inf:
        first = floor
    return first, path.half_log_snr(path.t_min)


def _between_ends(path: Path, times: list[float], steps: int, final: str) -> Times:
    """Pin the ends of ``times`` to t_max and t_min exactly and append the clean end where it is wanted."""
    if len(times) > 1:
        times[-1] = path.t_min
    times[0] = path.t_max
    return _decreasing([*times, path.t_clean] if final == "clean" else times, path, steps)


def _ended(times: Sequence[float], path: Path, steps: int, final: str) -> Times:
    end = path.t_clean if final == "clean" else path.t_min
    if times[-1] <= end:
        raise ValueError(
            f"final={final!r} ends at {end:g}, but this grid already asks at {times[-1]:g}; "
            "use final='clean' or an offset"
        )
    return _decreasing([*times, end], path, steps)


def _decreasing(times: Sequence[float], path: Path, steps: int) -> Times:
    values = tuple(float(t) for t in times)
    if values[0] > path.t_max or not all(s > t for s, t in pairwise(values)):
        raise ValueError(
            f"steps={steps} is too many for this grid on {type(path).__name__} with t_max={path.t_max:g}, "
            f"which ends at {path.t_clean:g}"
        )
    return values
