"""`fewstep restore` and its sub-commands."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from .commands.codec import decode, encode
from .commands.convert import convert
from .commands.files import files
from .commands.metrics import metrics
from .commands.simulate import simulate
from .train_command import train

FILES = "files"
HELP = {"help_option_names": ["-h", "--help"]}


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
    cls=DefaultGroup, add_completion=False, pretty_exceptions_enable=False, context_settings=HELP
)


@app.callback()
def restore() -> None:
    """Restore photographs; sub-commands train and convert models, measure and degrade."""


app.command(
    FILES,
    cls=DefaultCommand,
    epilog="More: fewstep restore train --help, and metrics, simulate, convert, encode, decode",
    context_settings=HELP,
)(files)
app.command("train", context_settings=HELP)(train)
app.command("metrics", context_settings=HELP)(metrics)
app.command("simulate", context_settings=HELP)(simulate)
app.command("convert", context_settings=HELP)(convert)
app.command("encode", context_settings=HELP)(encode)
app.command("decode", context_settings=HELP)(decode)
