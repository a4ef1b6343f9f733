"""How much an error of x0 counts at a time, by name."""

from collections.abc import Callable

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from fewstep.core.clock import clock_at
from fewstep.core.paths import Path

Weighting = Callable[[Path, Tensor], Tensor]


def snr_at(path: Path, t: Shaped[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
    """Return a²/sigma² at every time."""
    a, _, sigma = path.evaluate(t)
    return (a / sigma).square()


def _edm(path: Path, t: Tensor) -> Tensor:
    return snr_at(path, t) + 1 / path.sigma_data**2


def _tau(path: Path, t: Tensor) -> Tensor:
    return clock_at(path, t)


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(SNR, gamma).

    Reference: Hang et al. 2023, "Efficient Diffusion Training via Min-SNR Weighting Strategy", section 3.4.
    """
    return lambda path, t: snr_at(path, t).clamp_max(gamma)


def sigmoid(bias: float = 2.0) -> Weighting:
    """SNR·sigmoid(bias − ln SNR): the squared error of eps counts sigmoid(bias − ln SNR).

    Reference: Kingma and Gao 2023, "Understanding Diffusion Objectives as the ELBO with Simple Data
        Augmentation", section 4.2; Hoogeboom et al. 2024, "Simpler Diffusion", section 3.1.
    """
    return lambda path, t: snr_at(path, t) * torch.sigmoid(bias - snr_at(path, t).log())


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """SNR/(k + SNR)^gamma: the squared error of eps counts 1/(k + SNR)^gamma.

    Reference: Choi et al. 2022, "Perception Prioritized Training of Diffusion Models", equation 8.
    """
    return lambda path, t: snr_at(path, t) / (k + snr_at(path, t)) ** gamma


WEIGHTS: dict[str, Weighting] = {
    "uniform": lambda path, t: (snr_at(path, t) * 0) + 1,
    "snr": snr_at,
    "snr+1": lambda path, t: snr_at(path, t) + 1,
    "karras": _edm,
    "truncated-snr": lambda path, t: snr_at(path, t).clamp_min(1),
    "1/snr": lambda path, t: 1 / snr_at(path, t),
    "min-snr": min_snr(),
    "sigmoid": sigmoid(),
    "p2": p2(),
    "velocity": lambda path, t: _tau(path, t) ** -2,
    "1/tau": lambda path, t: 1 / _tau(path, t),
    "1-tau": lambda path, t: 1 - _tau(path, t),
    "tau^2": lambda path, t: _tau(path, t) ** 2,
}
"""Name → weight of the squared error of x0. "karras" makes the error of EDM's F count alike everywhere, "snr"
that of eps, "velocity" that of the velocity on the normalised clock tau.

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
