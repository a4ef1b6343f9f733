"""Gaussian teleportation: one jump over what the data's mean and covariance decide of a trajectory."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core.files import atomic_path
from fewstep.core.paths import Path
from fewstep.core.weights import CheckpointError, load_state_dict_file

# Directions whose share of the largest variance is below this are rounding of the decomposition.
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True, eq=False)
class GaussianModel:
    """Data as one Gaussian, N(mean, U·diag(variance)·Uᵀ + rest·(I − U·Uᵀ)): a low rank and one rest.

    Far from the data a diffusion model's score is nearly that of this Gaussian, for which the
    probability-flow ODE is solved in closed form (`jump`) and so is the denoiser (`denoiser`).

    Args:
        mean: shape (*rest), or (batch, *rest) where every sample has its own (a residual model's y, say).
        basis: U, orthonormal columns, shape (dimensions, rank).
        variance: along the columns, shape (rank,).
        rest: variance in all other directions.

    Raises:
        ValueError: if the shapes do not fit, a variance is negative or the columns are not orthonormal.

    Example:
        >>> from fewstep.core import paths
        >>> x0 = torch.randn(200, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> gaussian = GaussianModel.from_data(x0, rank=5)
        >>> gaussian.jump(80.0 * x0[:2], paths.EDM(), 80.0, 2.0).shape
        torch.Size([2, 3, 4])

    Reference: Wang and Vastola 2023, "The Hidden Linear Structure in Score-Based Models and its Application".
    """

    mean: Tensor
    basis: Tensor
    variance: Tensor
    rest: float = 0.0

    def __post_init__(self) -> None:
        if self.basis.ndim != 2 or self.variance.shape != self.basis.shape[1:]:
            raise ValueError(
                "basis must have shape (dimensions, rank) and variance (rank,); "
                f"got {tuple(self.basis.shape)} and {tuple(self.variance.shape)}"
            )
        size, rank = self.basis.shape
        if self.mean.numel() == 0 or self.mean.numel() % size or rank > size:
            raise ValueError(
                f"mean of shape {tuple(self.mean.shape)} and basis of shape {(size, rank)} do not fit"
            )
        if self.rest < 0.0 or bool((self.variance < 0).any()):
            raise ValueError(f"variance and rest must not be negative; rest is {self.rest}")
        eye = torch.eye(rank, dtype=self.basis.dtype, device=self.basis.device)
        if rank and (self.basis.T @ self.basis - eye).abs().max() > 1e-3:
            raise ValueError("basis must have orthonormal columns")

    @staticmethod
    def from_data(x0: Float[Tensor, "samples *rest"], rank: int | None = None) -> "GaussianModel":
        """Mean, leading principal components and mean leftover variance of data.

        Args:
            x0: at least two samples, scaled as the model sees them.
            rank: principal components to keep; all that the samples determine by default.

        Raises:
            ValueError: if there are fewer than two samples or rank is not positive.
        """
        count = x0.shape[0]
        if x0.ndim < 2 or count < 2:
            raise ValueError(f"x0 must hold at least two samples (samples, ...), got shape {tuple(x0.shape)}")
        flat = x0.flatten(1).double()
        mean = flat.mean(0)
        centred = (flat - mean) / (count - 1) ** 0.5
        wide = flat.shape[1] > count
        values, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
        keep = values > _NEGLIGIBLE * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
        values, vectors = values[keep].flip(0), vectors[:, keep].flip(1)
        if wide:
            vectors = torch.linalg.qr(centred.T @ vectors).Q
        return _truncated(mean.reshape(x0.shape[1:]), vectors, values, float(centred.square().sum()), rank)

    @staticmethod
    def from_moments(
        mean: Float[Tensor, "*rest"],
        covariance: Float[Tensor, "size size"],
        rank: int | None = None,
    ) -> "GaussianModel":
        """A given mean and covariance matrix (over the flattened sample).

        Args:
            mean: shape of a sample.
            covariance: symmetric, shape (dimensions, dimensions).
            rank: principal components to keep; all by default. The others share their mean variance.

        Raises:
            ValueError: if the shapes do not fit or the matrix is not a covariance.
        """
        if covariance.shape[0] != mean.numel():
            raise ValueError(
                f"covariance must have shape {(mean.numel(),) * 2} here, got {tuple(covariance.shape)}"
            )
        values, vectors = torch.linalg.eigh(covariance.double())
        if not torch.allclose(covariance, covariance.T) or values[0] < -1e-6 * values[-1].abs():
            raise ValueError("covariance must be symmetric and positive semi-definite")
        values = values.clamp_min(0.0)
        return _truncated(mean.double(), vectors.flip(1), values.flip(0), float(values.sum()), rank)

    def around(self, mean: Float[Tensor, "*shape"]) -> "GaussianModel":
        """The same covariance around another mean, one for all or one per sample (batch first)."""
        return GaussianModel(mean, self.basis, self.variance, self.rest)

    def jump(
        self,
        x: Float[Tensor, "batch *rest"],
        path: Path,
        start: float,
        end: float,
        y: Float[Tensor, "batch *rest"] | None = None,
    ) -> Float[Tensor, "batch *rest"]:
        """Follow the probability-flow ODE of the Gaussian exactly between any two times.

        In z = x − b·y, along a direction with variance v:
        z_t − a_t·mean = sqrt((a_t²·v + sigma_t²)/(a_s²·v + sigma_s²))·(z_s − a_s·mean).

        Args:
            x: state at `start`.
            path: the path.
            start: time s; pure noise (a = 0) is allowed.
            end: time t, cleaner or noisier.
            y: degraded input, if the path uses it.

        Returns:
            The state at `end`.

        Raises:
            ValueError: if y is missing, or the start has sigma = 0 and a direction without variance.
        """
        (a_s, b_s, sigma_s), (a_t, b_t, sigma_t) = path.coefficients(start), path.coefficients(end)
        if not path.uses_y:
            return self.carried(x, (a_s, sigma_s), (a_t, sigma_t))
        if y is None:
            raise ValueError(f"y is missing: {type(path).__name__} uses the degraded input")
        return b_t * y + self.carried(x - b_s * y, (a_s, sigma_s), (a_t, sigma_t))

    def carried(
        self, z: Float[Tensor, "batch *rest"], start: tuple[float, float], end: tuple[float, float]
    ) -> Float[Tensor, "batch *rest"]:
        """`jump` in the y-free frame z = a·x0 + sigma·eps, between two pairs (a, sigma).

        Raises:
            ValueError: if the start has sigma = 0 and there is a direction without variance.
        """
        (a_s, sigma_s), (a_t, sigma_t) = start, end

        def gain(v: Tensor) -> Tensor:
            before = a_s**2 * v + sigma_s**2
            if bool((before == 0).any()):
                raise ValueError("the start has sigma = 0, where a direction without variance is lost")
            return ((a_t**2 * v + sigma_t**2) / before).sqrt()

        mean = self.mean.to(z)
        return a_t * mean + self._scaled(z - a_s * mean, gain)

    def denoiser(
        self, path: Path, y: Float[Tensor, "batch *rest"] | None = None
    ) -> Callable[[Tensor, float | Tensor], Tensor]:
        """The exact E[x0 | x] of the Gaussian, as a function of (x, t) for `sample`.

        In z = x − b·y, along a direction with variance v: mean + a·v/(a²·v + sigma²)·(z − a·mean).

        Args:
            path: the path.
            y: degraded input, if the path uses it.

        Returns:
            (x, t) -> x0, with t a float or one time per sample.

        Raises:
            ValueError: if y is missing.
        """
        if path.uses_y and y is None:
            raise ValueError(f"y is missing: {type(path).__name__} uses the degraded input")

        def denoise(x: Tensor, t: float | Tensor) -> Tensor:
            times = torch.as_tensor(t, dtype=torch.float64, device=x.device).reshape(-1, 1)
            a, b, sigma = path.evaluate(times)

            def gain(v: Tensor) -> Tensor:
                # a direction without variance is its mean, whatever the noise
                return torch.where(v == 0, 0.0, a * v / (a**2 * v + sigma**2))

            a_x, b_x = (c.to(x.dtype).reshape(-1, *[1] * (x.ndim - 1)) for c in (a, b))
            z = x if y is None or not path.uses_y else x - b_x * y
            return self.mean.to(x) + self._scaled(z - a_x * self.mean.to(x), gain)

        return denoise

    def draw(self, count: int, generator: torch.Generator | None = None) -> Float[Tensor, "count *rest"]:
        """Samples of the Gaussian itself, in float64 on the CPU."""
        shape = self.mean.shape if self.mean.numel() == self.basis.shape[0] else self.mean.shape[1:]
        noise = torch.randn(count, *shape, dtype=torch.float64, generator=generator)
        return self.mean.double().cpu() + self._scaled(noise, lambda v: v.sqrt())

    def save(self, file: str | File) -> None:
        """Write the model as safetensors."""
        tensors = {"mean": self.mean, "basis": self.basis, "variance": self.variance}
        tensors["rest"] = torch.tensor(self.rest, dtype=torch.float64)
        with atomic_path(file) as temporary:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, temporary)

    @staticmethod
    def load(file: str | File) -> "GaussianModel":
        """Read what `save` wrote.

        Raises:
            CheckpointError: if the file is missing, damaged or something else.
        """
        tensors = load_state_dict_file(file)
        missing = sorted({"mean", "basis", "variance", "rest"} - tensors.keys())
        if missing:
            raise CheckpointError(f"{file} is not a Gaussian model: it has no {', '.join(missing)}")
        return GaussianModel(tensors["mean"], tensors["basis"], tensors["variance"], float(tensors["rest"]))

    def _scaled(self, z: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
        """z with every direction multiplied by `gain` of its variance, (rank,) or (batch, rank) numbers."""
        flat, basis = z.flatten(1), self.basis.to(z)
        others = gain(torch.tensor([self.rest], dtype=torch.float64, device=z.device))
        extra = gain(self.variance.to(z.device, torch.float64)) - others
        return (flat * others.to(z.dtype) + ((flat @ basis) * extra.to(z.dtype)) @ basis.T).reshape(z.shape)


def _truncated(
    mean: Tensor, basis: Tensor, variance: Tensor, total: float, rank: int | None
) -> GaussianModel:
    """The first `rank` of decreasing variances; the other directions share what is left of `total`."""
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")
    size = mean.numel()
    basis, variance = basis[:, :rank].contiguous(), variance[:rank].contiguous()
    left = size - variance.numel()
    # what the samples do not span has no variance, and rounding must not give it some
    missing = total - float(variance.sum())
    rest = missing / left if left and missing > _NEGLIGIBLE * total else 0.0
    return GaussianModel(mean, basis, variance, rest)
