"""Published ResShift models made into ours."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.keys import rename
from fewstep.core.weights import CheckpointError, load_into

from ..methods.resshift import ResShift, ResShiftConfig
from .official import Official, without_wrappers

# Noise of the first level of every published model, by its number of steps.
MIN_NOISE_LEVELS = {4: 0.2, 15: 0.04}
TABLE = "middle_block.1.blocks.0.attn.relative_position_bias_table"
# Tensors that follow from the configuration, and those that training kept beside an autoencoder.
NETWORK_RULES = ((r"\.(relative_position_index|attn_mask)$", None),)
AUTOENCODER_RULES = ((r"^(loss|model_ema)\.", None),)


def from_official(
    file: str | Path | Official,
    autoencoder: str | Path,
    *,
    steps: int | None = None,
    min_noise_level: float | None = None,
) -> ResShift:
    """Load a published ResShift model: network and autoencoder.

    Architecture, mask channel, latent channels, enlargement and padding are found from names and shapes of
    the tensors. The number of steps is not in them: it is the one given, else the one in the published file's
    name ("…_s15_v2.pth"), else 4. Nor is the rest of the schedule, which is common to all published models
    (κ = 2, √η ≤ 0.99, power 0.3, prediction of the clean latent), nor whether an inpainting network was
    trained on photographs or on faces. Files may be plain state dictionaries or {"state_dict": …}, with
    "module." or "_orig_mod." before the names. Nothing in them is executed.

    Args:
        file: the network, or what has been read of it: resshift_realsrx4_s15_v1.pth, …_s15_v2.pth,
            …_s4_v3.pth, resshift_bicsrx4_s4.pth, resshift_inpainting_imagenet_s4.pth,
            resshift_inpainting_face_s4.pth or resshift_faceir_s4.pth.
        autoencoder: the one that it was trained with: autoencoder_vq_f4.pth, celeba256_vq_f4_dim3_face.pth
            (face inpainting) or ffhq512_vq_f8_dim8_face.pth (face restoration).
        steps: noise levels that the network was trained with.
        min_noise_level: noise of the first level; by default 0.2 for 4 steps and 0.04 for 15, as published.

    Returns:
        The model, in evaluation mode; `save_pretrained` writes it in our own format.

    Raises:
        CheckpointError: a file that cannot be read, has another layout, or does not fit the other one.
        ValueError: min_noise_level is needed for this number of steps.

    Reference: Yue, Wang & Loy 2023, "ResShift", and its journal version of 2024, released models.
    """
    official = Official.of(file)
    network, first_stage = official.state, Official.of(autoencoder).state
    options, stage_options = network_options(network, official), autoencoder_options(first_stage, autoencoder)
    steps = steps_in_name(official.file) or 4 if steps is None else steps
    if min_noise_level is None:
        if steps not in MIN_NOISE_LEVELS:
            raise ValueError(
                f"min_noise_level must be given for {steps} steps; it is known for {sorted(MIN_NOISE_LEVELS)}"
            )
        min_noise_level = MIN_NOISE_LEVELS[steps]
    model = ResShift(
        ResShiftConfig(
            steps=steps,
            min_noise_level=min_noise_level,
            scale=_scale(options, stage_options, official, autoencoder),
            first_stage_options=stage_options,
            network_options=options,
            padding=options["lq_size"],
        )
    )
    load_into(model.net, rename(network, NETWORK_RULES).state, str(official))
    load_into(model.first_stage, rename(first_stage, AUTOENCODER_RULES).state, str(autoencoder))
    return model.eval()


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of ResShift's network: a guided-diffusion U-Net with windowed attention.

    Example:
        >>> import torch
        >>> recognises({"middle_block.1.blocks.0.attn.relative_position_bias_table": torch.zeros(225, 1)})
        True
    """
    return TABLE in without_wrappers(state)


def variant(config: ResShiftConfig) -> str:
    """What a latent model is for, as far as its layout tells.

    Returns:
        "super-resolution"; "inpainting", when the network is told a mask; or "restoration" of images that
        keep their size, such as faces.
    """
    if config.network_options.get("cond_mask"):
        return "inpainting"
    return "super-resolution" if config.scale > 1 else "restoration"


def steps_in_name(file: str | Path) -> int | None:
    """Number of steps in a published file's name.

    Example:
        >>> steps_in_name("weights/resshift_realsrx4_s15_v2.pth"), steps_in_name("mine.pth")
        (15, None)
    """
    found = re.search(r"_s(\d+)(?=[_.]|$)", Path(file).name)
    return int(found[1]) if found else None


def network_options(
    state: Mapping[str, Tensor], source: str | Path | Official = "the file"
) -> dict[str, Any]:
    """Arguments of UNetModelSwin that fit a published state dictionary.

    The side of the training maps is told by the stored attention masks, and taken as 64 where there are none.

    Args:
        state: weights by name, without prefixes.
        source: of the weights, for the message.

    Raises:
        CheckpointError: it is not of this layout.
    """
    try:
        return _network_options(state)
    except KeyError as error:
        raise CheckpointError(f"{source} is not a ResShift network: it has no {error.args[0]}") from None


