"""`fewstep restore train`: the recipe of the shipped checkpoint, on the photographs of a folder."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fewstep.core.cli.options import AsJson


def train(
    data: Annotated[Path, typer.Option("--data", help="Folder of photographs to train on.")],
    validation: Annotated[Path, typer.Option("--validation", help="Folder of photographs to validate on.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; an old run goes on.")],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", help="JSON file with fields of the recipe.", show_default="the shipped model's"
        ),
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", min=0.01, help="Minutes, over all parts of the run.")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto or cpu.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Train a ×4 model, or go on with a run that was stopped; Ctrl-C saves and stops."""
    from fewstep.core.training import TrainingDiverged

    from .train import SuperResolutionRecipe
    from .train import train as run

    try:
        recipe = SuperResolutionRecipe() if config is None else SuperResolutionRecipe.load(config)
        result = run(recipe, data, validation, output, max_minutes, device)
    except (OSError, TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    except (ImportError, TrainingDiverged) as error:
        typer.echo(f"fewstep restore train: {error}", err=True)
        raise typer.Exit(1) from error
    if as_json:
        typer.echo(json.dumps(asdict(result)))
        return
    metrics = ", ".join(f"{name} {value:.4g}" for name, value in result.metrics.items())
    typer.echo(f"{result.stopped} after {result.step} steps, {result.minutes:.1f} minutes. {metrics}")
    if result.stopped == "interrupted":
        typer.echo("The same command goes on from here.")
    else:
        typer.echo(f"Try it: fewstep restore photo.jpg --model {output / 'model'} -o out/")
