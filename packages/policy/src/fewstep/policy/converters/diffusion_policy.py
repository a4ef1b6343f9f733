"""Published models of Diffusion Policy and 3D Diffusion Policy made into our networks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fewstep.core.keys import strip_prefixes
from fewstep.core.weights import CheckpointError, load_into, load_state_dict_file

from ..nets.point_encoder import WIDTHS, DP3Encoder
from ..nets.transformer import TransformerForDiffusion
from ..nets.unet1d import ConditionalUnet1D
from .official import OfficialPolicy, Statistics, transformer_config, under, unet_config, whole_number
from .torch_archive import TorchArchive, entries, plain_settings

WRAPPERS = ("module.", "_orig_mod.")
POINTS = "obs_encoder.extractor."
NORMALISER = "normalizer.params_dict."


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of a policy of Diffusion Policy, or of its network alone."""
    names = set(under(state, "model.") or state)
    unet = {"diffusion_step_encoder.1.weight", "down_modules.0.0.blocks.0.block.0.weight"}
    return unet <= names or {"pos_emb", "input_emb.weight", "ln_f.weight"} <= names


def from_official(file: str | Path, *, groups: int = 8, heads: int = 4) -> OfficialPolicy:
    """Load a published policy: a training checkpoint (.ckpt), a state dictionary, or safetensors.

    Of a training checkpoint the averaged weights are taken where it has them. Objects in it (its
    configuration) are not made; what they say is in the settings.

    Args:
        file: the checkpoint.
        groups: of the U-Net's normalisations, where the checkpoint does not say.
        heads: of the transformer's attentions, where the checkpoint does not say.

    Returns:
        The network; DP3's encoder of points under the name "points"; statistics under the published names
        ("obs" and "action", or the observations' own).

    Raises:
        CheckpointError: a file that cannot be read or has another layout, or a policy whose image encoder is
            not known here.

    Reference: Chi et al. 2023, "Diffusion Policy"; Ze et al. 2024, "3D Diffusion Policy", released models.
    """
    state, settings = _read(file)
    if not recognises(state):
        raise CheckpointError(f"{file} is not a policy of Diffusion Policy: it has no model.down_modules")
    weights = under(state, "model.") or dict(state)
    net = _network(weights, settings, str(file), groups, heads)
    load_into(net, weights, str(file))
    encoders: dict[str, nn.Module] = {}
    if any(name.startswith(POINTS) for name in state):
        encoders["points"] = _point_encoder(under(state, "obs_encoder."), str(file))
    elif any(name.startswith("obs_encoder.") for name in state):
        raise CheckpointError(
            f"{file} sees images through an encoder that is not converted here; only policies on states and "
            "on points are"
        )
    return OfficialPolicy(net.eval(), encoders, _statistics(state), settings)


def _read(file: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and settings."""
    try:
        return strip_prefixes(load_state_dict_file(file), WRAPPERS), {}
    except CheckpointError:
        if Path(file).suffix == ".safetensors" or not Path(file).is_file():
            raise
    archive = TorchArchive(file)
    content = entries(archive.content)
    groups = entries(content.get("state_dicts"))
    if not groups:
        raise CheckpointError(
            f"{file} is not a training checkpoint of Diffusion Policy: it has no state_dicts"
        )
    state = archive.tensors(groups.get("ema_model", groups.get("model")))
    if not state:
        raise CheckpointError(f"{file} has no weights under state_dicts: {', '.join(map(str, groups))}")
    settings = plain_settings(content.get("cfg"))
    return strip_prefixes(state, WRAPPERS), settings if isinstance(settings, dict) else {}


def _network(
    weights: Mapping[str, Tensor], settings: Mapping[str, Any], source: str, groups: int, heads: int
) -> nn.Module:
    policy = settings.get("policy") or {}
    options = {**policy, **(policy.get("model") or {})}
    if "pos_emb" in weights:
        return TransformerForDiffusion(
            transformer_config(weights, source, whole_number(options, "n_head", heads))
        )
    return ConditionalUnet1D(unet_config(weights, source, whole_number(options, "n_groups", groups)))


def _point_encoder(weights: dict[str, Tensor], source: str) -> DP3Encoder:
    """DP3's encoder, its shape told by its weights."""
    try:
        channels = weights["extractor.mlp.0.weight"].shape[1]
        normalised = (
            weights["extractor.mlp.1.weight"].ndim == 1 if "extractor.mlp.1.weight" in weights else False
        )
        final_norm = "extractor.final_projection.1.weight" in weights
        project = "extractor.final_projection.0.weight" if final_norm else "extractor.final_projection.weight"
        state = [
            weights[name] for name in sorted(weights) if name.startswith("state_mlp.") and "weight" in name
        ]
        if channels not in WIDTHS or not state:
            raise KeyError("state_mlp")
        encoder = DP3Encoder(
            state[0].shape[1],
            channels,
            weights[project].shape[0],
            [layer.shape[0] for layer in state],
            normalised,
            final_norm,
        )
    except KeyError as error:
        raise CheckpointError(f"{source} has no encoder of DP3's kind: {error} is missing") from error
    load_into(encoder, weights, source)
    return encoder.eval()


def _statistics(state: Mapping[str, Tensor]) -> Statistics:
    """The normaliser's numbers by observation."""
    found: Statistics = {}
    for name, value in under(state, NORMALISER).items():
        observation, _, rest = name.partition(".")
        found.setdefault(observation, {})[rest.removeprefix("input_stats.")] = value
    return found