def autoencoder_options(state: Mapping[str, Tensor], source: str | Path = "the file") -> dict[str, Any]:
    """Arguments of VQModel that fit a published state dictionary.

    Args:
        state: weights by name, without prefixes.
        source: of the weights, for the message.

    Raises:
        CheckpointError: it is not of this layout.
    """
    try:
        return _autoencoder_options(state)
    except KeyError as error:
        raise CheckpointError(f"{source} is not a VQ autoencoder: it has no {error.args[0]}") from None


def _network_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    channels = state["time_embed.0.weight"].shape[1]
    blocks, widths, attended = [0], [0], [False]
    image_size = 64
    window = _window(state[TABLE])
    for k in range(1, _count(state, "input_blocks.{}.0.")):
        name = f"input_blocks.{k}"
        if f"{name}.0.op.weight" in state:
            blocks.append(0)
            widths.append(0)
            attended.append(False)
            continue
        blocks[-1] += 1
        widths[-1] = state[f"{name}.0.in_layers.2.weight"].shape[0]
        layer = f"{name}.1.blocks"
        if f"{layer}.0.attn.qkv.weight" in state:
            attended[-1] = True
            window = max(window, _window(state[f"{layer}.0.attn.relative_position_bias_table"]))
        if f"{layer}.1.attn_mask" in state:
            # One mask per window of a square map of this level.
            side = math.isqrt(len(state[f"{layer}.1.attn_mask"])) * _window(
                state[f"{layer}.1.attn.relative_position_bias_table"]
            )
            image_size = side << (len(blocks) - 1)
    width, hidden = (
        state["middle_block.1.patch_embed.proj.weight"],
        state["middle_block.1.blocks.0.mlp.fc1.weight"],
    )
    heads = state[TABLE].shape[1]
    halvings = sum(f"feature_extractor.{3 * i}.weight" in state for i in range(8))
    out_channels = state["out.2.weight"].shape[0]
    joined = state["input_blocks.0.0.weight"].shape[1]
    first = state["feature_extractor.0.weight"].shape[1] if halvings else joined - out_channels
    return {
        "image_size": image_size,
        "in_channels": joined - (16 << halvings if halvings else first),
        "model_channels": channels,
        "out_channels": out_channels,
        "attention_resolutions": [image_size >> i for i, attends in enumerate(attended) if attends],
        "num_res_blocks": blocks,
        "channel_mult": [_ratio(value, channels) for value in widths],
        "num_head_channels": width.shape[0] // heads,
        "swin_depth": _count(state, "middle_block.1.blocks.{}."),
        "swin_embed_dim": width.shape[0],
        "window_size": window,
        "mlp_ratio": _ratio(hidden.shape[0], width.shape[0]),
        "cond_lq": first > 0,
        "cond_mask": first == 4,
        "lq_size": image_size << halvings,
    }


def _autoencoder_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    first = state["encoder.conv_in.weight"]
    levels = _count(state, "encoder.down.{}.")
    widths = [state[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)]
    codebook = state["quantize.embedding.weight"]
    return {
        "in_channels": first.shape[1],
        "ch": first.shape[0],
        "ch_mult": [width // first.shape[0] for width in widths],
        "num_res_blocks": [_count(state, f"encoder.down.{level}.block.{{}}.") for level in range(levels)],
        "z_channels": state["encoder.conv_out.weight"].shape[0],
        "embed_dim": codebook.shape[1],
        "n_embed": codebook.shape[0],
    }


def _scale(options: dict[str, Any], stage: dict[str, Any], file: object, autoencoder: object) -> int:
    """Enlargement: how much smaller the latent is than the result, over how much it is than the input."""
    if options["out_channels"] != stage["embed_dim"]:
        raise CheckpointError(
            f"{file} works on latents of {options['out_channels']} channels, "
            f"but those of {autoencoder} have {stage['embed_dim']}: it was trained with another autoencoder"
        )
    scale, rest = divmod(2 ** (len(stage["ch_mult"]) - 1) * options["image_size"], options["lq_size"])
    if rest or not scale:
        raise CheckpointError(
            f"{file} takes larger images than {autoencoder} gives: they do not fit together"
        )
    return scale


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """How many numbers follow each other from 0 in the place of {} among the names that begin so."""
    count = 0
    while any(key.startswith(name.format(count)) for key in state):
        count += 1
    if not count:
        raise KeyError(name.format(0) + "*")
    return count


def _window(table: Tensor) -> int:
    """Side of the window that a table of relative positions is for: (2w − 1)² rows."""
    return (math.isqrt(table.shape[0]) + 1) // 2


def _ratio(part: int, whole: int) -> int | float:
    return part // whole if part % whole == 0 else part / whole
