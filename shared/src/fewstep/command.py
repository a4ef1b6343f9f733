"""The `fewstep` command: verbs come from the installed packages and are imported only when they are used.

This module stands outside `fewstep.core`, whose import brings PyTorch along, so that help comes at once.
"""

import os
import sys
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as typer_command

from fewstep import verbs_distill

GROUP = "fewstep.commands"
DEBUG = "FEWSTEP_DEBUG"


@cache
def verbs() -> dict[str, EntryPoint]:
    """The verbs of the installed packages, by name; nothing is imported."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        found.setdefault(point.name, point)
    return found


def packages() -> list[Distribution]:
    """The installed distributions of the project, by name."""
    found = {dist.metadata["Name"]: dist for dist in distributions() if _is_ours(dist.metadata["Name"])}
    return [found[name] for name in sorted(found)]


def load_verb(point: EntryPoint) -> Any:
    """Import a verb: a Typer application or a function becomes a command.

    Raises:
        Exception: whatever goes wrong in the package.
        TypeError: the entry point is neither an application nor a function.
    """
    loaded = point.load()
    if isinstance(loaded, typer.Typer):
        return typer_command(loaded)
    if not callable(loaded):
        raise TypeError(f"{point.value} is neither a Typer application nor a function")
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(point.name)(loaded)
    return typer_command(app)


class VerbGroup(TyperGroup):
    """Commands of the core and, behind stand-ins until they are used, the verbs of the packages."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Names of all commands: verbs first."""
        own = super().list_commands(ctx)  # type: ignore[arg-type]
        return [*(name for name in verbs() if name not in own), *own]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """The command, or a stand-in that has a line of help and nothing else."""
        own = super().get_command(ctx, cmd_name)  # type: ignore[arg-type]
        if own is not None or cmd_name not in verbs():
            return own
        return TyperCommand(name=cmd_name, help=_summary(verbs()[cmd_name]))

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        """The command that is to run, imported now."""
        name, command, rest = super().resolve_command(ctx, args)  # type: ignore[arg-type]
        if name in verbs() and name not in self.commands:
            try:
                command = load_verb(verbs()[name])
            except Exception as error:
                _fail(f"{name} cannot start: {describe(error)} (`fewstep doctor` tells more)")
        return name, command, rest


app = typer.Typer(
    cls=VerbGroup,
    name="fewstep",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_versions(wanted: bool) -> None:
    if wanted:
        for dist in packages():
            typer.echo(f"{dist.metadata['Name']} {dist.version}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_versions, is_eager=True, help="Print versions and exit."),
    ] = False,
) -> None:
    """Few-step diffusion from a file to a file."""


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Report versions, devices and what is missing."""
    from fewstep.core.cli.doctor import examine, show

    report = examine()
    show(report, as_json)
    raise typer.Exit(0 if report["healthy"] else 1)


@app.command()
def tune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Shipped name, folder or Hub id.")],
    budget: Annotated[int, typer.Option("--budget", min=1, max=1000, help="Network calls per sample.")] = 5,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Real samples: .npy, .npz, .safetensors or images.", show_default=False),
    ] = None,
    objective: Annotated[
        str,
        typer.Option("--objective", help="reference, or the distance to --data: energy, sliced-wasserstein."),
    ] = "reference",
    samples: Annotated[int, typer.Option("--samples", min=2, help="Start noises of the search.")] = 128,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", min=0.01, help="Stop after so long; run again to go on.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the noise and of the search.")] = 0,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps …")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Folder of the plan.", show_default="the model's own"),
    ] = None,
) -> None:
    """Find the best sampling plan of a model for a number of network calls."""
    from fewstep.core.cli.tune import Request, run

    request = Request(model, budget, data, objective, samples, max_minutes, seed, device, as_json, output)
    raise typer.Exit(run(request))


app.command()(verbs_distill.distill)
app.command()(verbs_distill.pairs)
app.command()(verbs_distill.compare)


def describe(error: BaseException) -> str:
    """One line about an error, with its kind where the message alone says too little."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror:
        # str() of it would begin with "[Errno 2]".
        message = error.strerror + (f": {error.filename}" if error.filename else "")
        return message[0].lower() + message[1:]
    if not message:
        return type(error).__name__
    plain = isinstance(error, (ValueError, TypeError, ImportError, RuntimeError))
    return message if plain else f"{type(error).__name__}: {message}"


def main(arguments: Iterable[str] | None = None) -> None:
    """Run the command; an error that no verb has answered becomes one sentence and exit code 1."""
    try:
        app(None if arguments is None else list(arguments))
    except Exception as error:
        _fail(describe(error))


def _fail(sentence: str) -> None:
    if os.environ.get(DEBUG) == "1":
        raise  # noqa: PLE0704 - the error being handled
    print(f"fewstep: {sentence}", file=sys.stderr)
    raise SystemExit(1)


def _summary(point: EntryPoint) -> str:
    summary = point.dist.metadata["Summary"] if point.dist is not None else None
    return summary or point.value


def _is_ours(name: str | None) -> bool:
    return name is not None and name.lower().replace("_", "-").startswith("fewstep-")


if __name__ == "__main__":
    main()
