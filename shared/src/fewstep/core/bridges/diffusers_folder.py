"""DiffusersModel: a diffusers pipeline's folder as a model that samplers and distillation can use."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.bridges.diffusers_config import family_of, path_from_config, prediction_from_config
from fewstep.core.bridges.diffusers_model import DiffusersNet
from fewstep.core.checkpoints import CheckpointError
from fewstep.core.configs import config_from_dict
from fewstep.core.files import atomic_path
from fewstep.core.flow_map import FlowMap
from fewstep.core.sampling import Sampling

INDEX, SAMPLING, CONFIG = "model_index.json", "sampling.json", "config.json"
PARTS = ("unet", "transformer")
SCHEDULER = "scheduler/scheduler_config.json"


def is_diffusers_folder(name: str | Path) -> bool:
    """Whether a name is a local folder that diffusers wrote for a pipeline."""
    return (Path(name).expanduser() / INDEX).is_file()


class LabelledNet(DiffusersNet):
    """A diffusers network whose `class_labels` are told as `label`."""

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None, **conditions: Any) -> Tensor:
        """The raw value; see DiffusersNet."""
        if label is not None:
            conditions["class_labels"] = label.expand(len(x))
        return super().forward(x, t, **conditions)


class DiffusersModel:
    """A diffusers network with the path and the prediction that its scheduler's configuration says.

    Args:
        network: a UNet or transformer that is called as network(x, t, …, return_dict=False)[0].
        scheduler: configuration of the scheduler.
        sampling: how the model is meant to be sampled.
        folder: that it was loaded from.

    Attributes:
        net: called as net(x, t, label=…, **conditions).
        path: of the scheduler.
        prediction: of the network.
        shape: of one sample.
        labels: names of the classes; empty without.
    """

    def __init__(
        self,
        network: nn.Module,
        scheduler: Mapping[str, Any],
        sampling: Sampling | None = None,
        folder: Path | None = None,
    ) -> None:
        self.scheduler, self.folder = dict(scheduler), folder
        self.net = LabelledNet(network)
        self.path: paths.Path = path_from_config(scheduler)
        self.prediction = prediction_from_config(scheduler)
        self.sampling = sampling or _usual_sampling(scheduler)
        self.shape = _shape_of(network)
        classes = _entry(network, "num_class_embeds") or 0
        self.labels = tuple(map(str, range(classes)))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DiffusersModel":
        """Load a local folder: the network, from safetensors alone, and the scheduler's configuration.

        Raises:
            CheckpointError: the folder is incomplete, damaged, or of a kind that is not understood.
            ImportError: diffusers is not installed.
        """
        folder = Path(folder).expanduser()
        part, network = _load_network(folder)
        try:
            scheduler = _read_json(folder / SCHEDULER)
            sampling = None
            if (folder / SAMPLING).is_file():
                sampling = config_from_dict(Sampling, _read_json(folder / SAMPLING), SAMPLING)
            return cls(network.eval(), scheduler, sampling, folder)
        except (OSError, ValueError, TypeError) as error:
            raise CheckpointError(f"{folder} ({part}) cannot be used: {error}") from error

    def to(self, device: torch.device | str) -> "DiffusersModel":
        """Move the network."""
        self.net.to(device)
        return self

    def flow_map(self, label: int | Tensor | None = None) -> FlowMap:
        """The model as a map between two times."""
        conditions = {} if label is None else {"label": torch.as_tensor(label).reshape(-1)}
        return FlowMap(self.net, self.path, self.prediction, conditions)

    def generate(
        self, count: int = 1, *, steps: int | None = None, seed: int = 0, label: int | Tensor | None = None
    ) -> Tensor:
        """Draw samples the way the model is meant to be sampled, as `DiffusionModel.generate` does."""
        return self.sampling.run(self.flow_map(label), self.shape, count, steps, seed)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder of a pipeline: this network, and everything else as it was loaded.

        Raises:
            ValueError: this model was not loaded from a folder.
        """
        if self.folder is None:
            raise ValueError("only a model that was loaded from a folder can be saved as a pipeline")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        part = next(part for part in PARTS if (self.folder / part).is_dir())
        for entry in sorted(self.folder.iterdir()):
            if entry.is_dir() and entry.name != part and _is_part(entry):
                shutil.copytree(entry, folder / entry.name, dirs_exist_ok=True)
        (folder / part).mkdir(exist_ok=True)
        self.net.model.save_pretrained(folder / part, safe_serialization=True)  # type: ignore[operator]
        with atomic_path(folder / SAMPLING) as temporary:
            temporary.write_text(json.dumps(asdict(self.sampling), indent=2) + "\n", encoding="utf-8")
        # Last, since it is what makes the folder a pipeline.
        with atomic_path(folder / INDEX) as temporary:
            shutil.copyfile(self.folder / INDEX, temporary)


def _usual_sampling(scheduler: Mapping[str, Any]) -> Sampling:
    # Karras' times end where there is no signal at all; those of the clock do not.
    return Sampling(spacing="karras" if family_of(scheduler) == "edm" else "clock")


def _load_network(folder: Path) -> tuple[str, nn.Module]:
    try:
        import diffusers
    except ImportError as error:
        raise ImportError(
            'a diffusers folder needs diffusers: pip install "fewstep-core[diffusers]"'
        ) from error
    index = _read_json(folder / INDEX)
    part = next((part for part in PARTS if isinstance(index.get(part), list)), None)
    if part is None:
        raise CheckpointError(f"{folder / INDEX} names neither a unet nor a transformer")
    library, name = index[part][:2]
    kind = getattr(diffusers, str(name), None) if library == "diffusers" else None
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):  # pyright: ignore[reportAttributeAccessIssue]
        raise CheckpointError(f"{folder / INDEX} asks for {library}.{name}, which is no network of diffusers")
    try:
        network = kind.from_pretrained(folder / part, use_safetensors=True, local_files_only=True)  # type: ignore[attr-defined]
    except Exception as error:  # diffusers fails in many ways on a damaged folder
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{folder / part} cannot be read: {first}") from error
    return part, network


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return values


def _is_part(entry: Path) -> bool:
    """Whether a folder belongs to the pipeline (and not to a run that lies there)."""
    return any(
        (entry / name).is_file() for name in (CONFIG, "scheduler_config.json", "tokenizer_config.json")
    )


def _entry(network: nn.Module, name: str) -> Any:
    return getattr(getattr(network, "config", None), name, None)


def _shape_of(network: nn.Module) -> tuple[int, ...]:
    channels, size = _entry(network, "in_channels"), _entry(network, "sample_size")
    if not isinstance(channels, int) or size is None:
        raise ValueError("the network's configuration has no in_channels and sample_size")
    sides = (size, size) if isinstance(size, int) else tuple(size)
    return (channels, *sides)
