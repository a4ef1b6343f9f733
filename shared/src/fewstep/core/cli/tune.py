"""`fewstep tune`: the plan that suits one model at one number of network calls."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from fewstep.core.checkpoints import CheckpointError, resolve
from fewstep.core.cli.data import read_samples
from fewstep.core.cli.options import resolve_device
from fewstep.core.cli.progress import Bar
from fewstep.core.models import DiffusionModel
from fewstep.core.search import OBJECTIVES, Tuned, TuneProgress, TuneSettings, tune

ROWS = 10


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Args:
        model: shipped name, folder or Hub id.
        budget: network calls.
        data: file or folder of real samples, for the distances to data.
        objective: a name of OBJECTIVES.
        samples: start noises.
        max_minutes: limit of the whole; None: none.
        seed: of noise and search.
        device: as --device has it.
        as_json: print the report as JSON.
        output: folder of the plan; None: that of the checkpoint.
    """

    model: str
    budget: int
    data: str | None = None
    objective: str = "reference"
    samples: int = 128
    max_minutes: float | None = None
    seed: int = 0
    device: str = "auto"
    as_json: bool = False
    output: str | None = None


def run(request: Request) -> int:
    """Tune, write the plan, and print the table.

    Returns:
        The exit code.

    Raises:
        typer.BadParameter: the command line cannot be meant (exit code 2).
        ValueError: the search cannot be done; the message says why (exit code 1).
    """
    if request.objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise typer.BadParameter(f"{request.objective!r} is not one of {known}", param_hint="--objective")
    if request.objective != "reference" and request.data is None:
        raise typer.BadParameter(f"objective {request.objective} needs --data", param_hint="--objective")
    if request.objective == "reference" and request.data is not None:
        raise typer.BadParameter(
            "the objective reference compares with no data; take --objective energy", param_hint="--data"
        )
    device = resolve_device(request.device)
    try:
        folder = resolve(request.model, DiffusionModel.package)
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint="MODEL") from error
    model = DiffusionModel.from_pretrained(folder).to(device)
    data = None if request.data is None else read_samples(request.data, model.shape)
    target = _writable_folder(request, folder)
    state = target / f".tune-{request.budget}-{request.objective}.json"
    tuned = _tune(request, model, data, device, state)
    file = tuned.save(target)
    if tuned.finished:
        state.unlink(missing_ok=True)
    _show(request, tuned, file, beside=target == folder)
    return 0


def _writable_folder(request: Request, folder: Path) -> Path:
    """Where the plan goes: -o, the checkpoint's folder, or, where that is read-only, one made here."""
    wanted = folder if request.output is None else Path(request.output).expanduser()
    try:
        return _tried(wanted)
    except OSError as error:
        if request.output is not None:
            reason = f"{wanted}: plans cannot be written there: {error.strerror or error}"
            raise typer.BadParameter(reason, param_hint="--output") from error
    return _tried(Path(f"{Path(request.model).name}-plans"))


def _tried(folder: Path) -> Path:
    from tempfile import TemporaryFile

    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=folder):
        return folder


def _tune(
    request: Request, model: DiffusionModel, data: torch.Tensor | None, device: torch.device, state: Path
) -> Tuned:
    settings = TuneSettings(samples=request.samples, batch=256, max_minutes=request.max_minutes)
    with Bar(1, "tune") as bar:

        def show(info: TuneProgress) -> None:
            best = "" if info.best is None else f", best {info.best:.3g}"
            known = "" if info.untuned is None else f" (untuned {info.untuned:.3g})"
            bar.start(f"{info.stage}{best}{known}")
            bar.tick(info.fraction)

        with torch.inference_mode():
            tuned = tune(
                model.denoiser(),
                budget=request.budget,
                objective=request.objective,
                shape=model.shape,
                data=data,
                settings=settings,
                seed=request.seed,
                state=state,
                on_progress=show,
                device=device,
            )
        bar.finish(f"{tuned.tried} plans tried in {tuned.seconds:.0f} s")
    return tuned


def _show(request: Request, tuned: Tuned, file: Path, beside: bool) -> None:
    if request.as_json:
        report: dict[str, Any] = {"model": request.model, "plan": str(file), **tuned.report()}
        print(json.dumps(report, indent=2, default=str))
    else:
        Console(markup=False, highlight=False, soft_wrap=True).print(_table(tuned))
        score, best = tuned.measured.score, tuned.untuned[0].score
        print(f"{file}: {score:.4g} on fresh noise, the best of {tuned.ranked} untuned plans {best:.4g}")
    if not tuned.finished:
        print("fewstep tune: stopped by --max-minutes; the same command goes on from here", file=sys.stderr)
    if request.output is None and not beside:
        print(
            f"fewstep tune: the folder of {request.model} cannot be written; the plan is in {file.parent}",
            file=sys.stderr,
        )


def _table(tuned: Tuned) -> Table:
    table = Table(box=None, pad_edge=False)
    for name, side in (("plan", "left"), ("grid", "left"), ("calls", "right"), (tuned.objective, "right")):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for one in (tuned.measured, *tuned.untuned[:ROWS]):
        table.add_row(one.solver, one.grid, str(one.calls), f"{one.score:.4g}")
    if tuned.ranked > ROWS:
        table.add_row(f"… and {tuned.ranked - ROWS} more", "", "", "")
    return table
