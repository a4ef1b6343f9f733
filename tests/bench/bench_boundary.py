"""What the best start (optimal boundary conditions) gains over drawn ones, at several numbers of calls.

    python -m tests.bench.bench_boundary MODEL --references FOLDER --photographs FOLDER [--calls 4 10 20]
        [--save FOLDER] [--json FILE]

The start is searched once, with the middle of every reference photograph and `--search` calls, and used for
all numbers of calls on the middles of other photographs, beside the mean over `--draws` drawn starts. PSNR is
of RGB in 8 bit. `--save` writes it beside a checkpoint.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fewstep.core.noise import NoiseField
from fewstep.restoration.boundary import Boundary, optimize_boundary
from fewstep.restoration.data import list_images, read_rgb, reduce_image, to_signed
from fewstep.restoration.degradations import degradation
from fewstep.restoration.methods.base import RestorationModel
from fewstep.restoration.methods.loading import load_model
from fewstep.restoration.task_recipe import recipe_for
from fewstep.restoration.tiles import TileNoise

HEAD = "| calls | drawn: mean ± s.d. over starts (dB) | best (dB) | gain (dB) |\n|---|---|---|---|"
Pairs = Sequence[tuple[Tensor, Tensor]]


def pairs_of(model: RestorationModel, folder: Path, side: int, count: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and truths (3, h, w) in [-1, 1], the k-th photograph degraded with the k-th seed."""
    found = []
    for index, file in enumerate(list_images(folder)[:count]):
        image = read_rgb(file)
        top, left = ((length - side) // 2 for length in image.shape[:2])
        truth = np.ascontiguousarray(image[top : top + side, left : left + side])
        if model.scale > 1:
            bad = reduce_image(truth, model.scale)
        else:
            recipe = recipe_for(model.tasks[0])
            made = degradation(recipe.degradation["name"])(truth, np.random.default_rng(index))
            bad = model.preparation(made.lq)
        found.append((to_signed(bad[None])[0], to_signed(truth[None])[0]))
    return found


def psnr(
    model: RestorationModel,
    pairs: Pairs,
    calls: int,
    solver: str,
    seed: int,
    boundary: Boundary | None = None,
) -> float:
    """Mean over photographs, in dB."""
    values = []
    for index, (lq, truth) in enumerate(pairs):
        noise = TileNoise(NoiseField(1000 * seed + index, model.state_channels), [(0, 0)], model.state_ratio)
        begun = noise if boundary is None else boundary.over(noise)
        made = model.restore(lq[None], mode="sample", steps=calls, solver=solver, noise=begun)[0]
        error = (made.add(1).mul(127.5).round() - truth.add(1).mul(127.5).round()).square().mean()
        values.append(float(10 * torch.log10(255**2 / error)))
    return float(np.mean(values))


def main() -> None:
    """Search, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--references", type=Path, required=True, help="photographs for the search")
    parser.add_argument("--photographs", type=Path, required=True, help="photographs to measure with")
    parser.add_argument("--calls", type=int, nargs="+", default=[4, 10, 20])
    parser.add_argument("--search", type=int, default=4, help="calls in the search")
    parser.add_argument("--solver", help="rule of the steps (default: the model's)")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--count", type=int, default=16, help="photographs of each folder")
    parser.add_argument("--side", type=int, default=128, help="of the squares, in pixels of the truth")
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    model = load_model(given.model).eval()
    solver = model.solver_of(given.solver)
    references = pairs_of(model, given.references, given.side, given.count)
    found = optimize_boundary(
        model, references, given.candidates, batch=8, steps=given.search, solver=solver, halvings=3
    )
    print(f"{given.model}, {solver}: {given.candidates} candidates, searched with {given.search} calls")
    if given.save is not None:
        found.save(given.save)
    held = pairs_of(model, given.photographs, given.side, given.count)
    print(HEAD)
    rows = {}
    for calls in given.calls:
        drawn = [psnr(model, held, calls, solver, seed) for seed in range(1, given.draws + 1)]
        best = psnr(model, held, calls, solver, 1, found)
        rows[calls] = {"drawn": drawn, "best": best}
        mean, spread = float(np.mean(drawn)), float(np.std(drawn, ddof=1))
        print(f"| {calls} | {mean:.3f} ± {spread:.3f} | {best:.3f} | {best - mean:+.3f} |", flush=True)
    if given.json is not None:
        given.json.write_text(json.dumps({"model": given.model, "solver": solver, "rows": rows}, indent=1))


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
