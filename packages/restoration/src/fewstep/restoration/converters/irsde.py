"""Published checkpoints of IR-SDE and Refusion made into our models."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.core.weights import CheckpointError, load_into

from ..methods.denoising_sde import DenoisingSDE, DenoisingSDEConfig
from ..methods.irsde import IRSDE
from ..methods.irsde_config import IRSDEConfig
from .official import Official, without_wrappers

# Noise of the published models where one number fits all of a kind.
REFUSION_SIGMA = 50.0
DENOISERS = {"conditional-unet": (75.0, 100), "conditional-nafnet": (70.0, 1000)}


def recognises(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dictionary is a network of IR-SDE or Refusion, whatever stands before its names.

    The U-Net is told from RDDM's by blocks without norms; NAFNet from others by its blocks' time layers.
    """
    return kind_of(without_wrappers(state)) is not None


def from_official(
    file: str | Path | Official,
    autoencoder: str | Path | None = None,
    *,
    max_sigma: float | None = None,
    steps: int | None = None,
    schedule: str = "cosine",
    eps: float | None = None,
    subtract_first: bool = True,
    scale: int = 1,
    fill: float | None = None,
    long_skip: bool | None = None,
    tasks: Sequence[str] = (),
) -> IRSDE | DenoisingSDE:
    """Load a published model of IR-SDE, Refusion, or of the code of DA-CLIP without its text encoder.

    Kind of network, widths, levels, blocks and whether it is shown a degraded image are found from names and
    shapes of the tensors; averaged weights are preferred where a file has both. A network that is shown none
    becomes a DenoisingSDE. What the tensors do not tell has to be said: the noise, the enlargement, the task.

    Args:
        file: the network; a plain state dictionary, perhaps with "module." or "ema_model." before the names.
        autoencoder: of latent Refusion.
        max_sigma: noise in 8-bit levels. By default 50 for NAFNets, and 75 (U-Net) or 70 (NAFNet) for
            denoisers; the published U-Nets have 10 (rain, blur) or 30 (super-resolution,
            inpainting, shadows).
        steps: times of the path: 100, and 1000 for the denoising NAFNet.
        schedule: θ.
        eps: what is left of the clean image at the last time: 0.005, for denoisers 0.04.
        subtract_first: see `IRSDEConfig`; False for networks trained with DA-CLIP's code.
        scale: enlargement that the network expects to have been made before it.
        fill: value of unknown pixels, for inpainting (published: 1).
        long_skip: see ConditionalNAFNet; by default in latent models.
        tasks: what it was trained for.

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: a file that cannot be read or has another layout.
        ValueError: max_sigma is needed.

    Reference: Luo et al. 2023, IR-SDE and Refusion, released models and their option files.
    """
    official = Official.of(file)
    state = official.state
    kind = kind_of(state)
    if kind is None:
        raise CheckpointError(f"{file} is no network of IR-SDE or Refusion: {_reason(state)}")
    options = unet_options(state) if kind == "conditional-unet" else nafnet_options(state)
    if not options["conditional"]:
        del options["conditional"]
        usual, times = DENOISERS[kind]
        config = DenoisingSDEConfig(
            steps=times if steps is None else steps,
            max_sigma=usual if max_sigma is None else max_sigma,
            schedule=schedule,
            eps=0.04 if eps is None else eps,
            network=kind,
            network_options=options,
        )
        denoiser = DenoisingSDE(config)
        load_into(denoiser.net, state, str(official))
        return denoiser.eval()
    if max_sigma is None and kind == "conditional-unet":
        raise ValueError("max_sigma must be given: it is not in the file (published: 10 or 30)")
    stage = None if autoencoder is None else Official.of(autoencoder).state
    if kind == "conditional-nafnet":
        options["long_skip"] = autoencoder is not None if long_skip is None else long_skip
    model = IRSDE(
        IRSDEConfig(
            steps=100 if steps is None else steps,
            max_sigma=REFUSION_SIGMA if max_sigma is None else max_sigma,
            schedule=schedule,
            eps=0.005 if eps is None else eps,
            subtract_first=subtract_first,
            network=kind,
            network_options=options,
            autoencoder=None if stage is None else autoencoder_options(stage, str(autoencoder)),
            scale=scale,
            fill=fill,
            tasks=tuple(tasks),
        )
    )
    load_into(model.net, state, str(official))
    if model.autoencoder is not None and stage is not None:
        _check_fit(options, model, file, autoencoder)
        load_into(model.autoencoder, stage, str(autoencoder))
    return model.eval()


