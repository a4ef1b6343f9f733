"""Make the table and the pictures of the solver pages.

    python -m tools.solver_pages

writes the table of docs/solvers.md between its markers and docs/assets/solvers/*.svg: trajectories of each
family on a mixture of three Gaussians on a line, beside the exact ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath

import matplotlib.pyplot as plt
import numpy as np
import torch
from tools.line_mixture import (
    DOCS,
    EDM,
    MEAN,
    NOISIEST,
    STARTS,
    STD,
    WEIGHT,
    denoiser,
    grid_of,
    save,
    sigma_axis,
)
from tools.special_pictures import guidance, inversion, mean_reverting, search
from torch import Tensor

from fewstep.core import paths, sample, solvers
from fewstep.core.paths import Path
from fewstep.core.solvers import Solver, StepwiseSolver
from fewstep.core.solvers.edm import EDMSampler
from fewstep.core.solvers.teleported import Teleported
from fewstep.core.starts.teleport import GaussianModel
from fewstep.core.statistics import estimate_statistics

MARKERS = ("<!-- table: python -m tools.solver_pages -->", "<!-- end of table -->")


@dataclass(frozen=True)
class Panel:
    """One picture of trajectories: a title and the solver that makes them."""

    title: str
    solver: Solver
    path: Path = EDM
    steps: int = 8


def named(*names: str) -> tuple[Panel, ...]:
    """Panels of solvers with their default options."""
    return tuple(Panel(name, solvers.get(name)) for name in names)


def trajectory(panel: Panel) -> tuple[np.ndarray, np.ndarray]:
    """sigma/a and normalised states z/sqrt(a² + sigma²) over a run from the same starts, (steps, samples)."""
    grid = grid_of(panel.path, panel.steps)
    seen: list[tuple[Tensor, Tensor]] = []

    def remember(t: float | Tensor, x: Tensor) -> None:
        a, _, sigma = panel.path.evaluate(torch.as_tensor(t, dtype=torch.float64).expand(len(STARTS)))
        seen.append((sigma / a, x[:, 0] / (a**2 + sigma**2).sqrt()))

    start = STARTS * NOISIEST * panel.path.coefficients(grid[0])[0]
    remember(grid[0], start)
    sample(
        denoiser(panel.path), panel.path, panel.solver, grid=grid, x=start, seed=4,
        on_step=lambda info: remember(info.t, info.x.clone()),
    )  # fmt: skip
    levels, states = (torch.stack(part).numpy() for part in zip(*seen, strict=True))
    return levels, states


def draw(file: FilePath, panels: Sequence[Panel]) -> None:
    """Exact trajectories in grey, the solver's in colour, panel by panel."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.9 * len(panels) + 0.6, 3.0), sharey=True, squeeze=False
    )
    exact = trajectory(Panel("exact", solvers.get("heun"), steps=160))
    for ax, panel in zip(axes[0], panels, strict=True):
        ax.plot(np.arcsinh(exact[0] * 20), exact[1], color="0.72", lw=1.0)
        levels, states = trajectory(panel)
        ax.plot(np.arcsinh(levels * 20), states, lw=1.3, marker="o", ms=2.5)
        ax.set_title(panel.title, fontsize=10)
        ax.set_ylim(-2.3, 2.3)
        sigma_axis(ax)
    axes[0][0].set_ylabel("z / √(a² + σ²)", fontsize=9)
    save(figure, file)


def families() -> dict[str, tuple[Panel, ...]]:
    """What the picture of each page shows."""
    generator = torch.Generator().manual_seed(0)
    which = torch.multinomial(WEIGHT, 4096, replacement=True, generator=generator)
    data = MEAN[which] + STD[which] * torch.randn(4096, dtype=torch.float64, generator=generator)
    gaussian = GaussianModel.from_data(data[:, None])
    statistics = estimate_statistics(denoiser(EDM), EDM, data[:512, None], shared=True)
    plain = solvers.get("dpmpp-2m")
    vp = paths.VP.linear()
    return {
        "first-order": named("ddim", "ancestral", "dpmpp-1"),
        "dpm-solver": named("dpm-2m", "dpmpp-2m", "dpmpp-3m", "dpmpp-2s"),
        "unipc": named("unipc-1", "unipc-2", "unipc-3", "sa-solver"),
        "momentum": named("ghvb", "hb", "nt", "dpmpp-2m-hb"),
        "deis": named("ddim", "t-ab-3", "rho-ab-3", "lambda-ab-3"),
        "pndm": named("ddim", "s-pndm", "plms", "f-pndm"),
        "dpm-solver-v3": (
            Panel("dpm-v3, no statistics", solvers.get("dpm-v3")),
            Panel("dpm-v3, statistics", solvers.get("dpm-v3", statistics=statistics)),
            Panel("dpmpp-2m", plain),
        ),
        "edm": (
            *named("heun"),
            Panel("edm, linear", EDMSampler()),
            Panel("edm, VP frame", EDMSampler(), vp),
        ),
        "evodiff": named("evodiff", "dpmpp-2m"),
        "score-sde": tuple(
            # one pixel has no norm to speak of: pc takes the batch's, as published
            Panel(name, solvers.get(name, **options), steps=40)
            for name, options in (
                ("euler-maruyama", {}),
                ("reverse-diffusion", {}),
                ("pc", {"norm": "batch"}),
                ("ode45", {}),
            )
        ),
        "consistency": named("consistency", "ctm", "flow-turbo"),
        "first-steps": (
            Panel("dpmpp-2m", plain),
            Panel("teleported to σ = 4", Teleported(plain, gaussian, until=-np.log(4.0))),
        ),
    }


def table() -> str:
    """All solvers, a line each; a dot marks those whose steps depend on the data."""
    lines = [
        "| name | method | order | calls in n steps | where it shines |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, entry in solvers.listed().items():
        solver = entry.make()
        dot = " ·" if isinstance(solver, StepwiseSolver) else ""
        lines.append(f"| `{name}`{dot} | {entry.paper} | {solver.order:g} | {entry.calls} | {entry.shines} |")
    return "\n".join(lines)


def write_between(page: FilePath, text: str, markers: tuple[str, str] = MARKERS) -> None:
    """Replace what stands between two markers of a page."""
    before, rest = page.read_text("utf-8").split(markers[0])
    after = rest.split(markers[1])[1]
    page.write_text(f"{before}{markers[0]}\n{text}\n{markers[1]}{after}", "utf-8")


def main() -> None:
    """Write the table and every picture."""
    write_between(DOCS / "solvers.md", table())
    folder = DOCS / "assets" / "solvers"
    makers = {family: partial(draw, panels=panels) for family, panels in families().items()}
    makers |= {
        "mean-reverting": mean_reverting,
        "inversion": inversion,
        "guidance": guidance,
        "search": search,
    }
    for name, make in makers.items():
        make(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
