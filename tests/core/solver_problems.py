"""Problems with a closed-form denoiser, on which solvers are tested."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core import solvers
from fewstep.core.paths import Path
from fewstep.core.solvers import StepwiseSolver

torch.set_num_threads(1)  # tiny tensors: a second thread only waits, for long on a busy machine


@dataclass(frozen=True)
class Mixture:
    """Data drawn from sum_k weight_k·N(mean_k, std_k²·I) over the flattened sample."""

    mean: Tensor
    std: Tensor
    weight: Tensor

    def x0(self, z: Tensor, a: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x0 | z] for z = a·x0 + sigma·eps; a and sigma are floats or have shape (batch,)."""
        a, sigma = (torch.as_tensor(v, dtype=z.dtype).reshape(-1, 1) for v in (a, sigma))
        mean, std = self.mean.to(z.dtype), self.std.to(z.dtype)
        variance = a**2 * std**2 + sigma**2
        gap = z.flatten(1)[:, None] - a[..., None] * mean
        logits = self.weight.to(z.dtype).log() - gap.square().sum(-1) / (2 * variance)
        share = (logits - 0.5 * mean.shape[1] * variance.log()).softmax(1)
        centre = mean + (a * std**2 / variance)[..., None] * gap
        return (share[..., None] * centre).sum(1).reshape(z.shape)

    def denoiser(self, path: Path, y: Tensor | None = None):
        """The exact (x, t) -> x0 on a path; with b != 0 the state is moved to the y-free frame first."""

        def denoise(x: Tensor, t: float | Tensor) -> Tensor:
            a, b, sigma = path.evaluate(torch.as_tensor(t, dtype=torch.float64))
            z = x if y is None else x - b.reshape(-1, *[1] * (x.ndim - 1)) * y
            return self.x0(z, a, sigma)

        return denoise

    def draw(self, count: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Exact samples of the data."""
        which = torch.multinomial(self.weight, count, replacement=True, generator=generator)
        noise = torch.randn(count, self.mean.shape[1], dtype=torch.float64, generator=generator)
        return (self.mean[which] + self.std[which][:, None] * noise).reshape(count, *shape)


class Asked:
    """A denoiser with a prediction of its own, as a network has: what `sample` folds."""

    def __init__(self, x0, path: Path, prediction, y: Tensor | None = None, cast=lambda out: out) -> None:
        self.path, self.prediction, self.y = path, prediction, y
        self._x0, self._cast = x0, cast
        self.calls: list[float | Tensor] = []

    def predict(self, x: Tensor, t: float | Tensor) -> Tensor:
        self.calls.append(t)
        x0 = self._x0(x, t)
        return self._cast(self.prediction.from_x0(self.path, t, x, x0, self.y))

    def __call__(self, x: Tensor, t: float | Tensor) -> Tensor:
        return self.prediction.to_x0(self.path, t, x, self.predict(x, t), self.y)


def smooth_mixture(dimensions: int = 12) -> Mixture:
    """Three broad overlapping modes: smooth enough for the asymptotic order to show from 40 steps on."""
    k, j = torch.arange(3.0).double()[:, None], torch.arange(float(dimensions)).double()
    mean = 0.3 * torch.cos(1.7 * (k + 1) + 0.9 * j * (k + 2))
    return Mixture(
        mean,
        torch.tensor([0.8, 1.0, 1.2], dtype=torch.float64),
        torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64),
    )


def start_noise(batch: int = 4, shape: tuple[int, ...] = (3, 2, 2), seed: int = 0) -> Tensor:
    return torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kappa_grid(path: Path, high: float, low: float, steps: int, clean: bool = False) -> tuple[float, ...]:
    """Times with sigma/a from `high` to `low`, equal steps of its logarithm, then the clean end if wanted."""
    ratio = [high * (low / high) ** (i / steps) for i in range(steps + 1)]
    times = tuple(float(path.time_at(-math.log(kappa))) for kappa in ratio)
    return (*times, path.t_clean) if clean else times


PLANNED = [name for name, entry in solvers.listed().items() if not isinstance(entry.make(), StepwiseSolver)]
"""Names of the solvers whose scalars do not depend on the data."""
