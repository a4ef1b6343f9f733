"""What a tuned plan gains over every untuned one: `python -m tests.bench.bench_search gm`.

`gm` is the closed-form problem GM-A on the EDM path, `digits` the shipped model. Every budget keeps its state
in the output folder: an interrupted run goes on.
"""

import argparse
from pathlib import Path

import torch

from fewstep.core import paths
from fewstep.core.models import DiffusionModel
from fewstep.core.search import Evolution, Tuned, TuneSettings, tune
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


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="Tuned and untuned plans on fresh noise.")
    parser.add_argument("problem", choices=("gm", "digits"))
    parser.add_argument("--budgets", type=int, nargs="+", default=[5, 8, 10])
    parser.add_argument("--output", type=Path, default=Path("runs/search"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for budget in options.budgets:
        folder = options.output / options.problem
        with torch.inference_mode():
            tuned = tuned_plan(options.problem, budget, folder / f"state-{budget}.json")
        tuned.save(folder)
        print(f"{tuned.table()}\ngain {tuned.gain:.2f}, reference exact to {tuned.reference_error:.1g}\n")


if __name__ == "__main__":
    main()
