"""Sampler error on a trained network: the digits that the core ships, plain and with guidance.

    python -m tests.bench.bench_digits [--write]

The error of a run is its distance to the same network's own trajectory, solved with 60 steps of a
fourth-order method: median over 50 samples of the root mean square over pixels (in [-1, 1]). Each solver has
the better one of two grids, log-SNR (L) and Karras (K). `--write` puts the table into docs/solvers.md.
"""

import argparse
from pathlib import Path

import torch
from tools.solver_pages import write_between
from torch import Tensor

from fewstep.core import Guided, sample, solvers
from fewstep.core.models import DiffusionModel
from fewstep.core.wrapping import BaseDenoiser

NAMES = (
    "ddim", "heun", "dpm-2m", "dpm-3m", "dpmpp-2m", "dpmpp-3m", "dpmpp-2s", "unipc-2", "unipc-3", "deis",
    "lambda-ab-2", "ipndm-3", "ghvb", "hb", "dpmpp-2m-hb", "unipc-hb", "s-pndm", "evodiff",
)  # fmt: skip
BUDGETS = (5, 8, 10, 15, 20)
SCALES = (1.0, 4.0)
MARKERS = ("<!-- digits: python -m tests.bench.bench_digits --write -->", "<!-- end of digits -->")


def main() -> None:
    """Measure and print, or write, the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the table into docs/solvers.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    text = "\n\n".join(table(scale) for scale in SCALES)
    print(text)
    if arguments.write:
        write_between(Path(__file__).parents[2] / "docs" / "solvers.md", text, MARKERS)


def table(scale: float) -> str:
    """The errors at one guidance scale."""
    model = DiffusionModel.from_pretrained("digits")
    labels = torch.arange(10).repeat(5)
    denoise = Guided(model.denoiser(label=labels), scale, {"label": model.null_label})
    noise = torch.randn(50, *model.shape, generator=torch.Generator().manual_seed(7))
    start = noise * model.path.coefficients(model.path.t_max)[2]
    exact = sample(denoise, solver="rho-rk4", steps=60, grid="karras", x=start)
    title = "without guidance" if scale == 1.0 else f"classifier-free guidance, scale {scale:g}"
    lines = [
        f"| digits, {title} | " + " | ".join(f"{budget} calls" for budget in BUDGETS) + " |",
        "| --- |" + " --- |" * len(BUDGETS),
    ]
    rows = {name: [best(denoise, name, budget, start, exact) for budget in BUDGETS] for name in NAMES}
    least = [min(row[i][0] for row in rows.values()) for i in range(len(BUDGETS))]
    for name, row in rows.items():
        cells = [
            f"**{error:.3f}** {grid}" if error <= 1.1 * low else f"{error:.3f} {grid}"
            for (error, grid), low in zip(row, least, strict=True)
        ]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def best(denoise: BaseDenoiser, name: str, budget: int, start: Tensor, exact: Tensor) -> tuple[float, str]:
    """(median error, letter of the grid) with the most steps that the calls allow."""
    found = []
    for grid in ("logsnr", "karras"):
        x = sample(denoise, solver=name, steps=steps_for(name, budget), grid=grid, x=start)
        found.append(((x - exact).square().flatten(1).mean(1).sqrt().median().item(), grid[0].upper()))
    return min(found)


def steps_for(name: str, budget: int) -> int:
    """The most steps that cost no more than the budget."""
    two = {"heun": (budget + 1) // 2, "dpmpp-2s": (budget + 1) // 2, "s-pndm": budget - 1}
    return two.get(name, budget) if name in solvers.names() else budget


if __name__ == "__main__":
    main()
