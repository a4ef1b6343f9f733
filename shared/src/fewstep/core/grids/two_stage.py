"""The two-stage grid of five- to eight-call text-to-image sampling: where to stop, then how to get there."""

import math
from typing import NamedTuple

from fewstep.core.grids.base import SNR_FLOOR, Times, check_request, decreasing, snr_range
from fewstep.core.paths import VP, Path


class Preset(NamedTuple):
    """First stage of a budget: the Karras grid of `points` levels with `rho`, stopped at level `stop`."""

    points: int
    stop: int
    rho: float


PRESETS = {4: Preset(8, 5, 5.0), 5: Preset(8, 6, 5.0), 6: Preset(8, 6, 5.0), 8: Preset(12, 9, 7.0)}
"""The published budgets; another number of steps takes the next smaller one (at least that for 4)."""


def two_stage(
    path: Path,
    steps: int,
    final: str = "clean",
    rho: float = 1.2,
    preset: Preset | None = None,
    floor: float = SNR_FLOOR,
) -> Times:
    """Return the grid that stops early: it spends no call on the last noise.

    Stage one fixes the noise level kappa = sigma/a to stop at,
        kappa_e^(1/r) = kappa_max^(1/r) + stop/(points − 1)·(kappa_min^(1/r) − kappa_max^(1/r)).
    Stage two puts steps + 1 points between t_max and that level, equal steps of tau^(1/rho), tau the timestep
    of a variance-preserving path: the path's own time if it is one, else that of `VP.linear()` with the same
    sigma/a.

    Args:
        path: the path.
        steps: network calls.
        final: "clean" goes from the last asked time to the clean end (the result is the last estimate),
            "early" ends at kappa_e as published, "t_min" ends at t_min.
        rho: exponent of stage two.
        preset: stage one; by default the published one for this budget.
        floor: half log-SNR that stands for pure noise where a(t_max) = 0.

    Raises:
        ValueError: if an option is out of range or the path has no room for so many steps.

    Example:
        >>> from fewstep.core import paths
        >>> [round(t, 3) for t in two_stage(paths.VP.linear(), 5, final="early")]
        [1.0, 0.788, 0.585, 0.393, 0.216, 0.062]

    Reference: Li 2025, "Hyperparameters are all you need" (the settings of its code).
    """
    check_request(steps, "t_min" if final == "early" else final)
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be a finite number above 0, got {rho!r}")
    chosen = preset or PRESETS[max((n for n in PRESETS if n <= steps), default=min(PRESETS))]
    if not (0 < chosen.stop < chosen.points and chosen.rho > 0):
        raise ValueError(f"preset must have 0 < stop < points and rho > 0, got {chosen}")
    clock = path if isinstance(path, VP) else VP.linear()
    high, low = (math.exp(-lam / chosen.rho) for lam in snr_range(path, floor))
    stop = -chosen.rho * math.log(high + chosen.stop / (chosen.points - 1) * (low - high))
    first, last = (clock.time_at(lam) ** (1 / rho) for lam in (-chosen.rho * math.log(high), stop))
    taus = [(first + (last - first) * i / steps) ** rho for i in range(steps + 1)]
    times = [path.t_max, *(path.time_at(clock.half_log_snr(tau)) for tau in taus[1:])]
    if final != "early":
        times[-1] = path.t_clean if final == "clean" else path.t_min
    return decreasing(times, path, steps)


GRIDS = {"two-stage": two_stage}
