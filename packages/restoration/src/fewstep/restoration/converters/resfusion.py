"""Published checkpoints of Resfusion made into our models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.weights import CheckpointError, load_into

from ..methods.resfusion import Resfusion
from ..methods.resfusion_config import ResfusionConfig
from .official import Official, without_wrappers

NETWORK = "denoising_module."
IMAGE_CHANNELS, MASK_CHANNELS = 3, 2


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dictionary is a network of Resfusion that is shown a degraded image.

    Its U-Net is RDDM's, which stands in RDDM's own files as `unet0` and `unet1`, or has a second way up where
    its encoder is shared; here it has no name, or that of its place in the Lightning module,
    `denoising_module`.
    """
    found = network_state(state)
    shared = any(name.startswith("ups_no_skip.") for name in found)
    return kind_of(found) is not None and not shared and condition_channels(found) > 0


def from_official(
    file: str | Path | Official,
    *,
    steps: int = 12,
    schedule: str = "linear",
    prediction: str = "resnoise",
    groups: int = 8,
    tasks: Sequence[str] = (),
) -> Resfusion:
    """Load a published Resfusion restorer: the Lightning checkpoint (its "-EMA" file is the averaged one).

    Kind of network, widths, levels and whether a mask is told are found from names and shapes of the
    tensors. The schedule, what is predicted and the groups of the norms are not in them.

    Args:
        file: Lightning checkpoint or a plain state dictionary, or what has been read of one.
        steps: T of the schedule.
        schedule: "linear" (LinearPro) or "cosine" (CosinePro).
        prediction: "resnoise", "x0" or "residual" (epsilon, sample and residual there).
        groups: groups of the norms of RDDM's U-Net.
        tasks: what it was trained for.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: a file that cannot be read or has another layout.

    Reference: Shi et al. 2024, "Resfusion", released models.
    """
    official = Official.of(file)
    state = network_state(official.tensors)
    kind = kind_of(state)
    if kind is None:
        raise CheckpointError(
            f"{file} is no network of Resfusion: it has neither downs.0.0.block1.norm.weight "
            "nor down.0.block.0.temb_proj.weight"
        )
    options = rddm_options(state, groups) if kind == "rddm-unet" else ddim_options(state)
    told = options["condition_channels"] - IMAGE_CHANNELS
    if told not in (0, MASK_CHANNELS):
        raise CheckpointError(
            f"{file} is told {options['condition_channels']} channels beside the noisy image; a restorer is "
            f"told {IMAGE_CHANNELS}, or {IMAGE_CHANNELS + MASK_CHANNELS} with a mask"
        )
    model = Resfusion(
        ResfusionConfig(
            steps=steps,
            schedule=schedule,
            prediction=prediction,
            network=kind,
            network_options=options,
            mask=told > 0,
            padding=2 ** (len(options["dim_mults" if kind == "rddm-unet" else "ch_mult"]) - 1),
            tasks=tuple(tasks),
        )
    )
    load_into(model.net, state, str(official))
    return model.eval()


def network_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors, without what the Lightning module holds beside it and without prefixes."""
    inside = {name: value for name, value in state.items() if name.startswith(NETWORK)}
    return without_wrappers(inside or state)


def kind_of(state: Mapping[str, Tensor]) -> str | None:
    """Name of the network that has these tensors, or None."""
    if {"downs.0.0.block1.norm.weight", "mid_attn.fn.fn.to_qkv.weight", "init_conv.weight"} <= set(state):
        return "rddm-unet"
    return "ddim-unet" if {"temb.dense.0.weight", "down.0.block.0.temb_proj.weight"} <= set(state) else None


def condition_channels(state: Mapping[str, Tensor]) -> int:
    """Channels that are joined to the noisy image."""
    name = "init_conv.weight" if "init_conv.weight" in state else "conv_in.weight"
    return state[name].shape[1] - IMAGE_CHANNELS


def rddm_options(state: Mapping[str, Tensor], groups: int = 8) -> dict[str, Any]:
    """Arguments of RDDMUnet that fit a state dictionary."""
    dim = state["init_conv.weight"].shape[0]
    levels = _count(state, "downs.{}.0.")
    return {
        "dim": dim,
        "dim_mults": [state[f"downs.{i}.3.weight"].shape[0] // dim for i in range(levels)],
        "condition_channels": condition_channels(state),
        "out_channels": state["final_conv.weight"].shape[0],
        "groups": groups,
    }


def ddim_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of DDIMUnet that fit a state dictionary; the attended levels stand for their resolutions."""
    ch = state["conv_in.weight"].shape[0]
    levels = _count(state, "down.{}.block.0.")
    size = 2 ** (levels + 3)
    attended = [i for i in range(levels) if f"down.{i}.attn.0.q.weight" in state]
    return {
        "image_size": size,
        "condition_channels": condition_channels(state),
        "out_channels": state["conv_out.weight"].shape[0],
        "ch": ch,
        "ch_mult": [state[f"down.{i}.block.0.conv1.weight"].shape[0] // ch for i in range(levels)],
        "num_res_blocks": _count(state, "down.0.block.{}."),
        "attn_resolutions": [size >> i for i in attended],
    }


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """How many numbers follow each other from 0 in the place of {} among the names that begin so."""
    count = 0
    while any(key.startswith(name.format(count)) for key in state):
        count += 1
    return count
