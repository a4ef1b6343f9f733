"""Published OFTSR checkpoints, and other weights of guided diffusion's U-Net, made into our models."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.core.weights import CheckpointError, load_into

from ..methods.oftsr import OFTSR, OFTSRConfig
from ..nets.guided_unet import GuidedUNet
from .official import NAMELESS, Official, without_wrappers


def from_official(
    file: str | Path | Official,
    *,
    kind: str = "student",
    perturbation: float = 0.2,
    scale: int = 4,
    head_channels: int = 64,
    network_options: Mapping[str, Any] | None = None,
) -> OFTSR:
    """Load an OFTSR model: a flow or its student.

    Two layouts are understood. A state dictionary (plain, or under "model" or "state_dict", with "module."
    or "_orig_mod." before the names) tells the sizes of the network itself. The published files hold the
    averaged weights as a list without names ({"ema": {"shadow_params": […]}, "step": …}); they are taken in
    the order of the network of the published configurations, or of `network_options`. Nothing in them is
    executed.

    Args:
        file: the checkpoint, or what has been read of it.
        kind: "flow" or "student", which the files do not tell.
        perturbation: noise of the start: 0.1 for the published FFHQ models, 0.2 for DIV2K and ImageNet, 0.5
            for noisy inputs.
        scale: enlargement.
        head_channels: channels of an attention head, which names and shapes do not tell.
        network_options: sizes of the network of a file without names.

    Returns:
        The model, in evaluation mode; `save_pretrained` writes it in our own format.

    Raises:
        CheckpointError: a file that cannot be read or has another layout.

    Reference: Zhu et al. 2025, "OFTSR", published code and configurations.
    """
    official = Official.of(file)
    state = official.state
    if _nameless(state):
        options = dict(network_options or {})
        state = _named(list(state.values()), options, official)
    else:
        options = network_options_of(state, official, head_channels)
    multiple = 2 ** (len(options.get("channel_mult", range(6))) - 1)
    config = OFTSRConfig(
        kind=kind,
        perturbation=perturbation,
        scale=scale,
        network_options=options,
        padding=-(-multiple // scale) if multiple % scale == 0 else multiple,
    )
    model = OFTSR(config)
    load_into(model.net, state, str(official))
    return model.eval()


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of guided diffusion's U-Net with residual blocks that change the resolution.

    ResShift's network has strided convolutions ("….op.weight") in their place. A list of averaged weights,
    which has no names, is taken for one too: of the systems here, OFTSR alone is published so.

    Example:
        >>> recognises({"time_embed.0.weight": torch.zeros(1), "middle_block.1.qkv.weight": torch.zeros(1)})
        True
        >>> recognises({"time_embed.0.weight": torch.zeros(1), "input_blocks.3.0.op.weight": torch.zeros(1)})
        False
    """
    if _nameless(state):
        return True
    names = set(without_wrappers(state))
    strided = any(name.endswith(".op.weight") for name in names)
    return {"time_embed.0.weight", "middle_block.1.qkv.weight"} <= names and not strided


def network_options_of(
    state: Mapping[str, Tensor], source: str | Path | Official = "the file", head_channels: int = 64
) -> dict[str, Any]:
    """Arguments of GuidedUNet that fit a state dictionary.

    Args:
        state: weights by name, without prefixes.
        source: of the weights, for the message.
        head_channels: of an attention head.

    Raises:
        CheckpointError: it is not of this layout.
    """
    if _nameless(state) or not recognises(state):
        raise CheckpointError(f"{source} is not a guided-diffusion U-Net with resampling residual blocks")
    channels = state["time_embed.0.weight"].shape[1]
    widths, attention = _stages(state)
    levels, per_level = _levels(state, len(widths))
    mult = [widths[level * (per_level + 1)] / channels for level in range(levels)]
    found = sorted({2 ** (index // (per_level + 1)) for index in attention})
    return {
        "in_channels": state["input_blocks.0.0.weight"].shape[1],
        "model_channels": channels,
        "channel_mult": tuple(int(each) if each == int(each) else each for each in mult),
        "num_res_blocks": per_level,
        "attention_downsampling": tuple(found),
        "head_channels": head_channels,
        "outputs": state["out.2.weight"].shape[0],
    }


def _stages(state: Mapping[str, Tensor]) -> tuple[list[int], list[int]]:
    """Widths of the stages on the way down after the first, and which of them have attention."""
    pattern = re.compile(r"^input_blocks\.(\d+)\.0\.out_layers\.3\.weight$")
    widths = {int(found[1]): state[name].shape[0] for name in state if (found := pattern.match(name))}
    attention = [number for number in widths if f"input_blocks.{number}.1.qkv.weight" in state]
    ordered = sorted(widths)
    return [widths[number] for number in ordered], [ordered.index(number) for number in attention]


def _levels(state: Mapping[str, Tensor], stages: int) -> tuple[int, int]:
    """Number of levels and residual blocks per level.

    On the way down there are levels·(blocks + 1) − 1 stages after the first. On the way up, one stage per
    change of resolution ends with a block that doubles it.
    """
    pattern = re.compile(r"^output_blocks\.(\d+)\.([12])\.in_layers\.0\.weight$")
    levels = 1 + sum(1 for name in state if pattern.match(name))
    return levels, (stages + 1) // levels - 1


def _nameless(state: Mapping[str, Tensor]) -> bool:
    return bool(state) and all(name.startswith(NAMELESS) for name in state)


def _named(values: Sequence[Tensor], options: Mapping[str, Any], file: object) -> dict[str, Tensor]:
    """Weights in the order of the network's parameters, by their names."""
    with torch.device("meta"):
        names = [name for name, _ in GuidedUNet(**options).named_parameters()]
    if len(names) != len(values):
        raise CheckpointError(
            f"{file} holds {len(values)} averaged weights, the network has {len(names)}: see network_options"
        )
    return dict(zip(names, values, strict=True))
