"""Grids in sigma/a that users of diffusers and k-diffusion know by name: exponential, lu and beta."""

import math

import torch

from fewstep.core.grids.base import SNR_FLOOR, Times, check_request, decreasing, integers, pinned, snr_range
from fewstep.core.paths import Path


def exponential(
    path: Path, steps: int, final: str = "clean", rho: float = 1.0, floor: float = SNR_FLOOR
) -> Times:
    """Return equal steps of log(sigma/a)^(1/rho), counted from its smallest value, from t_max to t_min.

    log(sigma/a) = low + (high − low)·(1 − i/n)^rho. With rho = 1 this is `logsnr`; larger values visit the
    clean end more densely.

    Reference: k-diffusion, get_sigmas_exponential and get_sigmas_polyexponential.
    """
    check_request(steps, final)
    _positive(rho=rho)
    first, last = snr_range(path, floor)
    ramp = torch.linspace(1.0, 0.0, _count(steps, final), dtype=torch.float64) ** rho
    return pinned(path, path.time_at(last + (first - last) * ramp).tolist(), steps, final)


def lu(path: Path, steps: int, final: str = "clean", floor: float = SNR_FLOOR) -> Times:
    """Return equal steps of log(a/sigma) as `logsnr`, rounded to the nearest integers on a discrete path.

    So a network with a table of times is asked at those alone.

    Reference: Lu et al. 2022, section 3.4; "use_lu_lambdas" of diffusers.
    """
    times = exponential(path, steps, final, floor=floor)
    if not path.is_discrete:
        return times
    end = [times[-1]] if final == "clean" else []
    asked = integers([float(round(t)) for t in times[: len(times) - len(end)]])
    asked[0] = path.t_max
    for i in range(1, len(asked)):  # what was moved up may be too high now
        asked[i] = min(asked[i], asked[i - 1] - 1)
    return decreasing([*asked, *end], path, steps)


def beta(
    path: Path,
    steps: int,
    final: str = "clean",
    alpha: float = 0.6,
    beta: float = 0.6,
    quantity: str = "ratio",
    floor: float = SNR_FLOOR,
) -> Times:
    """Return quantiles of the Beta(alpha, beta) distribution, from t_max to t_min.

    Values below 1 visit both ends more densely than the middle.

    Args:
        path: the path.
        steps: number of steps.
        final: "clean" or "t_min".
        alpha: first parameter; smaller is denser at the clean end.
        beta: second parameter; smaller is denser at the noisy end.
        quantity: what the quantiles are of, "ratio" sigma/a, as in diffusers, or "time", as in the paper
            (integers on a discrete path).
        floor: half log-SNR that stands for pure noise where a = 0.

    Raises:
        ValueError: if an option is out of range.

    Reference: Lee et al. 2024 (Beta Sampling), section 4; "use_beta_sigmas" of diffusers.
    """
    check_request(steps, final)
    _positive(alpha=alpha, beta=beta)
    if quantity not in ("ratio", "time"):
        raise ValueError(f"quantity must be 'ratio' or 'time', got {quantity!r}")
    count = _count(steps, final)
    share = [beta_quantile(1.0 - i / max(count - 1, 1), alpha, beta) for i in range(count)]
    if quantity == "time":
        times = [path.t_min + (path.t_max - path.t_min) * p for p in share]
        return pinned(path, integers(times) if path.is_discrete else times, steps, final)
    high, low = (math.exp(-lam) for lam in snr_range(path, floor))
    ratio = low + (high - low) * torch.tensor(share, dtype=torch.float64)
    return pinned(path, path.time_at(-ratio.log()).tolist(), steps, final)


def beta_quantile(p: float, alpha: float, beta: float) -> float:
    """Return x with a share p of the Beta(alpha, beta) distribution below it.

    Example:
        >>> round(beta_quantile(0.5, 0.6, 0.6), 12), round(beta_quantile(0.25, 1.0, 1.0), 12)
        (0.5, 0.25)
    """
    if p in (0.0, 1.0):
        return p
    total = math.exp(math.lgamma(alpha) + math.lgamma(beta) - math.lgamma(alpha + beta))
    half = _incomplete_beta(0.5, alpha, beta)
    if p * total > half * (1.0 + 1e-12):  # rounding at the median itself must not send it round in circles
        return 1.0 - beta_quantile(1.0 - p, beta, alpha)
    # Newton's method for w = x^alpha, of which the incomplete function is nearly linear
    w = alpha * p * total
    for _ in range(20):
        x = min(w ** (1.0 / alpha), 0.5)
        w = x**alpha - (_incomplete_beta(x, alpha, beta) - p * total) * alpha * (1.0 - x) ** (1.0 - beta)
    return w ** (1.0 / alpha)


def _incomplete_beta(x: float, alpha: float, beta: float) -> float:
    """int_0^x u^(alpha − 1)·(1 − u)^(beta − 1) du for x ≤ 1/2, by its power series."""
    total, term = 0.0, 1.0
    for n in range(60):
        total += term / (alpha + n)
        term *= (n + 1.0 - beta) / (n + 1.0) * x
    return total * x**alpha


def _count(steps: int, final: str) -> int:
    """How many times there are from t_max to t_min."""
    return steps if final == "clean" else steps + 1


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0.0):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


GRIDS = {"exponential": exponential, "lu": lu, "beta": beta}
