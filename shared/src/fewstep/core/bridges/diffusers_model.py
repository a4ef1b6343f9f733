"""Any diffusers UNet or transformer as a Denoiser."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.bridges.diffusers_config import path_from_config, prediction_from_config
from fewstep.core.denoiser import Denoiser


class DiffusersNet(nn.Module):
    """A diffusers network as net(x, t, **conditions) -> raw value with the channels that its path needs.

    Networks that also predict a variance (twice the channels) keep the first half.

    Args:
        model: a diffusers UNet or transformer, called as model(x, t, …, return_dict=False)[0].
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """The raw value.

        Args:
            x: state, (batch, channels, …).
            t: time of each sample, as the scheduler tells it.
            conditions: what the network takes besides: `encoder_hidden_states`, `class_labels` …
        """
        out = self.model(x, t, **conditions, return_dict=False)[0]
        return out[:, : x.shape[1]] if out.shape[1] == 2 * x.shape[1] else out


def from_diffusers(
    source: Any,
    scheduler: Any = None,
    *,
    dtype: torch.dtype | None = None,
    autocast: torch.dtype | None = None,
    **conditions: Any,
) -> Denoiser:
    """Make a Denoiser of a diffusers pipeline, or of a network and a scheduler.

    Args:
        source: a pipeline with a `unet` or `transformer` and a `scheduler`, or such a network alone.
        scheduler: whose configuration says path and prediction: a scheduler, its `config`, or such a
            dictionary; the pipeline's own by default.
        dtype: what the network computes in; its parameters' by default.
        autocast: see Denoiser.
        conditions: bound at once, as `Denoiser.given` does.

    Returns:
        The denoiser, on the path of the scheduler.

    Raises:
        TypeError: if no network or no scheduler is found.
        ValueError: if the configuration is not understood.

    Example:
        >>> from diffusers import DDPMScheduler, UNet2DModel
        >>> unet = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8),
        ...     down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=4)
        >>> denoise = from_diffusers(unet, DDPMScheduler())
        >>> denoise(torch.zeros(1, 1, 8, 8), 500.0).shape
        torch.Size([1, 1, 8, 8])
    """
    network = source
    if not isinstance(source, nn.Module):
        network = getattr(source, "unet", None) or getattr(source, "transformer", None)
        scheduler = getattr(source, "scheduler", None) if scheduler is None else scheduler
    if not isinstance(network, nn.Module):
        raise TypeError(f"source must be a diffusers network or pipeline, got {type(source).__name__}")
    config = getattr(scheduler, "config", scheduler)
    if not isinstance(config, Mapping):
        raise TypeError(f"scheduler must be a scheduler or its config, got {type(scheduler).__name__}")
    denoise = Denoiser(
        DiffusersNet(network),
        path_from_config(config),
        prediction_from_config(config),
        dtype=dtype,
        autocast=autocast,
    )
    return denoise.given(**conditions) if conditions else denoise
