"""Options that mean the same in every verb.

Use them as annotations: `def restore(inputs: Inputs, output: Output = None, seed: Seed = 0): ...`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import torch

Inputs = Annotated[
    list[str],
    typer.Argument(
        help="Files, folders, patterns such as 'photos/*.jpg', or - for standard input.", show_default=False
    ),
]
OptionalInputs = Annotated[
    list[str] | None,
    typer.Argument(
        help="Files, folders, patterns such as 'photos/*.jpg', or - for standard input.", show_default=False
    ),
]
InputOption = Annotated[
    list[str] | None,
    typer.Option("-i", "--input", help="An input, as the arguments; may be repeated.", show_default=False),
]
Output = Annotated[
    str | None,
    typer.Option("-o", "--output", help="File, folder, or - for standard output.", show_default=False),
]
Model = Annotated[str, typer.Option("--model", help="Built-in name, folder or Hub id of a checkpoint.")]
Method = Annotated[str, typer.Option("--method", help="Method of the field.")]
Steps = Annotated[
    int | None, typer.Option("--steps", min=1, help="Sampling steps.", show_default="the model's own")
]
Solver = Annotated[str | None, typer.Option("--solver", help="Solver.", show_default="the model's own")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps …")]
Dtype = Annotated[
    str, typer.Option("--dtype", help="Precision of the network: auto, float32, bfloat16, float16.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print a report as JSON on standard output.")]
Recursive = Annotated[
    bool, typer.Option("-r", "--recursive", help="Also take the folders inside of folders.")
]
SkipExisting = Annotated[
    bool, typer.Option("--skip-existing", help="Leave out inputs whose result is there already.")
]
Suffix = Annotated[
    str, typer.Option("--suffix", help="Added to the name of the result, before its extension.")
]
Extension = Annotated[
    str, typer.Option("--ext", help="Extension of the result: auto (as the input), png, jpg …")
]


def resolve_device(name: str) -> torch.device:
    """The device that --device names, as `fewstep.core.devices.pick_device` chooses it.

    Raises:
        typer.BadParameter: there is no such device on this machine (exit code 2).
    """
    from fewstep.core.devices import pick_device

    try:
        return pick_device(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--device") from error


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The precision that --dtype names, as `fewstep.core.devices.pick_dtype` chooses it.

    Raises:
        typer.BadParameter: it is not one of the precisions (exit code 2).
    """
    from fewstep.core.devices import pick_dtype

    try:
        return pick_dtype(name, device)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--dtype") from error
