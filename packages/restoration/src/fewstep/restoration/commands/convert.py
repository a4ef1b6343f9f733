"""`fewstep restore convert`: a published checkpoint into a folder that `--model` takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fewstep.options import AsJson

from ..tasks import TASKS
from .choices import parse_field


def convert(
    file: Annotated[Path, typer.Argument(help="Published weights: .pth, .pt, .ckpt, .pkl, .safetensors.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder that is made, for --model.")],
    autoencoder: Annotated[
        Path | None,
        typer.Option("--autoencoder", help="Its file: of ResShift or latent Refusion.", show_default=False),
    ] = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            help=f"What it was trained for: {', '.join(TASKS)}; may be repeated.",
            show_default=False,
        ),
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="What the weights do not say, such as max_sigma=10 or ratio=0.1; may be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert an official checkpoint of ResShift, RDDM, Resfusion, IR-SDE, Refusion, OFTSR or IDM."""
    from ..convert import from_official

    try:
        options = dict(map(parse_field, fields or ()))
        for name in task or ():
            if name not in TASKS:
                raise ValueError(f"--task: expected one of {', '.join(TASKS)}, got {name!r}")
        if task:
            options["tasks"] = tuple(task)
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise ValueError(f"-o: {output} is there already; give a folder that is new or empty")
        model = from_official(file, autoencoder, **options)
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    try:
        model.save_pretrained(output)
    except OSError as error:
        typer.echo(f"fewstep restore convert: {output}: {error.strerror or error}", err=True)
        raise typer.Exit(1) from error
    facts = {
        "method": type(model).__name__.lower(),
        "tasks": list(model.tasks),
        "scale": model.scale,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "output": str(output),
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    millions = f"{facts['parameters'] / 1e6:.1f} million parameters"
    typer.echo(f"{facts['method']} for {', '.join(model.tasks) or 'a task that is not said'}, {millions}")
    typer.echo(f"Try it: fewstep restore photo.jpg --model {output}")
