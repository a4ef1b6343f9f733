"""`fewstep restore`: photographs from files to files."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from fewstep.core.checkpoints import CheckpointError, resolve, shipped
from fewstep.core.cli.options import (
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
    resolve_device,
    resolve_dtype,
)

from .batch import Request, restore_files
from .images import MAX_MEGAPIXELS
from .methods.resshift import SOLVERS
from .pipeline import Restorer
from .settings import Settings
from .train_command import train

PACKAGE = "fewstep.restoration"
METHODS = ("resshift",)
FILES = "files"


class DefaultGroup(TyperGroup):
    """Sub-commands, and a command that is meant when none of them is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name of the default command before arguments that begin with no name of a command."""
        if not args or args[0] not in self.commands:
            args = [FILES, *args]
        return super().parse_args(ctx, args)


class DefaultCommand(TyperCommand):
    """The command that is meant when none is named; messages show the group's name in place of its own."""

    def make_context(self, info_name: Any, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Stand in the place of the group."""
        return super().make_context(parent.info_name, args, parent=parent.parent, **extra)


app = typer.Typer(
    cls=DefaultGroup,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def restore() -> None:
    """Restore photographs; sub-commands train models."""


@app.command(
    FILES,
    cls=DefaultCommand,
    epilog="Models are trained by: fewstep restore train --help",
    context_settings={"help_option_names": ["-h", "--help"]},
)
def files(
    inputs: OptionalInputs = None,
    more_inputs: InputOption = None,
    output: Output = None,
    mode: Annotated[
        str,
        typer.Option(
            "--mode", help="faithful: closest to the truth, one call; detailed: more texture, a few calls."
        ),
    ] = "faithful",
    outscale: Annotated[
        float | None,
        typer.Option("-s", "--outscale", help="Enlargement.", show_default="the model's own"),
    ] = None,
    model: Annotated[
        str, typer.Option("-n", "--model", "--model-name", "--model_name", help="Name, folder or Hub id.")
    ] = "resshift-x4",
    method: Annotated[str, typer.Option("--method", help="Method: resshift.")] = "resshift",
    steps: Steps = None,
    solver: Annotated[
        str, typer.Option("--solver", help=f"Rule of the steps: {', '.join(SOLVERS)}.")
    ] = SOLVERS[0],
    samples: Annotated[int, typer.Option("--samples", min=1, max=1000, help="Samples per photograph.")] = 1,
    average: Annotated[bool, typer.Option("--average", help="Write the mean of the samples.")] = False,
    tile: Annotated[
        str, typer.Option("-t", "--tile", help="Side of a tile in input pixels, 0 for none, or auto.")
    ] = "auto",
    tile_pad: Annotated[
        int | None,
        typer.Option(
            "--tile-pad",
            "--tile_pad",
            min=0,
            help="Pixels around a tile.",
            show_default="the network's reach",
        ),
    ] = None,
    seed: Seed = 0,
    suffix: Annotated[
        str | None,
        typer.Option("--suffix", help="Added to the name of the result.", show_default="_x and the outscale"),
    ] = None,
    extension: Annotated[
        str, typer.Option("--ext", help="Format of the result: auto (as the input), jpg, png, webp, tiff.")
    ] = "auto",
    strip_metadata: Annotated[
        bool, typer.Option("--strip-metadata", help="Leave out EXIF and ICC profile.")
    ] = False,
    skip_existing: SkipExisting = False,
    recursive: Recursive = False,
    max_megapixels: Annotated[
        float, typer.Option("--max-megapixels", min=0.0, help="Refuse larger inputs.")
    ] = MAX_MEGAPIXELS,
    device: Device = "auto",
    dtype: Dtype = "auto",
    as_json: AsJson = False,
    list_models: Annotated[bool, typer.Option("--list", help="List the models that ship, and stop.")] = False,
) -> None:
    """Restore photographs: JPEG, PNG, WebP and TIFF, with their bit depth, alpha and metadata."""
    if list_models:
        for name in shipped(PACKAGE):
            typer.echo(name)
        return
    if method not in METHODS:
        raise typer.BadParameter(f"{method!r} is not one of {', '.join(METHODS)}", param_hint="--method")
    try:
        settings = Settings(mode, steps, solver, samples, average, _tile(tile), tile_pad, seed, outscale)
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
        )
        request.check(settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    restorer = _load(model, device, dtype)
    try:
        restorer.check(settings)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    report = restore_files(restorer, settings, request)
    raise typer.Exit(report.exit_code)


def _tile(text: str) -> int | str:
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"--tile: expected a number of pixels, 0 or auto, got {text!r}") from error


def _load(model: str, device: str, dtype: str) -> Restorer:
    chosen = resolve_device(device)
    precision = resolve_dtype(dtype, chosen)
    try:
        folder = resolve(model, PACKAGE)
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error
    return Restorer.from_pretrained(folder, str(chosen), str(precision).removeprefix("torch."))


app.command("train", context_settings={"help_option_names": ["-h", "--help"]})(train)
