"""Masking: a loss that asks for a part of the sample, given the rest or without it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.objectives.sample_batch import SampleBatch, uniform

SHOWN = ("noisy", "clean", "hidden")


@dataclass(frozen=True)
class Masking:
    """What the network sees of a sample with a mask m, and where its error counts.

    "noisy": x_t as without a mask, so that only the error is masked;
    "clean": m·x_t + (1 − m)·x0, as for inpainting, where the rest is known;
    "hidden": (1 − m)·x_t + m·value, which the network must fill in from the rest.

    The loss is `whole`·(error of everything) + `inside`·(error where m = 1, per element of it).

    Args:
        shown: one of the three.
        whole: weight of the error of everything.
        inside: weight of the error inside the mask.
        value: in place of what is hidden.
        ratio: share of the positions that a drawn mask covers, drawn between these two for each sample;
            None: the batch brings the mask, and a batch without one is treated as without masking.
        dims: of x0, batch included, along which a drawn mask varies: (2,) masks whole frames of motion
            (batch, features, frames), (1,) masks features; None: all but the batch.

    Raises:
        ValueError: an option is unknown or out of range.

    Reference: Chen 2024, "Text-driven Human Motion Generation with Motion Masked Diffusion Model" ("hidden",
        over frames or body parts, whole = inside = 1).
    """

    shown: str = "noisy"
    whole: float = 0.0
    inside: float = 1.0
    value: float = 0.0
    ratio: tuple[float, float] | None = None
    dims: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.shown not in SHOWN:
            raise ValueError(f"shown must be one of {', '.join(SHOWN)}, got {self.shown!r}")
        if self.ratio is not None and not 0 <= self.ratio[0] <= self.ratio[1] <= 1:
            raise ValueError(f"ratio must be two increasing shares in [0, 1], got {self.ratio}")
        if self.dims is not None and (not self.dims or min(self.dims) < 1):
            raise ValueError(f"dims must name dimensions after the batch, 1 and up, got {self.dims}")

    def mask_of(self, batch: SampleBatch, generator: torch.Generator) -> Tensor | None:
        """The mask of a batch, shaped like x0: its own, or a drawn one."""
        if batch.mask is not None:
            return batch.mask.to(batch.x0.dtype).expand_as(batch.x0)
        return None if self.ratio is None else self._drawn(batch.x0, self.ratio, generator)

    def seen(self, x: Tensor, x0: Tensor, mask: Tensor) -> Tensor:
        """What the network is shown in place of x_t."""
        if self.shown == "noisy":
            return x
        return (
            torch.lerp(x0, x, mask)
            if self.shown == "clean"
            else torch.lerp(x, x.new_tensor(self.value), mask)
        )

    def regions(self, mask: Tensor) -> Sequence[tuple[float, Tensor | None]]:
        """The weights of the loss and where each counts (None: everywhere)."""
        parts = ((self.whole, None), (self.inside, mask))
        return [part for part in parts if part[0]]

    def _drawn(self, x: Tensor, ratio: tuple[float, float], generator: torch.Generator) -> Tensor:
        dims = tuple(range(1, x.ndim)) if self.dims is None else self.dims
        if max(dims) >= x.ndim:
            raise ValueError(f"dims {dims} must be below the {x.ndim} dimensions of x0")
        shape = [size if i == 0 or i in dims else 1 for i, size in enumerate(x.shape)]
        places = torch.rand(shape, device=x.device, generator=generator).flatten(1)
        share = ratio[0] + (ratio[1] - ratio[0]) * uniform(len(x), generator, x.device)
        covered = (share * places.shape[1]).round().long()
        rank = places.argsort(1).argsort(1)
        return (rank < covered[:, None]).to(x.dtype).reshape(shape).expand_as(x)
