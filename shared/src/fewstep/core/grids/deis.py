"""The three grids of DEIS: power of time, log(sigma/a), power of sigma/a."""

import math

from fewstep.core.grids.base import Times, check_request, integers, pinned
from fewstep.core.grids.noise_level import karras, logsnr
from fewstep.core.paths import Path


def deis_t(path: Path, steps: int, final: str = "clean", exponent: float = 2.0) -> Times:
    """Return equal steps of t^(1/exponent) from t_max to t_min (then the clean end).

    Times count from the clean end; on a table of integer times they are rounded down.

    Reference: Zhang and Chen 2023 (DEIS), appendix H.3 (ts_phase "t").
    """
    check_request(steps, final)
    if not (math.isfinite(exponent) and exponent > 0):
        raise ValueError(f"exponent must be a finite number above 0, got {exponent!r}")
    count = steps if final == "clean" else steps + 1
    first, last = ((t - path.t_clean) ** (1 / exponent) for t in (path.t_max, path.t_min))
    roots = [first + (last - first) * i / max(count - 1, 1) for i in range(count)]
    times = [root**exponent + path.t_clean for root in roots]
    return pinned(path, integers(times) if path.is_discrete else times, steps, final)


def deis_log(path: Path, steps: int, final: str = "clean") -> Times:
    """Return equal steps of log(sigma/a), which is the grid "logsnr".

    Reference: Zhang and Chen 2023 (DEIS), appendix H.3 (ts_phase "log").
    """
    return logsnr(path, steps, final)


def deis_rho(path: Path, steps: int, final: str = "clean", exponent: float = 7.0) -> Times:
    """Return equal steps of (sigma/a)^(1/exponent), which is the grid "karras".

    Reference: Zhang and Chen 2023 (DEIS), appendix H.3 (ts_phase "rho").
    """
    return karras(path, steps, final, rho=exponent)


GRIDS = {"deis-t": deis_t, "deis-log": deis_log, "deis-rho": deis_rho}
