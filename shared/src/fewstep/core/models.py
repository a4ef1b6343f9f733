"""DiffusionModel: a trained network with its path and the meaning of its output, in one checkpoint."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core import paths, predictions
from fewstep.core.checkpoints import Checkpoint
from fewstep.core.configs import config_from_dict
from fewstep.core.denoiser import Denoiser
from fewstep.core.nets import DiT, DiTConfig
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.search import load_plan, saved_budgets

NETWORKS: dict[str, tuple[type[nn.Module], type]] = {"dit": (DiT, DiTConfig)}


@dataclass(frozen=True)
class DiffusionModelConfig:
    """What a DiffusionModel is built from.

    Args:
        shape: of one sample, (channels, height, width).
        network: a name of `NETWORKS`.
        network_options: fields of the network's configuration.
        path: what `Path.to_config` gave.
        prediction: what the network predicts, a name of `predictions.names()`.
        labels: names of the classes, in the order of their numbers; empty without classes.

    Raises:
        ValueError: an entry is unknown.
    """

    shape: tuple[int, ...]
    network: str = "dit"
    network_options: dict[str, Any] = field(default_factory=dict)
    path: dict[str, Any] = field(default_factory=lambda: paths.EDM().to_config())
    prediction: str = "edm"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {self.network!r}")
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape must be positive sizes such as (1, 8, 8), got {self.shape}")
        predictions.get(self.prediction)
        paths.from_config(self.path)
        config_from_dict(NETWORKS[self.network][1], self.network_options, "network_options")


class DiffusionModel(nn.Module, Checkpoint):
    """A diffusion model that samplers, search and distillation can use without knowing its network.

    Args:
        config: see DiffusionModelConfig.

    Example:
        >>> from fewstep.core import sample
        >>> model = DiffusionModel.from_pretrained("digits")
        >>> sample(model.denoiser(label=7), steps=6, shape=(2, *model.shape)).shape
        torch.Size([2, 1, 8, 8])
        >>> model.tuned_plan(5).nfe  # searched by `fewstep tune`, for sample(..., solver=model.tuned_plan(5))
        5
    """

    config_class = DiffusionModelConfig
    package = "fewstep.core"

    def __init__(self, config: DiffusionModelConfig) -> None:
        super().__init__()
        self.config = config
        kind, kind_config = NETWORKS[config.network]
        self.net = kind(config_from_dict(kind_config, config.network_options))
        self.path: Path = paths.from_config(config.path)

    @classmethod
    def with_network(
        cls, config: Any, path: Path, prediction: str, labels: tuple[str, ...] = ()
    ) -> "DiffusionModel":
        """A new model from the configuration of its network."""
        name = next((name for name, (_, kind) in NETWORKS.items() if isinstance(config, kind)), None)
        if name is None:
            raise TypeError(f"config must be of a known network ({', '.join(NETWORKS)}), got {config!r}")
        shape = (config.channels, *config.size)
        return cls(
            DiffusionModelConfig(shape, name, _as_json(asdict(config)), path.to_config(), prediction, labels)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return self.config.shape

    @property
    def null_label(self) -> int:
        """The label that means "none", for classifier-free guidance."""
        return len(self.config.labels)

    def denoiser(self, label: int | Tensor | None = None, **options: Any) -> Denoiser:
        """The model as a Denoiser.

        Args:
            label: class of every sample, or one per sample, shape (batch,); None: unconditional.
            options: `dtype` and `autocast` of Denoiser.

        Raises:
            ValueError: the model has no classes, or no such class.
        """
        denoise = Denoiser(self.net, self.path, self.config.prediction, **options)
        return denoise if label is None else denoise.given(label=self._labels(label))

    def tuned_plan(self, calls: int) -> Plan | None:
        """The plan that `fewstep tune` left beside the checkpoint for so many network calls, or None."""
        if self.folder is None or calls not in saved_budgets(self.folder):
            return None
        return load_plan(self.folder, calls)

    def forward(
        self,
        x: Float[Tensor, "batch *shape"],
        t: Float[Tensor, "batch"],
        label: Shaped[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """The raw prediction of the network; the arguments are those of the network."""
        return self.net(x, t, label)

    def _labels(self, label: int | Tensor) -> Tensor:
        chosen = torch.as_tensor(label).reshape(-1)
        if not self.config.labels:
            raise ValueError("label given, but this model has no classes")
        if int(chosen.min()) < 0 or int(chosen.max()) > self.null_label:
            raise ValueError(f"label must lie in 0 … {self.null_label} (the last means none), got {label}")
        return chosen


def _as_json(values: dict[str, Any]) -> dict[str, Any]:
    """The same with tuples as lists, as a configuration is after a trip through its file."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
