"""`fewstep restore train`: the recipes of the shipped checkpoints, on the photographs of a folder."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.core.cli.options import AsJson

if TYPE_CHECKING:
    from fewstep.core.training import TrainResult


def train(
    data: Annotated[Path, typer.Option("--data", help="Folder of photographs to train on.")],
    validation: Annotated[Path, typer.Option("--validation", help="Folder of photographs to validate on.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; an old run goes on.")],
    task: Annotated[
        str, typer.Option("--task", help="super-resolution, or the name of a shipped recipe's task.")
    ] = "super-resolution",
    pairs: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--pairs", help="Folders of real bad and good photographs of the same names."),
    ] = None,
    validation_pairs: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--validation-pairs", help="Such pairs that are never trained on."),
    ] = None,
    start: Annotated[
        str | None, typer.Option("--start", help="Model to fine-tune: name or folder.", show_default="none")
    ] = None,
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
    """Train a small model of a task, or go on with a run that was stopped; Ctrl-C saves and stops."""
    from fewstep.core.training import TrainingDiverged
    from fewstep.core.weights import CheckpointError

    try:
        if task == "super-resolution":
            if pairs or validation_pairs or start:
                raise ValueError("--pairs, --validation-pairs and --start are for tasks that keep the size")
            result = _super_resolution(data, validation, output, config, max_minutes, device)
        else:
            result = _same_size(
                task, data, validation, output, pairs, validation_pairs, start, config, max_minutes, device
            )
    except (OSError, TypeError, ValueError, CheckpointError) as error:
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


def _super_resolution(
    data: Path, validation: Path, output: Path, config: Path | None, max_minutes: float | None, device: str
) -> "TrainResult":
    from .train import SuperResolutionRecipe
    from .train import train as run

    recipe = SuperResolutionRecipe() if config is None else SuperResolutionRecipe.load(config)
    return run(recipe, data, validation, output, max_minutes, device)


def _same_size(
    task: str,
    data: Path,
    validation: Path,
    output: Path,
    pairs: tuple[Path, Path] | None,
    validation_pairs: tuple[Path, Path] | None,
    start: str | None,
    config: Path | None,
    max_minutes: float | None,
    device: str,
) -> "TrainResult":
    from .methods.base import PathModel
    from .methods.loading import load_model
    from .recipes import load_recipe
    from .task_recipe import TaskRecipe, recipe_for
    from .task_training import train_task

    recipe = recipe_for(task) if config is None else load_recipe(TaskRecipe, config)
    begin = None if start is None else load_model(start)
    if begin is not None and not isinstance(begin, PathModel):
        raise ValueError(f"--start: {start} is a {type(begin).__name__}, which this recipe does not train")
    return train_task(
        recipe,
        data,
        validation,
        output,
        pairs=pairs,
        validation_pairs=validation_pairs,
        start=begin,
        max_minutes=max_minutes,
        device=device,
    )
