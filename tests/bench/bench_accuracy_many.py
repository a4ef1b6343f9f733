"""Error on GM-A's EDM track with 30 to 100 calls: `python -m tests.bench.bench_accuracy_many [--write]`.

As `bench_accuracy`, for the solvers between which one chooses there. `--write` puts the table into
docs/accuracy.md.
"""

import argparse

import torch

from fewstep.core import solvers
from tests.bench.bench_accuracy import PAGE, put
from tests.core import gm_a

NAMES = (
    "unipc-4", "unipc-3", "lambda-ab-3", "lambda-ab-2", "dpm-3m", "dpmpp-3m", "dpmpp-2m", "ghvb", "ipndm-3",
    "abm-3", "dpmpp-3s", "rho-kutta3", "rho-rk4", "heun",
)  # fmt: skip
BUDGETS = (30, 50, 100)


def row(name: str) -> str:
    """A line of the table: rms / median on the grid with the least median."""
    cells = []
    for budget in BUDGETS:
        found = [
            error
            for grid in ("logsnr", "karras")
            for final in ("clean", "t_min")
            if (error := gm_a.measured(gm_a.TRACKS["edm"], solvers.get(name), grid, budget, final))
        ]
        cells.append(str(min(found, key=lambda error: error.median)))
    return f"| `{name}` | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/accuracy.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    head = "| sampler | " + " | ".join(f"{budget} calls" for budget in BUDGETS) + " |"
    lines = [head, "| --- |" + " --- |" * len(BUDGETS), *map(row, NAMES)]
    print("\n".join(lines))
    if options.write:
        PAGE.write_text(put(PAGE.read_text("utf-8"), "many", lines), "utf-8")


if __name__ == "__main__":
    main()
