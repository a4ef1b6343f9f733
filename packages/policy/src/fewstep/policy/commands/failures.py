"""Errors of a command as one sentence and an exit code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def told_plainly(command: str) -> Iterator[None]:
    """Turn what can go wrong into a sentence: exit code 2 for what was asked, 1 for what happened.

    Args:
        command: for the sentence, such as "fewstep policy eval".
    """
    from fewstep.core.training import TrainingDiverged
    from fewstep.core.weights import CheckpointError

    try:
        yield
    except (CheckpointError, TypeError, ValueError, FileNotFoundError) as error:
        raise typer.BadParameter(str(error)) from error
    except (ImportError, OSError, RuntimeError, TrainingDiverged) as error:
        typer.echo(f"{command}: {error}", err=True)
        raise typer.Exit(1) from error
