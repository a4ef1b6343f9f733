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
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.sampling import Sampling
from fewstep.core.search import load_plan, saved_budgets

NETWORKS: dict[str, tuple[type[nn.Module], type]] = {
    "dit": (DiT, DiTConfig),
    "mlp": (MLP, MLPConfig),
    "unet": (UNet, UNetConfig),
}


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
        sampling: fields of `Sampling`, how the model is meant to be sampled.

    Raises:
        ValueError: an entry is unknown.
    """

    shape: tuple[int, ...]
    network: str = "dit"
    network_options: dict[str, Any] = field(default_factory=dict)
    path: dict[str, Any] = field(default_factory=lambda: paths.EDM().to_config())
    prediction: str = "edm"
    labels: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {self.network!r}")
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape must be positive sizes such as (1, 8, 8), got {self.shape}")
        predictions.get(self.prediction)
        paths.from_config(self.path)
        config_from_dict(NETWORKS[self.network][1], self.network_options, "network_options")
        config_from_dict(Sampling, self.sampling, "sampling")


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
        cls,
        config: Any,
        path: Path,
        prediction: str,
        labels: tuple[str, ...] = (),
        sampling: "Sampling | None" = None,
    ) -> "DiffusionModel":
        """A new model from the configuration of its network."""
        name = next((name for name, (_, kind) in NETWORKS.items() if isinstance(config, kind)), None)
        if name is None:
            raise TypeError(f"config must be of a known network ({', '.join(NETWORKS)}), got {config!r}")
        shape = config.shape if isinstance(config, MLPConfig) else (config.channels, *config.size)
        options = _as_json(asdict(config))
        told = {} if sampling is None else _as_json(asdict(sampling))
        return cls(DiffusionModelConfig(shape, name, options, path.to_config(), prediction, labels, told))

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

    @property
    def sampling(self) -> "Sampling":
        """How the model is meant to be sampled."""
        return config_from_dict(Sampling, self.config.sampling, "sampling")

    def flow_map(self, label: int | Tensor | None = None) -> FlowMap:
        """The model as a map between two times; `label` as in `denoiser`."""
        conditions = {} if label is None else {"label": self._labels(label)}
        return FlowMap(self.net, self.path, self.config.prediction, conditions)

    def generate(
        self,
        count: int = 1,
        *,
        steps: int | None = None,
        seed: int = 0,
        noise: Tensor | None = None,
        label: int | Tensor | None = None,
        sampling: "Sampling | None" = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Draw samples the way the model is meant to be sampled.

        Args:
            count: of samples; sample i draws from a generator seeded with seed + i.
            steps: network calls for a sample of a student, steps of the solver otherwise (None: the model's
                own number).
            seed: of the first sample.
            noise: standard normal start, (count, *shape), in place of the seeds' first draw.
            label: class of every sample, or one per sample; None: unconditional.
            sampling: in place of the model's own.

        Returns:
            The samples, on the device of the weights.

        Raises:
            ValueError: if an argument is out of range.

        Example:
            >>> DiffusionModel.from_pretrained("digits").generate(2, steps=4).shape
            torch.Size([2, 1, 8, 8])
        """
        chosen = sampling or self.sampling
        return chosen.run(self.flow_map(label), self.shape, count, steps, seed, noise)

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
        return self.net(x, t, label=label) if label is not None else self.net(x, t)

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
