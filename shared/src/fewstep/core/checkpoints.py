"""Saving networks and finding them again: shipped in a package, in a folder, or on the Hub."""

import json
import re
from importlib import import_module, resources
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from huggingface_hub import ModelCard, PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors.torch import save_file
from torch import Tensor, nn

from fewstep.core.cards import CardFacts, make_card
from fewstep.core.configs import config_from_dict, config_to_dict
from fewstep.core.files import atomic_path
from fewstep.core.weights import CheckpointError, load_into, load_state_dict_file, memory_of

Model = TypeVar("Model", bound="Checkpoint")

CONFIG, WEIGHTS, CLASS_FIELD = "config.json", "model.safetensors", "_class"
_SHIPPED_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")


def shipped(package: str) -> list[str]:
    """Names of the checkpoints that a package brings along, such as "fewstep.restoration"."""
    folder = _shipped_folder(package)
    return (
        sorted(entry.name for entry in folder.iterdir() if (entry / CONFIG).is_file())
        if folder.is_dir()
        else []
    )


def resolve(
    name: str | Path,
    package: str | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Find the folder of a checkpoint: shipped in the package, then a local folder, then a Hub id.

    Args:
        name: a shipped name ("resshift-x4"), a folder, or a Hub id ("owner/name").
        package: whose shipped checkpoints are looked at (None: none).
        revision: of the Hub repository.
        local_files_only: do not ask the Hub, only its cache on this machine.

    Returns:
        A folder with config.json and model.safetensors.

    Raises:
        CheckpointError: there is none; the message says where it was looked for.
    """
    text = str(name)
    known = shipped(package) if package else []
    if text in known and _SHIPPED_NAME.fullmatch(text) and package:
        return _shipped_folder(package) / text
    folder = Path(text).expanduser()
    if folder.is_dir():
        absent = [file for file in (CONFIG, WEIGHTS) if not (folder / file).is_file()]
        if absent:
            raise CheckpointError(f"folder {folder} is no checkpoint: it has no {' and no '.join(absent)}")
        return folder
    if _HUB_ID.fullmatch(text) and ".." not in text:
        return _download(text, revision, local_files_only)
    names = f"{package} brings {', '.join(known) or 'none'}" if package else "no package was named"
    raise CheckpointError(
        f"there is no checkpoint {text!r}: not a shipped name ({names}), not a folder, "
        "not a Hub id (owner/name)"
    )


def _shipped_folder(package: str) -> Path:
    import_module(package)
    return Path(str(resources.files(package))) / "checkpoints"


def _download(repository: str, revision: str | None, local_files_only: bool) -> Path:
    files = [CONFIG, WEIGHTS, "README.md"]
    try:
        folder = Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=files, local_files_only=local_files_only
            )
        )
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise CheckpointError(
            f"the Hub does not give {repository!r} ({status}): {_first_line(error)}"
        ) from error
    except (OSError, HFValidationError) as error:
        raise CheckpointError(
            f"{repository!r} is no folder here and cannot be had from the Hub without a connection "
            f"({type(error).__name__}); download it elsewhere and give its folder"
        ) from error
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise CheckpointError(f"{repository!r} on the Hub has no {CONFIG} with {WEIGHTS}")
    return folder


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class Checkpoint(PyTorchModelHubMixin):
    """Mixin of networks that are saved as config.json + model.safetensors + README.md.

    The class names its configuration, a frozen dataclass that its constructor takes as `config`:

        class Restorer(nn.Module, Checkpoint):
            config_class = RestorerConfig
            package = "fewstep.restoration"       # whose shipped checkpoints `from_pretrained` knows

            def __init__(self, config: RestorerConfig) -> None: ...

    `push_to_hub` is huggingface_hub's.

    Attributes:
        folder: that the checkpoint was loaded from; None for a new network.
    """

    config_class: ClassVar[type]
    package: ClassVar[str | None] = None
    config: Any
    folder: Path | None = None
    _stored_dtype: torch.dtype | None = None

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, save_directory: str | Path, *, dtype: torch.dtype | None = None, **hub: Any
    ) -> str | None:
        """Write the checkpoint's folder.

        Args:
            save_directory: the folder, made when it is missing.
            dtype: that float32 weights are stored in, such as torch.float16 for half the size (None: as they
                are); they are float32 again when loaded.
            hub: further arguments of huggingface_hub's mixin; `model_card_kwargs={"facts": CardFacts(...)}`
                states the facts of the model card. A README.md that is there already is kept.

        Raises:
            ValueError: a weight does not fit into `dtype`, or the network has no `config`.
        """
        self._stored_dtype = dtype
        try:
            return super().save_pretrained(save_directory, **hub)
        finally:
            self._stored_dtype = None

    def _save_pretrained(self, save_directory: Path) -> None:
        module = _as_module(self)
        if not isinstance(getattr(self, "config", None), self.config_class):
            raise ValueError(
                f"{type(self).__name__} must keep its {self.config_class.__name__} as self.config"
            )
        tensors = _stored_tensors(module, self._stored_dtype)
        with atomic_path(save_directory / WEIGHTS) as temporary:
            save_file(tensors, temporary, metadata={"format": "pt"})
        values = {CLASS_FIELD: type(self).__name__, **config_to_dict(self.config)}
        with atomic_path(save_directory / CONFIG) as temporary:
            temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls: type[Model],
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> Model:
        """Load a checkpoint: a name shipped with the package, a folder, or a Hub id.

        Args:
            pretrained_model_name_or_path: see `resolve`.
            revision: of the Hub repository.
            local_files_only: do not ask the Hub, only its cache on this machine.

        Returns:
            The network on the CPU, in evaluation mode, in the precision of its class (float32).

        Raises:
            CheckpointError: it cannot be found or read, or does not fit this class.
        """
        folder = resolve(
            pretrained_model_name_or_path, cls.package, revision=revision, local_files_only=local_files_only
        )
        model = cls(config=cls._read_config(folder / CONFIG))  # type: ignore[call-arg]
        load_into(_as_module(model), load_state_dict_file(folder / WEIGHTS), str(folder))
        _as_module(model).eval()
        model.folder = folder
        return model

    @classmethod
    def _read_config(cls, path: Path) -> Any:
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(values, dict):
                raise ValueError("it is not a JSON object")
            made_by = values.pop(CLASS_FIELD, cls.__name__)
            if made_by != cls.__name__:
                raise ValueError(f"it is of a {made_by}, not of a {cls.__name__}")
            return config_from_dict(cls.config_class, values)
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path} cannot be used: {error}") from error

    def generate_model_card(self, facts: CardFacts | None = None) -> ModelCard:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The model card; without facts it says no more than the name and the size."""
        name = type(self).__name__
        parameters = sum(parameter.numel() for parameter in _as_module(self).parameters())
        return make_card(facts or CardFacts(title=name, summary=f"Weights of {name}."), parameters)


def _as_module(model: Checkpoint) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{type(model).__name__} must be a torch.nn.Module as well as a Checkpoint")
    return model


def _stored_tensors(module: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Tensors as they go to the file: those that share memory once, float32 ones as `dtype`."""
    stored: dict[str, Tensor] = {}
    seen = set()
    for name, value in module.state_dict().items():
        if memory_of(value) in seen:
            continue
        if value.numel():
            seen.add(memory_of(value))
        kept = value.detach().to("cpu", dtype if dtype and value.dtype == torch.float32 else value.dtype)
        if dtype and bool(torch.isfinite(value).all()) and not bool(torch.isfinite(kept).all()):
            raise ValueError(
                f"dtype {dtype} cannot hold {name}: its largest value is {float(value.abs().max()):g}"
            )
        stored[name] = kept.clone(memory_format=torch.contiguous_format)
    return stored
