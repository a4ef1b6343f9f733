"""Pictures that are not a row of solvers: mean reversion, inversion, guidance, search."""

from functools import partial
from pathlib import Path as FilePath

import matplotlib.pyplot as plt
import numpy as np
import torch
from tools.line_mixture import EDM, MEAN, NOISIEST, STARTS, STD, denoiser, grid_of, save, sigma_axis
from torch import Tensor

from fewstep.core import Denoiser, Guided, grids, paths, sample, solvers
from fewstep.core.encoding import decode, encode
from fewstep.core.search import Evolution, TuneSettings, tune
from fewstep.core.step_info import StepInfo


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
        sigma_axis(ax)
    axes[0].set_ylabel("z / √(a² + σ²)", fontsize=9)
    save(figure, file)


def _remember(run: list[tuple[float, Tensor]], info: StepInfo) -> None:
    run.append((float(info.t), info.x.clone()))


def guidance(file: FilePath) -> None:
    """Trajectories towards one Gaussian of the mixture, with growing guidance."""
    figure, axes = plt.subplots(1, 4, figsize=(12.0, 3.0), sharey=True)
    grid = grid_of(EDM, 12)
    choices = (
        ("no label", 0.0, None),
        ("label", 1.0, None),
        ("scale 4", 4.0, None),
        ("scale 4, σ in (0.2, 2)", 4.0, (0.2, 2.0)),
    )
    for ax, (title, scale, interval) in zip(axes, choices, strict=True):
        label = Denoiser(_labelled, EDM).given(label=torch.tensor([1]))
        run = [(grid[0], STARTS * NOISIEST)]
        denoise = Guided(label, scale, {"label": 0}, interval=interval)
        sample(denoise, solver="dpmpp-2m", grid=grid, x=run[0][1], on_step=partial(_remember, run))
        levels = np.array([t for t, _ in run])
        states = torch.cat([x for _, x in run], dim=1).T.numpy() / np.sqrt(1 + levels**2)[:, None]
        ax.plot(np.arcsinh(levels * 20), states, lw=1.3, marker="o", ms=2.5)
        ax.set_title(title, fontsize=10)
        sigma_axis(ax)
    axes[0].set_ylabel("z / √(a² + σ²)", fontsize=9)
    save(figure, file)


def _labelled(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """x0 of the mixture (label 0) or of its third Gaussian (label 1); the path scales what it tells."""
    sigma = torch.exp(4 * t.double())[:, None]
    x = x * (sigma**2 + EDM.sigma_data**2).sqrt()
    alone = MEAN[2] + STD[2] ** 2 / (STD[2] ** 2 + sigma**2) * (x - MEAN[2])
    return torch.where(label[:, None] == 1, alone, denoiser(EDM)(x, sigma[:, 0]))


def search(file: FilePath) -> None:
    """Where a tuned plan and untuned ones ask the network."""
    settings = TuneSettings(
        samples=64, evolution=Evolution(population=24, generations=8, parents=8, crossovers=10, mutations=12)
    )
    figure, ax = plt.subplots(figsize=(5.6, 3.0))
    tuned = tune(denoiser(EDM), EDM, 6, shape=(1,), settings=settings, dtype=torch.float64)
    plans = {"tuned": tuned.plan}
    plans |= {
        grid: solvers.get("dpmpp-2m").compile(EDM, grids.get(grid)(EDM, 6)) for grid in ("logsnr", "karras")
    }
    for name, plan in plans.items():
        asked = [float(row.t) for row in plan.rows if row.ask and isinstance(row.t, float)]
        ax.semilogy(range(1, len(asked) + 1), asked, marker="o", ms=4, lw=1.2, label=name)
    ax.set_xlabel("network call", fontsize=9)
    ax.set_ylabel("σ", fontsize=9)
    ax.legend(frameon=False, fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
    save(figure, file)
