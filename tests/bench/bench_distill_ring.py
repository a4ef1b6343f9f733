"""Every family of distillation on the ring of eight Gaussians: quality of one to four calls.

    python -m tests.bench.bench_distill_ring                      # all rows, up to three seeds: two hours
    python -m tests.bench.bench_distill_ring cd reflow --seeds 1  # some rows, one seed
    python -m tests.bench.bench_distill_ring --report             # the table of what has been measured
    python -m tests.bench.bench_distill_ring --report --write     # and put it into docs/distillation.md

The rows are those of `tests.bench.ring_rows`. Students start from a teacher that `tests.bench.ring` trains
once per seed. Measured rows are kept in runs/ring/results; delete a file to measure it again.
"""

import argparse
import json
import shutil
import statistics
import time
from typing import Any

import torch
from tools.distill_table import MEASURED, PAGE
from tools.solver_pages import write_between
from torch import Tensor

from fewstep.core import sample
from fewstep.core.models import DiffusionModel
from fewstep.core.objectives import methods
from fewstep.core.objectives.distill import Distillation
from fewstep.core.objectives.recipe import DistillRecipe
from fewstep.core.sampling import Sampling
from tests.bench import ring
from tests.bench.ring_rows import ROWS

RESULTS = ring.RUNS / "results"
MARKERS = ("<!-- ring: python -m tests.bench.bench_distill_ring -->", "<!-- end of ring -->")
SAMPLES = 200_000


def student(name: str, seed: int) -> tuple[DiffusionModel, float]:
    """The student of a row and the seconds of the processor that its training took."""
    row, folder = ROWS[name], ring.RUNS / f"{name.replace(' ', '')}-{seed}"
    known = folder / "model.safetensors"
    if known.is_file():
        return DiffusionModel.from_pretrained(folder), float("nan")
    shutil.rmtree(folder, ignore_errors=True)
    teacher = ring.teacher(row.teacher, seed) if row.teacher in ring.PATHS else student(row.teacher, seed)[0]
    method = methods.get(row.method)
    recipe = DistillRecipe.of(
        method, row.method, options=dict(row.options), seed=seed, validate_every=500,
        validation_samples=10_000, **row.recipe,
    )  # fmt: skip
    data = {"x0": ring.draw(SAMPLES, torch.Generator().manual_seed(500 + seed))}
    started = time.process_time()
    Distillation(
        teacher, method, recipe, folder, data, pairs(seed) if row.pairs else None, device="cpu"
    ).run()
    return DiffusionModel.from_pretrained(folder), time.process_time() - started


def pairs(seed: int) -> dict[str, Tensor]:
    """100,000 pairs of the flow teacher, by 100 Euler steps."""
    file = ring.RUNS / f"pairs-{seed}.pt"
    if not file.is_file():
        model = ring.teacher("flow", seed)
        noise = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(300 + seed))
        with torch.inference_mode():
            x0 = sample(model.denoiser(), solver="euler", steps=100, grid=_even(101), x=noise)
        torch.save({"x0": x0, "noise": noise}, file)
    return torch.load(file, weights_only=True)


def _even(points: int) -> list[float]:
    return torch.linspace(1, 0, points, dtype=torch.float64).tolist()


def measure(name: str, seed: int) -> dict[str, Any]:
    """The metrics of a row for every number of calls."""
    file = RESULTS / f"{name.replace(' ', '')}-{seed}.json"
    if file.is_file():
        return json.loads(file.read_text())
    model, seconds = student(name, seed)
    row, found = ROWS[name], {"seconds": seconds, "calls": {}}
    for calls in row.calls:
        chosen = model.sampling
        if calls == 2 and row.middle:
            chosen = Sampling(**{**vars(chosen), "times": row.middle})
        found["calls"][calls] = ring.quality(model, calls, seed, sampling=chosen)
    found = json.loads(json.dumps(found))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1))
    return found


def teachers(seeds: range) -> list[str]:
    """Rows of the teachers at few calls: what a student has to beat."""
    lines = []
    for kind, solver, spacing, counts in (
        ("edm", "heun", "karras", (1, 2, 3, 5, 9, 18)),
        ("flow", "euler", "clock", (1, 2, 4, 8, 32, 128)),
    ):
        for steps in counts:
            chosen = Sampling("ode", steps, spacing=spacing, solver=solver)
            found = [ring.quality(ring.teacher(kind, seed), seed=seed, sampling=chosen) for seed in seeds]
            calls = 2 * steps - 1 if solver == "heun" else steps
            lines.append(_line(f"teacher {kind}, {solver}", calls, found, None, float("nan")))
    return lines


def report(names: list[str], seeds: range) -> str:
    """The table in Markdown: medians over the seeds that were measured."""
    lines = [
        "| run | calls | SW2 | energy | inlier | mode TV | required SW2 | CPU s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *teachers(seeds),
    ]
    for name in names:
        files = [RESULTS / f"{name.replace(' ', '')}-{seed}.json" for seed in seeds]
        runs = [json.loads(file.read_text()) for file in files if file.is_file()]
        for calls in ROWS[name].calls if runs else ():
            found = [run["calls"][str(calls)] for run in runs]
            limit = ROWS[name].limit if calls == 1 else None
            seconds = statistics.median(run["seconds"] for run in runs)
            lines.append(
                _line(f"{name} ({len(runs)} seed{'s' * (len(runs) > 1)})", calls, found, limit, seconds)
            )
    return "\n".join(lines)


def fewest_calls(name: str, seeds: range) -> tuple[int, float] | None:
    """The smallest number of calls of a row, and the median of sw2 with it; None: not measured."""
    files = [RESULTS / f"{name.replace(' ', '')}-{seed}.json" for seed in seeds]
    calls = min(ROWS[name].calls)
    found = [json.loads(file.read_text())["calls"][str(calls)]["sw2"] for file in files if file.is_file()]
    return (calls, round(statistics.median(found), 4)) if found else None


def _line(name: str, calls: int, found: list[dict[str, float]], limit: float | None, seconds: float) -> str:
    middle = {key: statistics.median(one[key] for one in found) for key in found[0]}
    numbers = " | ".join(f"{middle[key]:.4f}" for key in ("sw2", "energy", "inlier", "mode_tv"))
    wanted = "" if limit is None else f"≤ {limit:g}"
    return f"| {name} | {calls} | {numbers} | {wanted} | {'' if seconds != seconds else f'{seconds:.0f}'} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", default=list(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="only print what has been measured")
    parser.add_argument("--write", action="store_true", help="put the table into the documentation")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed in range(0 if arguments.report else arguments.seeds):
        for name in arguments.rows:
            if seed >= ROWS[name].seeds:
                continue
            found = measure(name, seed)
            print(
                name, seed, {calls: round(one["sw2"], 4) for calls, one in found["calls"].items()}, flush=True
            )
    table = report(arguments.rows, range(arguments.seeds))
    print(table)
    if arguments.write:
        write_between(PAGE, table, MARKERS)
        found = {ROWS[name].method: fewest_calls(name, range(arguments.seeds)) for name in arguments.rows}
        reached = {method: figure for method, figure in found.items() if figure is not None}
        MEASURED.parent.mkdir(parents=True, exist_ok=True)
        MEASURED.write_text(json.dumps(reached, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
