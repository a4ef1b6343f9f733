"""Noise from the generator that a diffusers pipeline hands over at every step."""

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor


class PipelineNoise:
    """A NoiseSource over one generator, one per sample, or the global one.

    Attributes:
        generator: the one of the current step.
    """

    def __init__(self) -> None:
        self.generator: torch.Generator | list[torch.Generator] | None = None

    def fill(self, out: Tensor) -> None:
        """Overwrite `out` with fresh draws, made as diffusers makes them."""
        out.copy_(randn_tensor(out.shape, generator=self.generator, device=out.device, dtype=out.dtype))
