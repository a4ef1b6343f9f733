"""Reading weight files without running what is in them, and fitting them to a network."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core.keys import WRAPPER_PREFIXES

NESTED_UNDER = ("params_ema", "params", "ema", "state_dict", "model", "generator", "weights")


class CheckpointError(ValueError):
    """A checkpoint cannot be found, read or fitted to its network."""


def load_state_dict_file(path: str | Path, key: str | None = None) -> dict[str, Tensor]:
    """Read the tensors of a weight file, safetensors or torch's own format, on the CPU.

    Nothing that the file holds is executed: a pickle with anything but tensors and plain values is refused.

    Args:
        path: of the file.
        key: entry of the file that holds the weights (None: the file itself, or the usual names of official
            checkpoints: params_ema, params, ema, state_dict, model, generator, weights).

    Returns:
        Tensors by name.

    Raises:
        CheckpointError: there is no such file, it is damaged, it holds code, or it holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file")
    content = _read(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not weights by name")
    if key is not None:
        if not isinstance(content.get(key), Mapping):
            raise CheckpointError(f"key must name an entry of {path} ({_names(content)}), got {key!r}")
        content = content[key]
    elif not any(isinstance(value, Tensor) for value in content.values()):
        nested = (content[name] for name in NESTED_UNDER if isinstance(content.get(name), Mapping))
        content = next(nested, content)
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors; its entries are {_names(content)}")
    return tensors


def _read(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty")
    with path.open("rb") as handle:
        head = handle.read(9)
    # The safetensors format: 8 bytes with the length of a header in JSON.
    if path.suffix == ".safetensors" or head[8:] == b"{":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is not a whole safetensors file: {error}") from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            raise CheckpointError(
                f"{path} holds Python objects besides weights; loading those could run code; it is refused. "
                "Save its state_dict alone, or as safetensors, where you trust it."
            ) from error
        raise CheckpointError(
            f"{path} is neither a safetensors file nor one written by torch.save"
        ) from error
    except Exception as error:  # on junk the reader fails in whatever way the junk leads it to
        raise CheckpointError(f"{path} is damaged or not a weight file ({type(error).__name__})") from error


def load_into(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a network, whose own precision is kept, if names and shapes agree exactly.

    Args:
        module: the network.
        state: weights by name.
        source: of the weights, for the message.

    Raises:
        CheckpointError: names the first weights that are missing, unexpected or of another shape. The network
            is then as it was.
    """
    ours = module.state_dict()
    tied = {memory_of(value) for name, value in ours.items() if name in state and value.numel()}
    missing = [name for name, value in ours.items() if name not in state and memory_of(value) not in tied]
    unexpected = [name for name in state if name not in ours]
    shapes = [
        f"{name} ({tuple(value.shape)} in the file, {tuple(ours[name].shape)} in the network)"
        for name, value in state.items()
        if name in ours and value.shape != ours[name].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    found = [f"{len(names)} {what}: {_few(names)}" for what, names in problems.items() if names]
    if found:
        hint = _prefix_hint(missing, unexpected)
        raise CheckpointError(f"{source} does not fit {type(module).__name__}: {'; '.join(found)}{hint}")
    module.load_state_dict(state, strict=False)


def memory_of(value: Tensor) -> tuple[object, ...]:
    """What two names of one and the same tensor have in common."""
    return value.data_ptr(), value.shape, value.stride(), value.dtype


def _prefix_hint(missing: list[str], unexpected: list[str]) -> str:
    prefixes = [
        prefix for prefix in WRAPPER_PREFIXES if {prefix + name for name in missing} & set(unexpected)
    ]
    return f". All would fit without the prefix {prefixes[0]!r} (keys.strip_prefixes)" if prefixes else ""


def _few(names: list[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (f", … ({len(names) - count} more)" if len(names) > count else "")


def _names(content: Mapping[Any, Any]) -> str:
    return _few([str(name) for name in content]) or "none"
