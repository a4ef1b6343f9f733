"""`fewstep compare`: quality against network calls, for a set of checkpoints and samplers."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from fewstep.core import solvers
from fewstep.core.cli.compare_page import draw_chart, write_page
from fewstep.core.cli.dataset import Model, load_model, read_dataset
from fewstep.core.cli.options import resolve_device
from fewstep.core.cli.outputs import prepare_folders
from fewstep.core.cli.progress import Bar
from fewstep.core.comparison import Comparison, Measurement, feature_distance
from fewstep.core.files import atomic_path
from fewstep.core.metrics import METRICS
from fewstep.core.models import DiffusionModel


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Args:
        models: shipped names, folders or Hub ids.
        data: file or folder of real samples.
        calls: numbers of network calls, separated by commas.
        solvers: names, separated by commas; empty: each model's own.
        samples: at most so many real samples are compared with.
        features: a checkpoint in whose features a Fréchet distance is taken besides; None: none.
        seed: of the first noise.
        device: as --device has it.
        as_json: print the report as JSON.
        output: folder of the report; None: none is written.
    """

    models: tuple[str, ...]
    data: str
    calls: str = "1,2,4,8,18"
    solvers: str = ""
    samples: int = 1024
    features: str | None = None
    seed: int = 0
    device: str = "auto"
    as_json: bool = False
    output: str | None = None


def run(request: Request) -> int:
    """Measure, print the table and write the report.

    Returns:
        The exit code.

    Raises:
        typer.BadParameter: the command line cannot be meant (exit code 2).
        ValueError: the models cannot be compared; the message says why (exit code 1).
    """
    calls = _numbers(request.calls)
    names = _solvers(request.solvers)
    device = resolve_device(request.device)
    models: dict[str, Model] = {}
    for name in request.models:
        models[name.rstrip("/") or name] = load_model(name).to(device)
    first = next(iter(models.values()))
    data = {key: value[: request.samples] for key, value in read_dataset(request.data, first.shape).items()}
    x0, told = data.pop("x0").float(), {key: value for key, value in data.items() if key != "noise"}
    distances = dict(METRICS)
    if request.features is not None:
        judge = load_model(request.features, "--features")
        if not isinstance(judge, DiffusionModel):
            raise typer.BadParameter(
                "features are had from our own checkpoints alone", param_hint="--features"
            )
        distances["feature-frechet"] = feature_distance(judge.to(device))
    comparison = Comparison(x0, told, calls, names, distances, request.seed)
    folder = None if request.output is None else Path(request.output).expanduser()
    if folder is not None:
        prepare_folders([folder / "index.html"])
    found = _measure(comparison, models)
    floor = comparison.floor()
    report = _report(request, len(x0), floor, found)
    if folder is not None:
        _write(folder, report, found, floor)
    if request.as_json:
        print(json.dumps(report, indent=2))
    else:
        Console(markup=False, highlight=False, soft_wrap=True).print(_table(found, floor))
    if folder is not None:
        print(f"fewstep compare: the report is {folder / 'index.html'}", file=sys.stderr)
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1 or numbers[-1] > 1000:
        raise typer.BadParameter(
            f"{text!r} is not numbers from 1 to 1000 such as 1,2,4", param_hint="--calls"
        )
    return numbers


def _solvers(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in solvers.names():
            known = ", ".join(solvers.names())
            raise typer.BadParameter(f"{name!r} is not one of {known}", param_hint="--solvers")
        if isinstance(solvers.get(name), solvers.StepwiseSolver):
            raise typer.BadParameter(f"{name} has no fixed number of network calls", param_hint="--solvers")
    return names


def _measure(comparison: Comparison, models: dict[str, Model]) -> list[Measurement]:
    found = []
    with Bar(len(models), "compare") as bar:
        for name, model in models.items():
            bar.start(name)
            total = len(comparison.samplers(model))
            for number, measurement in enumerate(comparison.of(name, model), 1):
                found.append(measurement)
                bar.tick(number / total)
            bar.finish(f"{name}: {total} samplers")
    return found


def _table(found: list[Measurement], floor: dict[str, float]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("model", "sampler", "calls", *floor, "ms"):
        table.add_column(name, justify="left" if name in ("model", "sampler") else "right")
    for one in found:
        values = (f"{one.metrics[name]:.4g}" for name in floor)
        table.add_row(one.model, one.sampler, str(one.calls), *values, f"{one.milliseconds:.2f}")
    table.add_row("half of the data", "", "", *(f"{value:.4g}" for value in floor.values()), "")
    return table


def _report(
    request: Request, count: int, floor: dict[str, float], found: list[Measurement]
) -> dict[str, Any]:
    rows = [
        {
            "model": one.model,
            "sampler": one.sampler,
            "calls": one.calls,
            "metrics": _plain(one.metrics),
            "milliseconds": round(one.milliseconds, 4),
        }
        for one in found
    ]
    return {
        "data": request.data,
        "samples": count,
        "seed": request.seed,
        "features": request.features,
        "halves_of_the_data": _plain(floor),
        "measured": rows,
    }


def _plain(metrics: Any) -> dict[str, float | None]:
    """JSON knows no infinity."""
    return {name: value if abs(value) < float("inf") else None for name, value in metrics.items()}


def _write(folder: Path, report: dict[str, Any], found: list[Measurement], floor: dict[str, float]) -> None:
    chart = draw_chart(found, floor)
    for name, text in (
        ("compare.json", json.dumps(report, indent=2) + "\n"),
        ("compare.svg", chart),
        ("index.html", write_page(report, found, floor, chart)),
    ):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
