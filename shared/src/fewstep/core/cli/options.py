"""What the options of `fewstep.options` name: devices and precisions.

Their annotations are given on: `def restore(inputs: Inputs, output: Output = None, seed: Seed = 0): ...`
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from fewstep.options import (
    AsJson,
    Device,
    Dtype,
    Extension,
    InputOption,
    Inputs,
    Method,
    Model,
    OptionalInputs,
    Output,
    Recursive,
    Seed,
    SkipExisting,
    Solver,
    Steps,
    Suffix,
)

if TYPE_CHECKING:
    import torch

__all__ = [
    "AsJson",
    "Device",
    "Dtype",
    "Extension",
    "InputOption",
    "Inputs",
    "Method",
    "Model",
    "OptionalInputs",
    "Output",
    "Recursive",
    "Seed",
    "SkipExisting",
    "Solver",
    "Steps",
    "Suffix",
    "resolve_device",
    "resolve_dtype",
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
