"""Make the table and the pictures of the solver pages.

    python -m tools.solver_pages

writes the table of docs/solvers.md between its markers and docs/assets/solvers/*.svg: trajectories of each
family on a mixture of three Gaussians on a line, beside the exact ones.
"""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from fewstep.core import paths, sample, solvers
from fewstep.core.solvers import Solver, StepwiseSolver

DOCS = Path(__file__).parents[1] / "docs"
MARKERS = ("<!-- table: python -m tools.solver_pages -->", "<!-- end of table -->")
MEAN, STD, WEIGHT = torch.tensor([[-1.2, 0.2, 1.3], [0.15, 0.3, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)
PATH = paths.EDM(sigma_min=0.02, sigma_max=20.0)
STARTS = torch.tensor([-1.6, -0.9, -0.45, -0.1, 0.2, 0.5, 1.0, 1.7], dtype=torch.float64)[:, None]

FAMILIES: dict[str, tuple[str, ...]] = {
    "first-order": ("ddim", "ancestral", "dpmpp-1"),
    "dpm-solver": ("dpm-2m", "dpmpp-2m", "dpmpp-3m", "dpmpp-2s"),
    "unipc": ("unipc-2", "unipc-3", "sa-solver"),
    "momentum": ("ghvb", "hb", "nt"),
    "deis": ("deis-tab", "deis-rho-ab", "rk4"),
    "pndm": ("s-pndm", "f-pndm", "ipndm"),
    "dpm-solver-v3": ("dpm-v3",),
    "edm": ("heun", "edm"),
    "evodiff": ("evodiff",),
    "score-sde": ("euler-maruyama", "reverse-diffusion", "pc", "ode45"),
    "consistency": ("consistency", "ctm"),
}


def denoise(x: Tensor, t: float | Tensor) -> Tensor:
    """E[x0 | x] of the mixture, (n, 1)."""
    sigma = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1)
    variance = STD**2 + sigma**2
    log_r = WEIGHT.log() - 0.5 * variance.log() - (x - MEAN) ** 2 / (2 * variance)
    each = MEAN + STD**2 / variance * (x - MEAN)
    return (log_r.softmax(1) * each).sum(1, keepdim=True)


def trajectory(solver: Solver, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise levels and states over them, from the same starts."""
    ratios = torch.logspace(math.log10(20), math.log10(0.02), steps, dtype=torch.float64)
    start = STARTS * 20.0
    levels, states = [20.0], [start[:, 0]]

    def remember(info) -> None:
        levels.append(float(torch.as_tensor(info.t).double().mean()))
        states.append(info.x[:, 0].clone())

    sample(denoise, PATH, solver, grid=(*ratios.tolist(), 0.0), x=start, on_step=remember, seed=4)
    return np.array(levels), torch.stack(states).numpy()


def draw(file: Path, names: tuple[str, ...], steps: int = 8) -> None:
    """One panel per solver: density, exact trajectories in grey, the solver's in colour."""
    figure, axes = plt.subplots(
        1, len(names), figsize=(3.3 * len(names) + 0.6, 3.1), sharey=True, squeeze=False
    )
    exact = trajectory(solvers.get("heun"), 160)
    for ax, name in zip(axes[0], names, strict=True):
        solver = solvers.get(name)
        for levels, states, style in (
            (*exact, {"color": "0.7", "lw": 1.0}),
            (*trajectory(solver, steps), {"lw": 1.3, "marker": "o", "ms": 2.6}),
        ):
            scale = np.sqrt(1.0 + levels**2)[:, None]
            ax.plot(np.arcsinh(levels * 20), states / scale, **style)
        ax.set_title(name, fontsize=10)
        ax.set_xticks(np.arcsinh(np.array([20, 2, 0.2, 0.0]) * 20), ["20", "2", "0.2", "0"], fontsize=8)
        ax.set_xlabel("σ", fontsize=9)
        ax.invert_xaxis()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("x / √(1 + σ²)", fontsize=9)
    figure.tight_layout()
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def table() -> str:
    """All solvers, a line each."""
    lines = [
        "| name | method | order | network calls in n steps | where it shines |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, entry in solvers.listed().items():
        solver = entry.make()
        kind = " ·" if isinstance(solver, StepwiseSolver) else ""
        lines.append(
            f"| `{name}`{kind} | {entry.paper} | {solver.order:g} | {entry.calls} | {entry.shines} |"
        )
    return "\n".join(lines)


def write_between(page: Path, text: str, markers: tuple[str, str] = MARKERS) -> None:
    """Replace what stands between two markers of a page."""
    before, rest = page.read_text("utf-8").split(markers[0])
    after = rest.split(markers[1])[1]
    page.write_text(f"{before}{markers[0]}\n{text}\n{markers[1]}{after}", "utf-8")


def main() -> None:
    """Write the table and every picture."""
    write_between(DOCS / "solvers.md", table())
    for family, names in FAMILIES.items():
        known = tuple(name for name in names if name in solvers.names())
        if known:
            draw(DOCS / "assets" / "solvers" / f"{family}.svg", known)
            print(family, *known)


if __name__ == "__main__":
    main()
