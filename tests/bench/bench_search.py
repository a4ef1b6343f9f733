"""What a tuned plan gains over every untuned one: `python -m tests.bench.bench_search gm`.

`gm` is the closed-form problem GM-A on the EDM path, `digits` the shipped model; `boss` compares BOSS grids
for DDIM with plain ones on GM-A. Every budget keeps its state in the output folder: an interrupted run
goes on.
"""

import argparse
from pathlib import Path

import torch

from fewstep.core import paths, sample
from fewstep.core.models import DiffusionModel
from fewstep.core.search import Evolution, Tuned, TuneSettings, boss_times, tune
from fewstep.core.search.objectives import rmse
from tests.core.goldens import Golden

SMALL = TuneSettings(
    samples=24,
    statistic="geometric",
    evolution=Evolution(
        generations=25,
        population=40,
        parents=12,
        crossovers=20,
        mutations=20,
        width=0.1,
        final_width=0.003,
    ),
)
"""For one CPU core: a run of the digits model takes 1 ms per sample and call."""


def tuned_plan(problem: str, budget: int, state: Path) -> Tuned:
    """Tune one problem."""
    if problem == "gm":
        path = paths.EDM()
        denoise = Golden("gm_accuracy").mixture().denoiser(path)
        return tune(denoise, path, budget, shape=(3, 4, 4), dtype=torch.float64, state=state)
    model = DiffusionModel.from_pretrained("digits")
    return tune(model.denoiser(), None, budget, shape=model.shape, settings=SMALL, state=state)


def boss() -> None:
    """Geometric mean over 128 start noises of DDIM's RMSE to 400 steps of a fourth-order method."""
    mixture = Golden("gm_accuracy").mixture()
    noise = torch.randn(256, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    print("| path | grid | 5 | 8 | 10 | 20 |\n" + "| --- " * 6 + "|")
    for name, path in (("EDM", paths.EDM()), ("flow", paths.RectifiedFlow())):
        denoise, scale = mixture.denoiser(path), path.coefficients(path.t_max)[2]
        found, x = scale * noise[:128], scale * noise[128:]
        exact = sample(denoise, path, "rho-rk4", 400, "karras", x=x)

        def error(grid, budget: int, denoise=denoise, path=path, x=x, exact=exact) -> float:
            end = sample(denoise, path, "ddim", budget, grid, x=x)
            return rmse(end, exact).log().mean().exp().item()

        for grid in ("boss", "karras", "logsnr", "uniform"):
            cells = []
            for budget in (5, 8, 10, 20):
                times = boss_times(denoise, path, budget, found) if grid == "boss" else grid
                cells.append(f"{error(times, budget):.3f}")
            print(f"| {name} | {grid} | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Tuned and untuned plans on fresh noise.")
    parser.add_argument("problem", choices=("gm", "digits", "boss"))
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 8, 10])
    parser.add_argument("--output", type=Path, default=Path("runs/search"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.problem == "boss":
        boss()
        return
    for budget in options.budgets:
        folder = options.output / options.problem
        with torch.inference_mode():
            tuned = tuned_plan(options.problem, budget, folder / f"state-{budget}.json")
        tuned.save(folder)
        print(f"{tuned.table()}\ngain {tuned.gain:.2f}, reference exact to {tuned.reference_error:.1g}\n")


if __name__ == "__main__":
    main()
