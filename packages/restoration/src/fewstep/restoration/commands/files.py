"""`fewstep restore`: photographs from files to files."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import typer

from fewstep.options import (
    AsJson,
    Device,
    Dtype,
    InputOption,
    OptionalInputs,
    Output,
    Recursive,
    Seed,
    SkipExisting,
    Steps,
)

from .. import catalogue
from ..settings import Settings
from ..tasks import TASKS
from . import choices

if TYPE_CHECKING:
    from ..batch import Request
    from ..pipeline import Restorer


def files(
    inputs: OptionalInputs = None,
    more_inputs: InputOption = None,
    output: Output = None,
    task: choices.Task = None,
    mode: choices.Mode = None,
    outscale: choices.Scale = None,
    model: choices.Model = None,
    method: choices.Method = None,
    sigma: choices.Sigma = None,
    mask: choices.Mask = None,
    ratio: choices.Ratio = None,
    steps: Steps = None,
    solver: choices.Solver = None,
    start: choices.Start = "drawn",
    samples: choices.Samples = 1,
    average: choices.Average = False,
    uncertainty: choices.Uncertainty = False,
    consistent: choices.Consistent = False,
    tile: choices.Tile = "auto",
    tile_pad: choices.TilePad = None,
    seed: Seed = 0,
    suffix: choices.Suffix = None,
    extension: choices.Extension = "auto",
    strip_metadata: choices.StripMetadata = False,
    skip_existing: SkipExisting = False,
    recursive: Recursive = False,
    max_megapixels: choices.MaxMegapixels = 100.0,
    report: choices.Report = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    list_models: choices.ListModels = False,
) -> None:
    """Restore photographs: JPEG, PNG, WebP and TIFF, with their bit depth, alpha and metadata."""
    if list_models:
        show_models(as_json)
        return
    # Help and the list come without it: it brings PyTorch along.
    from ..batch import Request, restore_files

    try:
        name = _model(task, model, method, ratio)
        usual = mode or ("detailed" if uncertainty else "faithful")
        settings = Settings(
            usual,
            steps,
            solver,
            samples,
            average,
            choices.tile_of(tile),
            tile_pad,
            seed,
            outscale,
            choices.level_of(sigma),
            uncertainty,
            consistent,
            start,
        )
        request = Request(
            inputs=(*(inputs or ()), *(more_inputs or ())),
            output=output,
            suffix=suffix,
            extension=extension,
            strip_metadata=strip_metadata,
            skip_existing=skip_existing,
            recursive=recursive,
            max_megapixels=max_megapixels,
            as_json=as_json,
            task=task,
            mask=mask,
            report=report,
            model=name,
        )
        request.check(settings)
        if task is not None and "mask" in TASKS[task].needs and mask is None:
            raise ValueError(f"--mask: {task} needs an image that is white where to fill")
    except ValueError as error:
        raise typer.BadParameter(choices.with_option(error)) from error
    restorer = _load(name, device, dtype)
    try:
        if mode is None and usual not in restorer.modes:
            settings = replace(settings, mode=restorer.modes[0])
        request = _suited(request, restorer, task, method, ratio)
        restorer.check(settings)
    except ValueError as error:
        raise typer.BadParameter(choices.with_option(error)) from error
    raise typer.Exit(restore_files(restorer, settings, request).exit_code)


def show_models(as_json: bool) -> None:
    """Print what ships."""
    models = catalogue.shipped_models()
    if as_json:
        typer.echo(json.dumps([model.as_dict() for model in models], indent=2))
    else:
        typer.echo(catalogue.table(models))


def _model(task: str | None, model: str | None, method: str | None, ratio: float | None) -> str:
    """The name that is loaded; a model that is named need not be one that ships."""
    if model is None:
        return catalogue.choose(task, method, ratio, catalogue.shipped_models())
    if task is not None and task not in TASKS:
        raise ValueError(f"--task: expected one of {', '.join(TASKS)}, got {task!r}")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(
            f"--ratio: expected measurements per pixel, more than 0 and at most 1, got {ratio:g}"
        )
    return model


def _load(model: str, device: str, dtype: str) -> Restorer:
    from fewstep.core.checkpoints import CheckpointError, resolve
    from fewstep.core.cli.options import resolve_device, resolve_dtype

    from ..pipeline import Restorer

    chosen = resolve_device(device)
    precision = resolve_dtype(dtype, chosen)
    try:
        folder = resolve(model, "fewstep.restoration")
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error
    return Restorer.from_pretrained(folder, str(chosen), str(precision).removeprefix("torch."))


def _suited(
    request: Request, restorer: Restorer, task: str | None, method: str | None, ratio: float | None
) -> Request:
    """The request for the model that was loaded.

    Raises:
        ValueError: the model is not what was asked for, or a mask is missing or not taken.
    """
    model = restorer.model
    if task is not None and model.tasks and task not in model.tasks:
        raise ValueError(f"--task: {request.model} was trained for {', '.join(model.tasks)}, not for {task}")
    kind = type(model).__name__
    if method is not None and catalogue.method_name(method) != kind.lower():
        raise ValueError(f"--method: {request.model} is of {kind.lower()}, not of {method!r}")
    own = getattr(model.config, "ratio", None)
    if ratio is not None and ratio != own:
        what = "measures nothing" if own is None else f"measures at the ratio {own:g}"
        raise ValueError(f"--ratio: {request.model} {what}")
    if ("mask" in model.takes) != (request.mask is not None):
        what = "fills what a mask marks, so it needs one" if "mask" in model.takes else "takes no mask"
        raise ValueError(f"--mask: {request.model} {what}")
    if task is None and len(model.tasks) == 1:
        return replace(request, task=model.tasks[0])
    return request
