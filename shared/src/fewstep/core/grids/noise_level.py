"""Grids that are spaced in noise level: log-SNR and Karras."""

import math

import torch

from fewstep.core.grids.base import SNR_FLOOR, Times, check_request, pinned, snr_range
from fewstep.core.paths import Path


def logsnr(path: Path, steps: int, final: str = "clean", floor: float = SNR_FLOOR) -> Times:
    """Return equal steps of log(a/sigma) from t_max to t_min (then the clean end).

    Where a(t_max) = 0 the first time is t_max and the equal steps start at the half log-SNR ``floor``.

    Reference: Lu et al. 2022, section 3.4.
    """
    check_request(steps, final)
    first, last = snr_range(path, floor)
    count = steps if final == "clean" else steps + 1
    lam = torch.linspace(first, last, count, dtype=torch.float64)
    return pinned(path, path.time_at(lam).tolist(), steps, final)


def karras(path: Path, steps: int, final: str = "clean", rho: float = 7.0, floor: float = SNR_FLOOR) -> Times:
    """Return equal steps of (sigma/a)^(1/rho) from t_max to t_min (then the clean end).

    Reference: Karras et al. 2022, equation 5.
    """
    check_request(steps, final)
    if not (math.isfinite(rho) and rho > 0):
        raise ValueError(f"rho must be a finite number above 0, got {rho!r}")
    first, last = (math.exp(-lam / rho) for lam in snr_range(path, floor))
    count = steps if final == "clean" else steps + 1
    lam = -rho * torch.linspace(first, last, count, dtype=torch.float64).log()
    return pinned(path, path.time_at(lam).tolist(), steps, final)


GRIDS = {"logsnr": logsnr, "karras": karras}
