"""The problem of the documentation's pictures: three Gaussians on a line, and how they are drawn."""

from collections.abc import Callable
from pathlib import Path as FilePath

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from fewstep.core import paths
from fewstep.core.paths import Path

plt.rcParams["svg.hashsalt"] = "fewstep"  # the same names in the file each time
DOCS = FilePath(__file__).parents[1] / "docs"
MEAN, STD, WEIGHT = torch.tensor([[-1.2, 0.2, 1.3], [0.15, 0.3, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)
STARTS = torch.tensor([-1.6, -0.9, -0.45, -0.1, 0.2, 0.5, 1.0, 1.7], dtype=torch.float64)[:, None]
NOISIEST, CLEANEST = 20.0, 0.02
EDM = paths.EDM(sigma_min=CLEANEST, sigma_max=NOISIEST)


def denoiser(path: Path, y: float = 0.0) -> Callable[[Tensor, float | Tensor], Tensor]:
    """E[x0 | x] of the mixture on a path, states (n, 1)."""

    def denoise(x: Tensor, t: float | Tensor) -> Tensor:
        a, b, sigma = (c.reshape(-1, 1) for c in path.evaluate(torch.as_tensor(t, dtype=torch.float64)))
        z = x - b * y
        variance = a**2 * STD**2 + sigma**2
        log_r = WEIGHT.log() - 0.5 * variance.log() - (z - a * MEAN) ** 2 / (2 * variance)
        each = MEAN + a * STD**2 / variance * (z - a * MEAN)
        return (log_r.softmax(1) * each).sum(1, keepdim=True)

    return denoise


def grid_of(path: Path, steps: int) -> tuple[float, ...]:
    """Equal steps of log(sigma/a), then the clean end."""
    ratios = torch.logspace(np.log10(NOISIEST), np.log10(CLEANEST), steps, dtype=torch.float64)
    return (*path.time_at(-ratios.log()).tolist(), path.t_clean)


def sigma_axis(ax: plt.Axes) -> None:
    """Ticks of sigma/a from noise to clean on an axis of arcsinh(20·sigma/a)."""
    ax.set_xticks(np.arcsinh(np.array([20, 2, 0.2, 0.0]) * 20), ["20", "2", "0.2", "0"], fontsize=8)
    ax.set_xlabel("σ/a", fontsize=9)
    ax.invert_xaxis()
    ax.spines[["top", "right"]].set_visible(False)


def save(figure: plt.Figure, file: FilePath) -> None:
    """Write a figure without a date, so that the same picture is the same file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
    print(file.relative_to(DOCS))
