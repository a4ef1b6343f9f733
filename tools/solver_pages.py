"""Make the table and the pictures of the solver pages.

    python -m tools.solver_pages

writes the table of docs/solvers.md between its markers and docs/assets/solvers/*.svg: trajectories of each
family on a mixture of three Gaussians on a line, beside the exact ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as FilePath

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from fewstep.core import paths, sample, solvers
from fewstep.core.encoding import decode, encode
from fewstep.core.paths import Path
from fewstep.core.solvers import Solver, StepwiseSolver
from fewstep.core.solvers.edm import EDMSampler
from fewstep.core.solvers.teleported import Teleported
from fewstep.core.starts.teleport import GaussianModel
from fewstep.core.statistics import estimate_statistics
from fewstep.core.step_info import StepInfo

DOCS = FilePath(__file__).parents[1] / "docs"
MARKERS = ("<!-- table: python -m tools.solver_pages -->", "<!-- end of table -->")
MEAN, STD, WEIGHT = torch.tensor([[-1.2, 0.2, 1.3], [0.15, 0.3, 0.2], [0.3, 0.3, 0.4]], dtype=torch.float64)
STARTS = torch.tensor([-1.6, -0.9, -0.45, -0.1, 0.2, 0.5, 1.0, 1.7], dtype=torch.float64)[:, None]
NOISIEST, CLEANEST = 20.0, 0.02
EDM = paths.EDM(sigma_min=CLEANEST, sigma_max=NOISIEST)


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
        _sigma_axis(ax)
    axes[0][0].set_ylabel("z / √(a² + σ²)", fontsize=9)
    save(figure, file)


def mean_reverting(file: FilePath) -> None:
    """States against the time of an IR-SDE path, from a degraded input at 0.9."""
    path, y = paths.MeanReverting(), 0.9
    names = ("ir-sde", "ir-ode", "ir-posterior", "mrs-2")
    figure, axes = plt.subplots(1, len(names), figsize=(12.0, 3.0), sharey=True)
    for ax, name in zip(axes, names, strict=True):
        steps = 10 if name == "mrs-2" else 100
        start = path.start(STARTS / 2, torch.full_like(STARTS, y))
        times, states = [path.t_max], [start[:, 0]]

        def remember(info, times=times, states=states) -> None:
            times.append(info.t)
            states.append(info.x[:, 0].clone())

        degraded = torch.full_like(STARTS, y)
        ask = denoiser(path, y)
        sample(ask, path, name, steps, "trailing", x=start, y=degraded, seed=4, on_step=remember)
        ax.plot(times, torch.stack(states), lw=1.3, marker="o" if steps == 10 else None, ms=2.5)
        ax.axhline(y, color="0.6", lw=0.8, ls="--")
        ax.set_title(f"{name}, {steps} steps", fontsize=10)
        ax.set_xlabel("t", fontsize=9)
        ax.invert_xaxis()
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("x (dashed: degraded input)", fontsize=9)
    save(figure, file)


def inversion(file: FilePath) -> None:
    """Eight numbers encoded in 12 steps and decoded again, with DDIM and with BDIA."""
    figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.0), sharey=True)
    x0 = torch.tensor([-1.45, -1.2, -0.95, -0.2, 0.2, 0.6, 1.1, 1.5], dtype=torch.float64)[:, None]
    grid = grid_of(EDM, 12)
    for ax, name in zip(axes, ("ddim", "bdia"), strict=True):
        there = [(0.0, x0)]
        back: list[tuple[float, Tensor]] = []
        found = encode(denoiser(EDM), x0, EDM, name, grid=grid, on_step=partial(_remember, there))
        back += [(t, state) for t, state in zip(grid, found.states, strict=False)]
        again = decode(denoiser(EDM), found, on_step=partial(_remember, back))
        for run, style in (
            (there, {"color": "0.65", "lw": 2.6}),
            (back, {"lw": 1.1, "marker": "o", "ms": 2.5}),
        ):
            levels = np.array([t for t, _ in run])
            states = torch.cat([x for _, x in run], dim=1).T.numpy() / np.sqrt(1 + levels**2)[:, None]
            ax.plot(np.arcsinh(levels * 20), states, **style)
        ax.set_title(f"{name}: largest error {float((again - x0).abs().max()):.1e}", fontsize=10)
        _sigma_axis(ax)
    axes[0].set_ylabel("z / √(a² + σ²)", fontsize=9)
    save(figure, file)


def _remember(run: list[tuple[float, Tensor]], info: StepInfo) -> None:
    run.append((float(info.t), info.x.clone()))


def _sigma_axis(ax: plt.Axes) -> None:
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
    for name, make in {**makers, "mean-reverting": mean_reverting, "inversion": inversion}.items():
        make(folder / f"{name}.svg")


if __name__ == "__main__":
    main()
