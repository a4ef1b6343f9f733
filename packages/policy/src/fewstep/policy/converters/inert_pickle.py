"""Reading the tensors of a pickle whose other objects are not made: nothing that the file names is run."""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from fewstep.core.weights import CheckpointError

# Everything that a file may call. All else becomes an `Inert`.
ALLOWED = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
}


class Inert:
    """Stands for an object of a class that is not trusted: it keeps what it is given and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments, self.state, self.items = arguments, None, {}

    def __call__(self, *arguments: Any) -> "Inert":
        return Inert(*arguments)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value

    def append(self, value: Any) -> None:
        """Keep nothing: lists of unknown classes are not needed."""

    def extend(self, values: Any) -> None:
        """Keep nothing."""

    def __hash__(self) -> int:
        return id(self)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        return ALLOWED.get((module_name, global_name), Inert)


class _InertModule:
    """What torch.load takes for the module `pickle`."""

    Unpickler = _Unpickler

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Unpickler(file, **options).load()


def load_inert(path: str | Path) -> Any:
    """Read a file of torch.save with its tensors, every object of another class left inert.

    Published training checkpoints hold their configuration as objects beside the weights. Here such objects
    are not made, so that no code of the file runs; see `plain_settings` for what they say.

    Args:
        path: of the file, in torch's zip format.

    Returns:
        What was saved: dictionaries, lists, numbers, strings, tensors, and `Inert` for the rest.

    Raises:
        CheckpointError: not such a file, or damaged.
    """
    path = Path(path)
    if not path.is_file() or not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a file written by torch.save (zip format)")
    try:
        content = io.BytesIO(path.read_bytes())
        return torch.load(content, map_location="cpu", pickle_module=_InertModule, weights_only=False)
    except Exception as error:  # on junk the reader fails in whatever way the junk leads it to
        raise CheckpointError(f"{path} is damaged or not a weight file ({type(error).__name__})") from error


def plain_settings(value: Any) -> Any:
    """An inert OmegaConf configuration as plain dictionaries, lists and values; what cannot be read is None.

    Its nodes keep their children in `_content` and their values in `_val`.
    """
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, Mapping) else value.items
        return plain_settings(state.get("_content", state.get("_val")))
    if isinstance(value, Mapping):
        return {str(key): plain_settings(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_settings(item) for item in value]
    return value if isinstance(value, bool | int | float | str) else None
