"""Published RDDM checkpoints made into our models."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.weights import CheckpointError, load_into, load_state_dict_file

from ..methods.rddm import RDDM, RDDMConfig
from .official import Official

# The published trainer keeps an averaged model beside the one that is trained.
AVERAGED = "ema_model."
PARTS = r"(?:unet[01]|init_conv|time_mlp|downs|mid_\w+|ups(?:_no_skip)?|final_\w+)"
NETWORK = re.compile(rf"^{PARTS}\.")
KNOWN = re.compile(rf"^(?P<prefix>(?:\w+\.)*?)(?P<name>{PARTS}\..+|alpha_res|alphas_cumsum|betas2_cumsum)$")
SHARE = "alpha_res"


def from_official(
    file: str | Path | Official,
    *,
    objective: str | None = None,
    sum_scale: float = 1.0,
    schedule: str | None = None,
    clock: str = "index",
    steps: int = 1000,
    sampling_steps: int = 5,
    tasks: tuple[str, ...] = (),
    averaged: bool = True,
) -> RDDM:
    """Load a published RDDM model.

    Found from names and shapes: one network, two, or a shared encoder; widths; whether the input and a mask
    are told; the objective of a model that chose it itself (experiment 3); the schedule, where the trainer
    kept it. The rest is not in the files. The published trainer's files (step, model, opt, ema, scaler) are
    understood, and so are plain state dictionaries. Nothing in them is executed.

    Args:
        file: the checkpoint, such as "model-80.pt", or what has been read of it.
        objective: what the network predicts; by default "pred_res_noise" for two heads, what the stored share
            says or "pred_res" for one.
        sum_scale: variance of the noise at the start: the stored schedule's, when there is one.
        schedule: "default" or "converted"; the stored one, else "default".
        clock: "coefficients" for the path-independent networks of experiments 0, 4 and 5.
        steps: noise levels; the stored schedule's, when there is one.
        sampling_steps: network calls of a restoration.
        tasks: what the model was trained for.
        averaged: take the running average of the weights where there is one.

    Returns:
        The model, in evaluation mode; `save_pretrained` writes it in our own format.

    Raises:
        CheckpointError: a file that cannot be read or has another layout.
        ValueError: a name that is not known, or a number out of its range.

    Reference: Liu et al. 2024, "Residual Denoising Diffusion Models", published code.
    """
    official = Official.of(file)
    stored = stored_state(official, averaged)
    state = {name: value for name, value in stored.items() if NETWORK.match(name)}
    options, conditions = network_options(state, official)
    found = stored_schedule(stored)
    config = RDDMConfig(
        steps=int(found.get("steps", steps)),
        sampling_steps=sampling_steps,
        sum_scale=float(found.get("sum_scale", sum_scale)),
        schedule=schedule or found.get("schedule", "default"),
        objective=objective or _objective(options, stored),
        clock=clock,
        conditions=conditions,
        network_options=options,
        padding=2 ** (len(options["dim_mults"]) - 1),
        tasks=tasks,
    )
    model = RDDM(config)
    load_into(model.net, state, str(official))
    return model.eval()


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether names are those of RDDM, of its network alone or of its trainer.

    Its blocks are the ones with "block1.norm" (IR-SDE's have none) and "unet0." or "ups_no_skip." before.

    Example:
        >>> import torch
        >>> recognises({"model.unet0.downs.0.0.block1.norm.weight": torch.zeros(8)})
        True
    """
    return any(
        re.search(r"(^|\.)(unet0\.downs|ups_no_skip)\..*block1\.norm\.weight$", name) for name in state
    )


def stored_state(file: str | Path | Official, averaged: bool = True) -> dict[str, Tensor]:
    """Weights and schedule of a file by the names that they have in the published code.

    Args:
        file: the checkpoint.
        averaged: prefer the running average.

    Raises:
        CheckpointError: the file cannot be read.
    """
    official = Official.of(file)
    state = official.tensors
    if not averaged:
        # The other entry of the trainer's files; without it, the only copy is meant.
        with suppress(CheckpointError):
            state = load_state_dict_file(official.file, key="model")
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        found = KNOWN.match(name)
        if found:
            groups.setdefault(found["prefix"], {})[found["name"]] = value

    def rank(prefix: str) -> tuple[bool, int]:
        return (AVERAGED in prefix) != averaged, len(prefix)

    merged: dict[str, Tensor] = {}
    # The schedule's prefix is the shorter: both are of the same copy of the model.
    for prefix in sorted(groups, key=rank, reverse=True):
        merged |= groups[prefix]
    return merged


def network_options(
    state: Mapping[str, Tensor], source: str | Path | Official = "the file"
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Arguments of `unet_res` that fit a state dictionary, and what the network is told.

    Args:
        state: weights by name, without prefixes.
        source: of the weights, for the message.

    Raises:
        CheckpointError: it is not of this layout.
    """
    try:
        return _network_options(state)
    except KeyError as error:
        raise CheckpointError(f"{source} is not an RDDM network: it has no {error.args[0]}") from None


def stored_schedule(stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """Schedule, its length and the noise at its end, from the tables that the published trainer keeps.

    Returns:
        {"steps", "schedule", "sum_scale"}; empty where there are no tables.
    """
    done, noise = stored.get("alphas_cumsum"), stored.get("betas2_cumsum")
    if done is None or noise is None:
        return {}
    # The default schedule ends where nothing of the clean image is left.
    converted = float(done[-1]) < 0.9999
    return {
        "steps": len(done),
        "schedule": "converted" if converted else "default",
        "sum_scale": 1.0 if converted else round(min(float(noise[-1]), 1.0), 6),
    }


def _network_options(state: Mapping[str, Tensor]) -> tuple[dict[str, Any], tuple[str, ...]]:
    shared = any(name.startswith("ups_no_skip.") for name in state)
    root = "" if shared else "unet0."
    first = state[f"{root}init_conv.weight"]
    head = state[f"{root}final_conv_1.weight" if shared else "unet0.final_conv.weight"]
    dim, levels = first.shape[0], 0
    multiples = []
    while f"{root}downs.{levels}.3.weight" in state:
        multiples.append(state[f"{root}downs.{levels}.3.weight"].shape[0] // dim)
        levels += 1
    if not levels:
        raise KeyError(f"{root}downs.0.3.weight")
    channels = head.shape[0]
    second = any(name.startswith("unet1.") for name in state)
    told = first.shape[1] // channels - 1
    options = {
        "dim": dim,
        "dim_mults": multiples,
        "channels": channels,
        "condition_channels": first.shape[1] - channels,
        "share_encoder": 1 if shared else 0 if second else -1,
    }
    return options, ("input", "mask")[:told]


def _objective(options: Mapping[str, Any], stored: Mapping[str, Tensor]) -> str:
    if options["share_encoder"] != -1:
        return "pred_res_noise"
    share = stored.get(SHARE)
    return "pred_noise" if share is not None and float(share) <= 0.5 else "pred_res"
