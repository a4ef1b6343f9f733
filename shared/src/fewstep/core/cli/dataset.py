"""Models and data of the verbs that train and compare."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import typer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fewstep.core.bridges.diffusers_folder import DiffusersModel, is_diffusers_folder
from fewstep.core.checkpoints import CheckpointError, resolve
from fewstep.core.cli.data import read_samples
from fewstep.core.models import DiffusionModel

Model = DiffusionModel | DiffusersModel


def load_model(name: str, hint: str = "MODEL") -> Model:
    """A model by its shipped name, folder (ours or a diffusers pipeline's) or Hub id, on the CPU.

    Raises:
        typer.BadParameter: there is no such model (exit code 2).
        CheckpointError: it cannot be read.
    """
    if is_diffusers_folder(name):
        return DiffusersModel.from_pretrained(name)
    try:
        folder = resolve(name, DiffusionModel.package)
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint=hint) from error
    return DiffusionModel.from_pretrained(folder)


def read_dataset(name: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Samples and what goes with them: {"x0", "label", …}.

    A file (.npz, .safetensors) with an array `x0` may hold others of the same length: `label`, `noise`, and
    further conditions of the network. Everything else is read as samples alone, see `read_samples`.

    Raises:
        ValueError: a file cannot be read or does not fit.
    """
    path = Path(name).expanduser()
    arrays: dict[str, Any] = {}
    if path.is_file() and path.suffix.lower() in (".npz", ".safetensors"):
        try:
            arrays = _read_npz(path) if path.suffix.lower() == ".npz" else load_file(path)
        except (OSError, ValueError, EOFError, BadZipFile, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error
    if "x0" not in arrays:
        return {"x0": read_samples(name, shape)}
    found = {key: torch.as_tensor(value) for key, value in arrays.items()}
    return {key: value.float() if value.is_floating_point() else value for key, value in found.items()}


def _read_npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is not an archive of arrays")
        found = dict(arrays)
    for name, value in found.items():
        if value.dtype.kind not in "fiu":
            raise ValueError(f"{name} holds {value.dtype}, not numbers")
    return {
        name: torch.from_numpy(value.astype(np.float32 if value.dtype.kind == "f" else np.int64))
        for name, value in found.items()
    }
