"""Options that mean the same in every verb; the functions behind them are in `fewstep.core.cli.options`.

This module stands outside `fewstep.core`, whose import brings PyTorch along, so that help comes at once. Use
them as annotations: `def restore(inputs: Inputs, output: Output = None, seed: Seed = 0): ...`
"""

from typing import Annotated

import typer

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
