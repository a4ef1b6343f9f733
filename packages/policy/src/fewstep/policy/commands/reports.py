"""What a training command says at its end."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pathlib import Path

    from fewstep.core.training import TrainResult

ENDS = {
    "max_steps": "Done",
    "max_minutes": "Done, as the time is over",
    "no_improvement": "Done, as it no longer improves",
    "interrupted": "Interrupted",
}


def report(result: TrainResult, output: Path, as_json: bool) -> None:
    """Say how a run ended and what to do next.

    Args:
        result: of the run.
        output: folder of the run.
        as_json: for a machine.
    """
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    metrics = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in result.metrics.items())
    said = f"{ENDS[result.stopped]}: {result.step} updates in {result.minutes:.1f} minutes"
    typer.echo(f"{said}; {metrics}." if metrics else f"{said}.")
    if result.stopped == "interrupted":
        typer.echo("The same command goes on from here.")
    else:
        typer.echo(f"Try it: fewstep policy eval --model {output / 'model'}")
