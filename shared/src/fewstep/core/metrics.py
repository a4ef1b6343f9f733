"""Distances between two sets of samples, for any shape of sample; smaller is better."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.search.objectives import energy_distance, sliced_wasserstein

Distance = Callable[[Tensor, Tensor], Tensor]

__all__ = [
    "METRICS",
    "energy_distance",
    "frechet_distance",
    "gaussian_distance",
    "moments",
    "sliced_wasserstein",
]


def moments(
    x: Float[Tensor, "n *rest"],
) -> tuple[Float[Tensor, "features"], Float[Tensor, "features features"]]:
    """Return mean and unbiased covariance of flattened samples, in float64.

    Raises:
        ValueError: there are fewer than two samples.
    """
    if len(x) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {len(x)}")
    flat = x.double().flatten(1)
    mean = flat.mean(0)
    centred = flat - mean
    return mean, centred.T @ centred / (len(flat) - 1)


def gaussian_distance(
    mean: Float[Tensor, "d"],
    covariance: Float[Tensor, "d d"],
    other_mean: Float[Tensor, "d"],
    other_covariance: Float[Tensor, "d d"],
) -> Float[Tensor, ""]:
    """Return the squared 2-Wasserstein distance between two Gaussians.

    |m − m'|² + tr(C + C' − 2·(C^½ C' C^½)^½), with both roots taken of symmetric matrices.

    Reference: Dowson and Landau 1982, eq. 16; Heusel et al. 2017, eq. 6 (FID is this in Inception features).

    Example:
        >>> one = torch.eye(2, dtype=torch.float64)
        >>> gaussian_distance(one[0], one, one[0], 4 * one)  # 2·(2 − 1)²
        tensor(2., dtype=torch.float64)
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    between = root @ other_covariance @ root
    shared = torch.linalg.eigvalsh((between + between.T) / 2).clamp_min(0).sqrt().sum()
    apart = (mean - other_mean).square().sum()
    return (apart + covariance.trace() + other_covariance.trace() - 2 * shared).clamp_min(0)


def frechet_distance(x: Float[Tensor, "n *rest"], y: Float[Tensor, "m *rest"]) -> Float[Tensor, ""]:
    """Return the Fréchet distance of two sets of samples: `gaussian_distance` of their moments.

    It sees nothing but means and covariances, and falls with the number of samples even between equal
    distributions, so it is compared at equal numbers only.

    Reference: Heusel et al. 2017, "GANs Trained by a Two Time-Scale Update Rule", eq. 6.
    """
    return gaussian_distance(*moments(x), *moments(y))


METRICS: dict[str, Distance] = {
    "sliced-wasserstein": sliced_wasserstein,
    "energy": energy_distance,
    "frechet": frechet_distance,
}
"""The distances by name."""
