"""Noise levels of earlier samplers in the form that EDM gave them: VP, VE and iDDPM."""

import math

import torch

from fewstep.core.grids.base import SNR_FLOOR, Times, check_request, decreasing, pinned, snr_range
from fewstep.core.grids.noise_level import logsnr
from fewstep.core.paths import Path


def vp_betas(sigma_min: float, sigma_max: float, epsilon: float = 1e-3) -> tuple[float, float]:
    """Return (beta_d, beta_min) with sigma²(u) = e^(beta_d·u²/2 + beta_min·u) − 1 through both ends.

    sigma(epsilon) = ``sigma_min`` and sigma(1) = ``sigma_max``.

    Raises:
        ValueError: if sigma_min or epsilon does not lie between 0 and the other end.

    Example:
        >>> beta_d, beta_min = vp_betas(0.002, 80.0)
        >>> round((math.exp(0.5 * beta_d + beta_min) - 1) ** 0.5, 9)
        80.0

    Reference: Karras et al. 2022, table 1, column VP.
    """
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"sigma_min must lie between 0 and sigma_max, they are {sigma_min} and {sigma_max}")
    if not 0 < epsilon < 1:
        raise ValueError(f"epsilon must lie between 0 and 1, it is {epsilon}")
    low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
    beta_d = 2 * (high - low / epsilon) / (1 - epsilon)
    return beta_d, high - 0.5 * beta_d


def edm_vp(
    path: Path, steps: int, final: str = "clean", epsilon: float = 1e-3, floor: float = SNR_FLOOR
) -> Times:
    """Return the noise levels of equal steps of time on the VP path that has this path's range of them.

    Reference: Karras et al. 2022, table 1, column VP.
    """
    check_request(steps, final)
    low, high = (math.exp(-lam) for lam in reversed(snr_range(path, floor)))
    beta_d, beta_min = vp_betas(low, high, epsilon)
    u = torch.linspace(1.0, epsilon, steps if final == "clean" else steps + 1, dtype=torch.float64)
    lam = -0.5 * torch.expm1(0.5 * beta_d * u * u + beta_min * u).log()
    return pinned(path, path.time_at(lam).tolist(), steps, final)


def edm_iddpm(
    path: Path,
    steps: int,
    final: str = "clean",
    count: int = 1000,
    shift: float = 0.008,
    smallest: float = 0.001,
    floor: float = SNR_FLOOR,
) -> Times:
    """Return every k-th level of the cosine table of improved DDPM that lies in the path's range.

    u_(j−1)² = (u_j² + 1)/max(abar_(j−1)/abar_j, smallest) − 1 from u_count = 0, and
    abar_j = sin²(pi/2·j/(count·(shift + 1))). The first level may lie below the path's largest.

    Reference: Karras et al. 2022, table 1, column iDDPM; Nichol and Dhariwal 2021, equation 17.
    """
    check_request(steps, final)
    low, high = (math.exp(-lam) for lam in reversed(snr_range(path, floor)))
    angle = 0.5 * math.pi * torch.arange(count + 1, dtype=torch.float64) / (count * (shift + 1))
    kept = angle.sin().square()
    ratio = (kept[:-1] / kept[1:]).clamp(min=smallest)
    u = (1.0 / ratio).flip(0).cumprod(0).sub(1.0).sqrt().flip(0)  # u² + 1 is a running product from u = 0
    inside = u[(u >= low) & (u <= high)]
    points = steps if final == "clean" else steps + 1
    if len(inside) < points:
        raise ValueError(f"steps={steps} is too many: this table has {len(inside)} levels on the path")
    share = (len(inside) - 1) / max(points - 1, 1)
    chosen = inside[(share * torch.arange(points, dtype=torch.float64)).round().long()]
    times = path.time_at(-chosen.log()).tolist()
    return decreasing([*times, path.t_clean] if final == "clean" else times, path, steps)


GRIDS = {
    "edm-vp": edm_vp,
    "edm-ve": logsnr,  # the geometric levels of VE are equal steps of log(sigma)
    "edm-iddpm": edm_iddpm,
}
