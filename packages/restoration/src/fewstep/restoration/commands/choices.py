"""Options of `fewstep restore` as its function names them, and what is read from their texts."""

from __future__ import annotations

import json
import math
from dataclasses import fields
from typing import Annotated, Any

import typer

from ..settings import AUTO, Settings
from ..tasks import TASKS

# Where an option has another name than the setting.
_OPTIONS = {"level": "sigma", "scale": "outscale"}

Task = Annotated[
    str | None,
    typer.Option("--task", help=f"What to do: {', '.join(TASKS)}.", show_default="enlarge"),
]
Mode = Annotated[
    str | None,
    typer.Option(
        "--mode",
        help="faithful: closest to the truth, one call; detailed: more texture, a few calls.",
        show_default="faithful where the model has it",
    ),
]
Scale = Annotated[
    float | None, typer.Option("-s", "--outscale", help="Enlargement.", show_default="the model's own")
]
Model = Annotated[
    str | None,
    typer.Option(
        "-n",
        "--model",
        "--model-name",
        "--model_name",
        help="Name, folder or Hub id.",
        show_default="the task's; resshift-x4",
    ),
]
Method = Annotated[
    str | None, typer.Option("--method", help="The shipped model of this method.", show_default=False)
]
Sigma = Annotated[
    str | None,
    typer.Option(
        "--sigma",
        help="Standard deviation of the noise, 0 to 255, or auto to estimate it.",
        show_default="not told",
    ),
]
Mask = Annotated[
    str | None,
    typer.Option(
        "--mask", help="Image, white where to fill; or a folder with one for each.", show_default=False
    ),
]
Ratio = Annotated[
    float | None,
    typer.Option("--ratio", help="Measurements per pixel, of compressed sensing.", show_default=False),
]
Solver = Annotated[
    str | None, typer.Option("--solver", help="Rule of the steps.", show_default="the published one")
]
Start = Annotated[
    str, typer.Option("--start", help="Noise of the start: drawn, or best, where one ships with the model.")
]
Samples = Annotated[int, typer.Option("--samples", min=1, max=1000, help="Samples per photograph.")]
Average = Annotated[bool, typer.Option("--average", help="Write the mean of the samples.")]
Uncertainty = Annotated[
    bool, typer.Option("--uncertainty", help="Also write where the samples differ (standard deviation).")
]
Consistent = Annotated[
    bool,
    typer.Option("--consistent", help="Make the result, reduced or measured again, equal to the input."),
]
Tile = Annotated[
    str, typer.Option("-t", "--tile", help="Side of a tile in input pixels, 0 for none, or auto.")
]
TilePad = Annotated[
    int | None,
    typer.Option(
        "--tile-pad", "--tile_pad", min=0, help="Pixels around a tile.", show_default="the network's reach"
    ),
]
Suffix = Annotated[
    str | None,
    typer.Option(
        "--suffix",
        help="Added to the name of the result.",
        show_default="_x and the outscale, or by the task",
    ),
]
Extension = Annotated[
    str, typer.Option("--ext", help="Format of the result: auto (as the input), jpg, png, webp, tiff.")
]
StripMetadata = Annotated[bool, typer.Option("--strip-metadata", help="Leave out EXIF and ICC profile.")]
MaxMegapixels = Annotated[float, typer.Option("--max-megapixels", min=0.0, help="Refuse larger inputs.")]
Report = Annotated[
    str | None,
    typer.Option("--report", help="Page with all photographs, before and after.", show_default=False),
]
ListModels = Annotated[bool, typer.Option("--list", help="List the models that ship, and stop.")]


def with_option(error: ValueError) -> str:
    """A message that begins with a field of `Settings`, with the option in its place.

    Example:
        >>> with_option(ValueError("level: this model is not told the noise level"))
        '--sigma: this model is not told the noise level'
    """
    name, colon, rest = str(error).partition(": ")
    if not colon or name not in {field.name for field in fields(Settings)}:
        return str(error)
    return f"--{_OPTIONS.get(name, name.replace('_', '-'))}: {rest}"


def tile_of(text: str) -> int | str:
    """A side in pixels, or "auto".

    Raises:
        ValueError: neither.
    """
    if text == AUTO:
        return text
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"--tile: expected a number of pixels, 0 or auto, got {text!r}") from error


def level_of(text: str | None) -> float | str | None:
    """A standard deviation on the scale 0 … 255, or "auto".

    Raises:
        ValueError: neither, or out of the scale.

    Example:
        >>> level_of("25"), level_of("auto"), level_of(None)
        (25.0, 'auto', None)
    """
    if text is None or text == AUTO:
        return text
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 255:
        raise ValueError(f"--sigma: expected a standard deviation in 0 … 255 or auto, got {text!r}")
    return value


def parse_field(text: str) -> tuple[str, Any]:
    """A field of --set and its value, as JSON where it is JSON and as text elsewhere.

    Raises:
        ValueError: no "=".

    Example:
        >>> parse_field("gain=[4, 7]"), parse_field("kinds=lines")
        (('gain', [4, 7]), ('kinds', 'lines'))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"--set: expected field=value, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