def kind_of(state: Mapping[str, Tensor]) -> str | None:
    """Name of the network that has these tensors, or None."""
    if "middle_blks.0.beta" in state and "middle_blks.0.mlp.1.weight" in state:
        return "conditional-nafnet"
    unet = "downs.0.0.block1.proj.weight" in state and "mid_block1.mlp.1.weight" in state
    return "conditional-unet" if unet and "downs.0.0.block1.norm.weight" not in state else None


def unet_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of ConditionalUNet that fit a state dictionary."""
    first, last = state["init_conv.weight"], state["final_conv.weight"]
    levels = _count(state, "downs.{}.0.")
    nf = first.shape[0]
    widths = [state[f"downs.{i}.3.weight"].shape[0] // nf for i in range(levels)]
    plain = widths == [2 ** (i + 1) for i in range(levels)]
    conditional = first.shape[1] == 2 * last.shape[0]
    return {
        "in_nc": first.shape[1] // (1 + conditional),
        "out_nc": last.shape[0],
        "nf": nf,
        **({"depth": levels} if plain else {"ch_mult": widths}),
        "conditional": conditional,
        "middle": "full" if "mid_attn.fn.fn.to_out.weight" in state else "linear",
    }


def nafnet_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of ConditionalNAFNet that fit a state dictionary."""
    first, last = state["intro.weight"], state["ending.weight"]
    levels = _count(state, "encoders.{}.")
    return {
        "img_channel": last.shape[0],
        "width": first.shape[0],
        "enc_blk_nums": [_count(state, f"encoders.{i}.{{}}.") for i in range(levels)],
        "middle_blk_num": _count(state, "middle_blks.{}."),
        "dec_blk_nums": [_count(state, f"decoders.{i}.{{}}.") for i in range(levels)],
        "conditional": first.shape[1] == 2 * last.shape[0],
    }


def autoencoder_options(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """Arguments of RefusionAutoencoder that fit a state dictionary.

    Raises:
        CheckpointError: it is not of this layout.
    """
    if "latent_conv.weight" not in state or "encoder.0.0.block1.proj.weight" not in state:
        raise CheckpointError(f"{source} is no autoencoder of Refusion: it has no latent_conv.weight")
    first = state["init_conv.weight"]
    levels = _count(state, "encoder.{}.")
    return {
        "in_ch": first.shape[1],
        "out_ch": state["final_conv.weight"].shape[0],
        "ch": first.shape[0],
        "ch_mult": [state[f"encoder.{i}.3.weight"].shape[0] // first.shape[0] for i in range(levels)],
        "embed_dim": state["latent_conv.weight"].shape[0],
    }


def _check_fit(options: Mapping[str, Any], model: IRSDE, file: object, autoencoder: object) -> None:
    channels = options.get("in_nc", options.get("img_channel"))
    if channels != model.state_channels:
        raise CheckpointError(
            f"{file} works on {channels} channels, but the latents of {autoencoder} have "
            f"{model.state_channels}: it was trained with another autoencoder"
        )


def _reason(state: Mapping[str, Tensor]) -> str:
    if any(".cam_mlp." in name for name in state):
        return "it is told the camera (bokeh), which is not supported"
    return "it has neither middle_blks.0.mlp.1.weight nor blocks without norms"


def _count(state: Mapping[str, Tensor], name: str) -> int:
    """How many numbers follow each other from 0 in the place of {} among the names that begin so."""
    count = 0
    while any(key.startswith(name.format(count)) for key in state):
        count += 1
    return count
