"""`fewstep restore metrics`: restored photographs against the truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.options import AsJson

if TYPE_CHECKING:
    from ..evaluation import Measured


def metrics(
    restored: Annotated[Path, typer.Argument(help="Restored photograph, or a folder.", show_default=False)],
    truth: Annotated[Path, typer.Argument(help="The truth: a photograph, or a folder.", show_default=False)],
    convention: Annotated[
        str | None,
        typer.Option(
            "--convention",
            help="y: tables of super-resolution and JPEG; rgb: of denoising, rain, low light, inpainting; "
            "ycrcb: of compressed sensing.",
            show_default="all three",
        ),
    ] = None,
    border: Annotated[
        int,
        typer.Option("--border", min=0, help="Pixels cut from each side; tables of y cut the enlargement."),
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure PSNR, SSIM and sharpness; files in folders belong together by name (cat_x4 to cat)."""
    from ..evaluation import TABLES, check_conventions, evaluate, match, mean_of
    from ..images import ImageError

    try:
        names = check_conventions(convention)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    problems, found = [], []
    try:
        pairs, problems = match(restored, truth)
    except ValueError as error:
        pairs, problems = [], [str(error)]
    for file, partner in pairs:
        try:
            found.append(evaluate(file, partner, names, border))
        except ImageError as error:
            problems.append(str(error))
    mean = mean_of(found) if found else None
    if as_json:
        report = {
            "border": border,
            "conventions": {name: TABLES[name] for name in names},
            "files": [one.as_dict() for one in found],
            "mean": mean,
            "problems": problems,
        }
        typer.echo(json.dumps(report, indent=2))
    elif mean is not None:
        typer.echo(_table(found, mean, names))
        for name in names:
            typer.echo(f"{name}: {TABLES[name]}")
    for problem in problems:
        typer.echo(f"fewstep restore metrics: {problem}", err=True)
    raise typer.Exit(1 if problems else 0)


def _table(found: list[Measured], mean: dict[str, Any], names: tuple[str, ...]) -> str:
    """One line per photograph, and their means."""
    rows = [["photograph", *(f"{what} {name}" for name in names for what in ("PSNR", "SSIM")), "sharpness"]]
    facts = [(one.restored.name, one.as_dict()) for one in found]
    if len(found) > 1:
        facts.append(("mean", mean))
    for title, values in facts:
        cells = [cell for name in names for cell in (values[name]["psnr"], values[name]["ssim"])]
        numbers = [_number(cell, 2 + 2 * (k % 2)) for k, cell in enumerate(cells)]
        rows.append([title, *numbers, _number(values["sharpness"], 3)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    )


def _number(value: float | None, digits: int) -> str:
    return "inf" if value is None else f"{value:.{digits}f}"
