"""Grids that are spaced in time: uniform, powers, and the index grids of DDIM and diffusers."""

import math

from fewstep.core.grids.base import Times, check_request, decreasing, ended, integers, table_times
from fewstep.core.paths import Path


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
    check_request(steps, final)
    if not (math.isfinite(exponent) and exponent > 0):
        raise ValueError(f"exponent must be a finite number above 0, got {exponent!r}")

    def between(end: float, count: int) -> list[float]:
        first, last = ((t - path.t_clean) ** (1 / exponent) for t in (path.t_max, end))
        inner = [(first + (last - first) * i / count) ** exponent + path.t_clean for i in range(1, count)]
        return [path.t_max, *inner, end]

    times = between(path.t_clean if final == "clean" else path.t_min, steps)
    if final == "clean" and steps > 1 and times[-2] < path.t_min:
        times = [*between(path.t_min, steps - 1), path.t_clean]
    return decreasing(integers(times) if path.is_discrete else times, path, steps)


def trailing(path: Path, steps: int, final: str = "clean") -> Times:
    """Return the times t_max, t_max - N/steps, …: round(N - i·N/steps) - 1 on a table of N times.

    Reference: Lin et al. 2024, table 2.
    """
    check_request(steps, final)
    if path.is_discrete:
        count, first = table_times(path)
        return ended([first + round(count - i * count / steps) - 1 for i in range(steps)], path, steps, final)
    return ended([path.t_max * (1 - i / steps) for i in range(steps)], path, steps, final)


def leading(path: Path, steps: int, final: str = "clean", offset: int = 0) -> Times:
    """Return the times i·⌊N/steps⌋ + offset on a table of N times: starts below t_max.

    On a continuous path the times are t_max·i/steps, with t_min in place of 0.

    Reference: Song, Meng and Ermon 2021 (DDIM); offset 1 as Stable Diffusion is configured.
    """
    check_request(steps, final)
    if path.is_discrete:
        count, first = table_times(path)
        return ended(
            [first + i * (count // steps) + offset for i in reversed(range(steps))], path, steps, final
        )
    return ended(
        [max(path.t_max * i / steps, path.t_min) for i in reversed(range(steps))], path, steps, final
    )


def linspace(path: Path, steps: int, final: str = "clean") -> Times:
    """Return equally spaced times from t_max to t_min, rounded to integers on a table.

    Both ends are asked and the clean end follows; with ``final="t_min"`` t_min is the end that is not asked.

    Reference: Lin et al. 2024, table 2.
    """
    check_request(steps, final)
    gaps = steps - 1 if final == "clean" else steps
    times = [path.t_max - (path.t_max - path.t_min) * i / max(gaps, 1) for i in range(steps)]
    if final == "clean" and steps > 1:
        times[-1] = path.t_min
    return ended([float(round(t)) for t in times] if path.is_discrete else times, path, steps, final)


def ddim_quadratic(path: Path, steps: int, final: str = "clean") -> Times:
    """Return the integers below linspace(0, sqrt(0.8·N), steps)² on a table of N times.

    On a continuous path: linspace(sqrt(t_min), sqrt(0.8·t_max), steps)².

    Reference: Song, Meng and Ermon 2021 (DDIM), appendix D.2.
    """
    check_request(steps, final)
    count, first = table_times(path) if path.is_discrete else (path.t_max, 0.0)
    low, high = 0.0 if path.is_discrete else math.sqrt(path.t_min), math.sqrt(0.8 * count)
    roots = [low + (high - low) * i / (steps - 1) for i in range(steps)] if steps > 1 else [high]
    times = [first + root * root for root in reversed(roots)]
    if path.is_discrete:
        return ended(integers([*times, first - 1])[:-1], path, steps, final)
    return ended([max(t, path.t_min) for t in times], path, steps, final)


GRIDS = {
    "uniform": uniform,
    "quadratic": quadratic,
    "trailing": trailing,
    "leading": leading,
    "linspace": linspace,
    "ddim-quadratic": ddim_quadratic,
}
