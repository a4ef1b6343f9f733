"""The time schedules of MR-Sampler, for any path."""

import math

import torch
from torch import Tensor

from fewstep.core.grids.base import Times, check_request, decreasing, ended
from fewstep.core.paths import Path

SCHEDULES = ("linspace", "leading", "trailing", "karras-n", "karras-t", "linear-lambda")


def published(path: Path, steps: int, schedule: str = "trailing", rho: float = 7.0) -> Times:
    """Return the steps + 1 times that the published code visits on a table of T times and the clean end 0.

    linspace: T·(1 − i/steps). leading: (steps − i)·⌊T/(steps + 1)⌋. trailing: T·(1 − i/(steps + 1)), which
    ends at T/(steps + 1). karras-t: equal steps of t^(1/rho) from T to 1. karras-n: equal steps of
    (sigma/a)^(1/rho), linear-lambda: of log(a/sigma), from T to 0, both found by linear interpolation
    between the values of the table. (Solved exactly, these two are the grids "karras" and "logsnr".)

    Args:
        path: a discrete path; for linear-lambda with sigma > 0 at the clean end.
        steps: number of steps.
        schedule: one of the six.
        rho: exponent of the Karras schedules.

    Raises:
        ValueError: if the schedule is unknown, or the path has no table for it.

    Reference: Li et al. 2025 (MR-Sampler), section 5 and appendix.
    """
    check_request(steps, "clean")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}; not {schedule!r}")
    if schedule in ("linspace", "leading", "trailing", "karras-t"):
        return decreasing(_plain(path, steps, schedule, rho), path, steps)
    if not path.is_discrete:
        raise ValueError(f"schedule {schedule!r} needs a discrete path, not {type(path).__name__}")
    count = round(path.t_max - path.t_clean)
    times = path.t_clean + torch.arange(count + 1, dtype=torch.float64)
    lam = path.half_log_snr_at(times)
    if schedule == "linear-lambda":
        if not math.isfinite(float(lam[0])):
            raise ValueError("schedule 'linear-lambda' needs sigma > 0 at the clean end of the path")
        wanted = torch.linspace(float(lam[-1]), float(lam[0]), steps + 1, dtype=torch.float64)
        found = _lookup(wanted, lam.flip(0), times.flip(0))
    else:
        ratio = torch.exp(-lam)
        first, last = (float(ratio[k]) ** (1 / rho) for k in (-1, 0))
        wanted = torch.linspace(first, last, steps + 1, dtype=torch.float64) ** rho
        found = _lookup(wanted, ratio, times)
    return decreasing(found.tolist(), path, steps)


def _plain(path: Path, steps: int, schedule: str, rho: float) -> list[float]:
    span = path.t_max - path.t_clean
    if schedule == "linspace":
        parts = [span * (1.0 - i / steps) for i in range(steps + 1)]
    elif schedule == "leading":
        gap = span // (steps + 1) if path.is_discrete else span / (steps + 1)
        parts = [max(gap, 1.0 if path.is_discrete else 0.0) * i for i in reversed(range(steps + 1))]
    elif schedule == "trailing":
        parts = [span * (1.0 - i / (steps + 1)) for i in range(steps + 1)]
    else:
        first, last = span ** (1 / rho), (path.t_min - path.t_clean) ** (1 / rho)
        parts = [(first + (last - first) * i / steps) ** rho for i in range(steps + 1)]
        parts[0], parts[-1] = span, path.t_min - path.t_clean
    return [path.t_clean + part for part in parts]


def _lookup(values: Tensor, known: Tensor, times: Tensor) -> Tensor:
    """Times at which a quantity takes the values, linear between the known (increasing) ones."""
    i = torch.searchsorted(known, values.contiguous()).clamp(1, len(known) - 1)
    weight = (values - known[i - 1]) / (known[i] - known[i - 1])
    return torch.lerp(times[i - 1], times[i], weight.clamp(0.0, 1.0))


def linspace(path: Path, steps: int, final: str = "clean") -> Times:
    """Return equal steps of time from t_max, not rounded on a table.

    Reference: Li et al. 2025 (MR-Sampler), schedule "linspace".
    """
    check_request(steps, final)
    return ended(_plain(path, steps, "linspace", 7.0)[:-1], path, steps, final)


def leading(path: Path, steps: int, final: str = "clean") -> Times:
    """Return the times i·⌊N/(steps + 1)⌋ of a table of N, i = steps … 1: starts below t_max.

    Reference: Li et al. 2025 (MR-Sampler), schedule "leading".
    """
    check_request(steps, final)
    return ended(_plain(path, steps, "leading", 7.0)[:-1], path, steps, final)


def trailing(path: Path, steps: int, final: str = "clean") -> Times:
    """Return the times t_max·(1 − i/(steps + 1)): the published ones, except that the last goes to the end.

    Reference: Li et al. 2025 (MR-Sampler), schedule "trailing".
    """
    check_request(steps, final)
    return ended(_plain(path, steps, "trailing", 7.0)[:-1], path, steps, final)


def karras_t(path: Path, steps: int, final: str = "clean", rho: float = 7.0) -> Times:
    """Return equal steps of (t − t_clean)^(1/rho) from t_max to t_min (then the clean end).

    Reference: Li et al. 2025 (MR-Sampler), schedule "karras-t".
    """
    check_request(steps, final)
    if final == "t_min":
        return published(path, steps, "karras-t", rho)
    asked = published(path, steps - 1, "karras-t", rho) if steps > 1 else (path.t_max,)
    return decreasing([*asked, path.t_clean], path, steps)


GRIDS = {
    "mrs-linspace": linspace,
    "mrs-leading": leading,
    "mrs-trailing": trailing,
    "mrs-karras-t": karras_t,
}
