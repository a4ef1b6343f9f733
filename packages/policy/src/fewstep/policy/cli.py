"""`fewstep policy` and its sub-commands."""

from __future__ import annotations

import typer

from .commands.evaluate import evaluate, info, rollout
from .commands.finetune import finetune
from .commands.record import record
from .commands.train import distill, train

HELP = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, context_settings=HELP, no_args_is_help=True
)


@app.callback()
def policy() -> None:
    """Robot policies: train from demonstrations, distil to one call, evaluate, film."""


app.command("train", context_settings=HELP)(train)
app.command("distill", context_settings=HELP)(distill)
app.command("finetune", context_settings=HELP)(finetune)
app.command("eval", context_settings=HELP)(evaluate)
app.command("rollout", context_settings=HELP)(rollout)
app.command("record", context_settings=HELP)(record)
app.command("info", context_settings=HELP)(info)
