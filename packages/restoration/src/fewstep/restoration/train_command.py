"""`fewstep restore train`: the recipes of the shipped checkpoints, on the photographs of a folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewstep.options import AsJson

from .catalogue import method_name

if TYPE_CHECKING:
    from fewstep.core.training import TrainResult

SUPER_RESOLUTION, COMPRESSED_SENSING = "super-resolution", "compressed-sensing"
# Tasks whose recipe is of one method.
ONLY = {SUPER_RESOLUTION: "resshift", COMPRESSED_SENSING: "idm"}


@dataclass(frozen=True)
class Asked:
    """What a training run was asked for.

    Args:
        task: of the model.
        method: of it; None: the recipe's.
        ratio: measurements per pixel; None: the recipe's.
        data, validation, output: folders.
        pairs, validation_pairs: folders of real pairs.
        start: model that is fine-tuned.
        config: file of a recipe.
        max_minutes: of training.
        device: "auto" or "cpu".

    Raises:
        ValueError: options that do not go together.
    """

    task: str
    method: str | None
    ratio: float | None
    data: Path
    validation: Path
    output: Path
    pairs: tuple[Path, Path] | None
    validation_pairs: tuple[Path, Path] | None
    start: str | None
    config: Path | None
    max_minutes: float | None
    device: str

    def __post_init__(self) -> None:
        only = ONLY.get(self.task)
        if self.ratio is not None and self.task != COMPRESSED_SENSING:
            raise ValueError(f"--ratio is for --task {COMPRESSED_SENSING}, not for {self.task}")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise ValueError(
                f"--ratio: expected measurements per pixel, more than 0 and at most 1, got {self.ratio:g}"
            )
        if only and self.method not in (None, only):
            raise ValueError(f"--method: {self.task} is trained as {only}, got {self.method!r}")
        if only and (self.pairs or self.validation_pairs):
            raise ValueError(
                "--pairs and --validation-pairs are for tasks that keep the size and begin with a "
                f"photograph, not for {self.task}"
            )
        if self.start and self.task == SUPER_RESOLUTION:
            raise ValueError(f"--start is for the other tasks, not for {self.task}")


def train(
    data: Annotated[Path, typer.Option("--data", help="Folder of photographs to train on.")],
    validation: Annotated[Path, typer.Option("--validation", help="Folder of photographs to validate on.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run; an old run goes on.")],
    task: Annotated[
        str, typer.Option("--task", help="super-resolution, or the name of a shipped recipe's task.")
    ] = SUPER_RESOLUTION,
    method: Annotated[
        str | None, typer.Option("--method", help="rddm or irsde.", show_default="the shipped model's")
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(
            "--ratio",
            help="Measurements per pixel, of compressed sensing.",
            show_default="the recipe's, 0.25",
        ),
    ] = None,
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
        asked = Asked(
            task,
            None if method is None else method_name(method),
            ratio,
            data,
            validation,
            output,
            pairs,
            validation_pairs,
            start,
            config,
            max_minutes,
            device,
        )
        run = {SUPER_RESOLUTION: _super_resolution, COMPRESSED_SENSING: _compressed_sensing}
        result = run.get(task, _same_size)(asked)
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


def _super_resolution(asked: Asked) -> TrainResult:
    from .train import SuperResolutionRecipe, train

    recipe = SuperResolutionRecipe() if asked.config is None else SuperResolutionRecipe.load(asked.config)
    return train(recipe, asked.data, asked.validation, asked.output, asked.max_minutes, asked.device)


def _compressed_sensing(asked: Asked) -> TrainResult:
    from .methods.idm import IDM
    from .methods.loading import load_model
    from .recipes import load_recipe
    from .train_idm import IDMRecipe, train_idm

    recipe = IDMRecipe() if asked.config is None else load_recipe(IDMRecipe, asked.config)
    if asked.ratio is not None:
        recipe = replace(recipe, ratio=asked.ratio)
    begin = None if asked.start is None else load_model(asked.start)
    if begin is not None and not isinstance(begin, IDM):
        raise ValueError(
            f"--start: {asked.start} is a {type(begin).__name__}, which this recipe does not train"
        )
    return train_idm(
        recipe, asked.data, asked.validation, asked.output, begin, asked.max_minutes, asked.device
    )


def _same_size(asked: Asked) -> TrainResult:
    from .methods.base import PathModel
    from .methods.loading import load_model
    from .recipes import load_recipe
    from .task_recipe import TaskRecipe, recipe_for, with_method
    from .task_training import train_task

    if asked.config is None:
        recipe = recipe_for(asked.task, asked.method)
    else:
        recipe = load_recipe(TaskRecipe, asked.config)
        recipe = with_method(recipe, asked.method or recipe.method)
    begin = None if asked.start is None else load_model(asked.start)
    if begin is not None and not isinstance(begin, PathModel):
        raise ValueError(
            f"--start: {asked.start} is a {type(begin).__name__}, which this recipe does not train"
        )
    return train_task(
        recipe,
        asked.data,
        asked.validation,
        asked.output,
        pairs=asked.pairs,
        validation_pairs=asked.validation_pairs,
        start=begin,
        max_minutes=asked.max_minutes,
        device=asked.device,
    )
