"""What the converters give: the networks of a published policy and what is known about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fewstep.core.weights import CheckpointError

from ..nets.transformer import TransformerConfig
from ..nets.unet1d import Unet1dConfig

Statistics = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class OfficialPolicy:
    """A published policy, taken apart.

    Args:
        net: denoises action chunks, in evaluation mode.
        encoders: of images, by the name of the observation; cameras that share one have the same module.
        statistics: of the normaliser: by name of the observation ("action" among them), then by the name of
            the statistic (min, max, mean, std, or scale and offset of y = x·scale + offset).
        settings: the published configuration as far as the file holds one.
    """

    net: nn.Module
    encoders: Mapping[str, nn.Module] = field(default_factory=dict)
    statistics: Statistics = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The values whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def whole_number(settings: Mapping[str, Any], name: str, default: int) -> int:
    """A whole number; published configurations also hold None and references to other entries."""
    value = settings.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def unet_config(state: Mapping[str, Tensor], source: str, groups: int = 8) -> Unet1dConfig:
    """Shape of a temporal U-Net from its weights under our names.

    Args:
        state: weights by name.
        source: of the weights, for the message.
        groups: of its normalisations, which the weights do not say.

    Raises:
        CheckpointError: it is no such network, or one of a kind that is not known here.
    """
    levels, widths = 0, []
    while (weight := state.get(f"down_modules.{levels}.0.blocks.0.block.0.weight")) is not None:
        widths.append(weight.shape[0])
        levels += 1
    first = "down_modules.0.0."
    told = state.get(first + "cond_encoder.1.weight")
    embedding = state.get("diffusion_step_encoder.3.bias")
    out = state.get("final_conv.1.weight")
    if not widths or told is None or embedding is None or out is None:
        raise CheckpointError(
            f"{source} holds no temporal U-Net of a known kind (down_modules, cond_encoder.1, "
            "diffusion_step_encoder.3, final_conv.1)"
        )
    width, size = told.shape[1], len(embedding)
    local = state.get("local_cond_encoder.0.blocks.0.block.0.weight")
    if first + "cond_encoder.3.weight" in state:
        condition = "mlp_film"
    else:
        condition = "film" if told.shape[0] == 2 * widths[0] else "add"
    try:
        return Unet1dConfig(
            input_dim=out.shape[0],
            local_cond_dim=None if local is None else local.shape[1],
            global_cond_dim=width - size if width > size else None,
            embedding=size,
            down_dims=tuple(widths),
            kernel=state[first + "blocks.0.block.0.weight"].shape[2],
            groups=groups,
            condition=condition,
        )
    except ValueError as error:
        raise CheckpointError(f"{source} holds a temporal U-Net that is refused: {error}") from error


def transformer_config(state: Mapping[str, Tensor], source: str, heads: int = 4) -> TransformerConfig:
    """Shape of a transformer from its weights.

    Args:
        state: weights by name.
        source: of the weights, for the message.
        heads: of its attentions, which the weights do not say.

    Raises:
        CheckpointError: it is no such network.
    """
    wanted = ("pos_emb", "head.weight", "input_emb.weight")
    if any(name not in state for name in wanted):
        raise CheckpointError(f"{source} holds no transformer of Diffusion Policy ({', '.join(wanted)})")
    told = state.get("cond_pos_emb")
    observed = state.get("cond_obs_emb.weight")
    trunk, condition = _layers(state, "decoder"), _layers(state, "encoder")
    try:
        return TransformerConfig(
            input_dim=state["head.weight"].shape[0],
            horizon=state["pos_emb"].shape[1] - (told is None),
            cond_dim=0 if observed is None else observed.shape[1],
            n_obs_steps=max(1, told.shape[1] - 1) if told is not None else 1,
            layers=trunk or condition,
            heads=heads,
            width=state["head.weight"].shape[1],
            causal="mask" in state,
            time_as_condition=told is not None,
            condition_layers=condition if trunk else 0,
        )
    except ValueError as error:
        raise CheckpointError(f"{source} holds a transformer that is refused: {error}") from error


def _layers(state: Mapping[str, Tensor], name: str) -> int:
    return len({key.split(".")[2] for key in state if key.startswith(f"{name}.layers.")})
