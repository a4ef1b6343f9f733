"""How much an error of x0 counts at a time, by name."""

from collections.abc import Callable

from jaxtyping import Float64, Shaped
from torch import Tensor

from fewstep.core.paths import Path

Weighting = Callable[[Path, Tensor], Tensor]


def snr_at(path: Path, t: Shaped[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
    """Return a²/sigma² at every time."""
    a, _, sigma = path.evaluate(t)
    return (a / sigma).square()


def _edm(path: Path, t: Tensor) -> Tensor:
    return snr_at(path, t) + 1 / path.sigma_data**2


WEIGHTS: dict[str, Weighting] = {
    "uniform": lambda path, t: (snr_at(path, t) * 0) + 1,
    "snr": snr_at,
    "snr+1": lambda path, t: snr_at(path, t) + 1,
    "karras": _edm,
    "truncated-snr": lambda path, t: snr_at(path, t).clamp_min(1),
}
"""Name → weight of the squared error of x0. "karras" makes the error of EDM's F count alike everywhere.

Reference: Salimans and Ho 2022, section 4 (snr, truncated, snr+1); Karras et al. 2022, table 1 (karras)."""


def weighting(name: str | Weighting) -> Weighting:
    """The weighting of that name (a function is returned as it is).

    Raises:
        ValueError: unknown name.
    """
    if callable(name):
        return name
    if name not in WEIGHTS:
        raise ValueError(f"weight must be one of {', '.join(WEIGHTS)}, got {name!r}")
    return WEIGHTS[name]
