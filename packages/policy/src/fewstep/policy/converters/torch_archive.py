"""The tensors of a training checkpoint that holds objects beside them; no object is made."""

import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.weights import CheckpointError

from .inert_pickle import Call, Named, Outside, read_inert

TENSOR, PARAMETER = Named("torch._utils", "_rebuild_tensor_v2"), Named("torch._utils", "_rebuild_parameter")
DICTIONARY = Named("collections", "OrderedDict")
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
HELP = (
    "Where it was trained, its weights can be saved alone: "
    "payload = torch.load(file, weights_only=False); "
    "torch.save(payload['state_dicts']['ema_model'], 'weights.pth')"
)


class TorchArchive:
    """A file of torch.save (zip format), read without running what its pickle asks for.

    Args:
        path: of the file.

    Attributes:
        content: what was saved, as of `read_inert`.

    Raises:
        CheckpointError: not such a file, damaged, or of a form that is not known here.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file() or not zipfile.is_zipfile(self.path):
            raise CheckpointError(f"{path} is not a file written by torch.save (zip format). {HELP}")
        try:
            with zipfile.ZipFile(self.path) as archive:
                pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                if len(pickles) != 1:
                    raise CheckpointError(f"{path} is not a file written by torch.save: it has no data.pkl")
                self._root = pickles[0].removesuffix("data.pkl")
                order = f"{self._root}byteorder"
                if order in archive.namelist() and _stored(archive, order) != b"little":
                    raise CheckpointError(f"{path} was written on a machine with another order of bytes")
                self.content = read_inert(_stored(archive, pickles[0]))
        except CheckpointError:
            raise
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise CheckpointError(f"{path} cannot be read: {error}. {HELP}") from error

    def tensors(self, group: Any) -> dict[str, Tensor]:
        """The tensors of a dictionary that was saved; its other entries are left out.

        Args:
            group: part of `content`.

        Raises:
            CheckpointError: the numbers of a tensor are not in the file.
        """
        found = {}
        try:
            with zipfile.ZipFile(self.path) as archive:
                for name, value in entries(group).items():
                    if isinstance(value, Call) and value.callee == PARAMETER:
                        value = value.arguments[0]
                    if isinstance(value, Call) and value.callee == TENSOR:
                        found[str(name)] = self._tensor(archive, value.arguments)
        except (KeyError, IndexError, ValueError, TypeError, RuntimeError, OSError) as error:
            raise CheckpointError(f"{self.path} is damaged ({type(error).__name__}: {error})") from error
        except zipfile.BadZipFile as error:
            raise CheckpointError(f"{self.path} is damaged ({error})") from error
        return found

    def _tensor(self, archive: zipfile.ZipFile, arguments: tuple[Any, ...]) -> Tensor:
        storage, offset, size, stride = arguments[:4]
        if not isinstance(storage, Outside):
            raise ValueError("a tensor without numbers")
        _, kind, key, _, _ = storage.about
        dtype = DTYPES[kind.name]
        if not math.prod(size):
            return torch.empty(size, dtype=dtype)
        # A copy that may be written to, as torch wants it.
        numbers = torch.frombuffer(bytearray(_stored(archive, f"{self._root}data/{key}")), dtype=dtype)
        return numbers.as_strided(size, stride, offset)


def entries(value: Any) -> Mapping[Any, Any]:
    """The entries of a saved dictionary, an OrderedDict's too; of anything else, none."""
    if isinstance(value, Call) and value.callee == DICTIONARY:
        return value.items
    return value if isinstance(value, Mapping) else {}


def plain_settings(value: Any) -> Any:
    """A saved OmegaConf configuration as plain dictionaries, lists and values; what cannot be read is None.

    Its nodes keep their children in `_content` and their values in `_val`.

    Args:
        value: part of `TorchArchive.content`.

    Raises:
        CheckpointError: it is nested deeper than any configuration.
    """
    try:
        return _plain(value, {})
    except RecursionError:
        raise CheckpointError("its configuration is nested too deeply") from None


def _plain(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    # Each part once: a file may refer to one part many times, or to itself.
    if id(value) not in known:
        known[id(value)] = None
        known[id(value)] = _opened(value, known)
    return known[id(value)]


def _opened(value: Any, known: dict[int, Any]) -> Any:
    if isinstance(value, Call) and value.callee != DICTIONARY:
        state = entries(value.state)
        return _plain(state.get("_content", state.get("_val")), known)
    if isinstance(value, list | tuple):
        return [_plain(item, known) for item in value]
    if isinstance(value, Mapping | Call):
        return {str(key): _plain(item, known) for key, item in entries(value).items()}
    return None


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Bytes of an entry, which torch never compresses; others could grow without limit."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(name)
