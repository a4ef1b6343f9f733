"""`fewstep pairs`: samples of a model with the seeds of their noise, for reflow and distillation."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import typer

from fewstep.core import solvers
from fewstep.core.cli.dataset import load_model
from fewstep.core.cli.options import resolve_device
from fewstep.core.cli.progress import Bar
from fewstep.core.objectives.pairs import ADAPTIVE, Progress, make_pairs
from fewstep.core.sampling import Sampling


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Args:
        model: shipped name, folder (ours or that of a diffusers pipeline) or Hub id.
        output: folder of the pairs.
        count: of pairs.
        seed: of the first.
        solver: name of a solver; None: the adaptive one without steps, "heun" with steps.
        steps: of the solver, even on the normalised clock; None: 100 for a solver that is not adaptive.
        guidance: scale of classifier-free guidance; 1: none.
        batch: samples that are solved together.
        device: as --device has it.
        as_json: print the report as JSON.
    """

    model: str
    output: str
    count: int = 50_000
    seed: int = 0
    solver: str | None = None
    steps: int | None = None
    guidance: float = 1.0
    batch: int = 256
    device: str = "auto"
    as_json: bool = False


def run(request: Request) -> int:
    """Make the pairs that are missing and say where they are.

    Returns:
        The exit code.

    Raises:
        typer.BadParameter: the command line cannot be meant (exit code 2).
        ValueError: the pairs cannot be made; the message says why (exit code 1).
    """
    for name in ("count", "batch"):
        if getattr(request, name) < 1:
            raise typer.BadParameter(f"{getattr(request, name)} is below 1", param_hint=f"--{name}")
    sampling = _sampling(request)
    device = resolve_device(request.device)
    model = load_model(request.model).to(device)
    begun = time.monotonic()
    reused = 0
    with Bar(1, "pairs") as bar:

        def show(progress: Progress) -> None:
            nonlocal reused
            reused = progress.reused
            bar.start(f"{progress.done} of {progress.count} pairs")
            bar.tick(progress.done / progress.count)

        pairs = make_pairs(
            model,
            Path(request.output).expanduser(),
            request.count,
            seed=request.seed,
            sampling=sampling,
            guidance=request.guidance,
            batch=request.batch,
            on_progress=show,
        )
        bar.finish(f"{len(pairs)} pairs")
    seconds = time.monotonic() - begun
    if request.as_json:
        made = {"made": len(pairs) - reused, "reused": reused, "seconds": round(seconds, 3)}
        report = {"model": request.model, "folder": str(pairs.folder), **vars(pairs.manifest), **made}
        print(json.dumps(report, indent=2))
    else:
        print(f"{pairs.folder}: {len(pairs)} pairs, {reused} of them from before, in {seconds:.0f} s")
    return 0


def _sampling(request: Request) -> Sampling:
    if request.solver is not None and request.solver not in solvers.names():
        known = ", ".join(solvers.names())
        raise typer.BadParameter(f"{request.solver!r} is not one of {known}", param_hint="--solver")
    if request.steps is not None and request.steps < 1:
        raise typer.BadParameter(f"{request.steps} is below 1", param_hint="--steps")
    solver = request.solver or (ADAPTIVE.solver if request.steps is None else "heun")
    if solver == ADAPTIVE.solver:
        if request.steps is not None:
            raise typer.BadParameter(f"{solver} chooses its own steps", param_hint="--steps")
        return ADAPTIVE
    return Sampling("ode", request.steps or 100, spacing="clock", solver=solver)
