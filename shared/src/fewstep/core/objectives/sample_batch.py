"""What a training batch holds, read once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction

RESERVED = ("x0", "noise", "y", "mask")


@dataclass(frozen=True)
class SampleBatch:
    """Data, and what goes with it, of one batch.

    Args:
        x0: clean samples (batch, ...).
        noise: the noise that each of them is coupled to; None: it is drawn.
        y: degraded input or prior mean of a path that has one.
        mask: where the loss counts, 0 to 1, shaped like x0 or such that it broadcasts to it.
        conditions: arguments of the network by name, such as `label`.
    """

    x0: Tensor
    noise: Tensor | None = None
    y: Tensor | None = None
    mask: Tensor | None = None
    conditions: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, batch: Any) -> "SampleBatch":
        """Read a batch: x0 alone, or a mapping of which x0, noise, y and mask are taken, the rest being told.

        Raises:
            TypeError: the batch is neither a tensor nor a mapping.
            ValueError: there is no x0, or noise or y is not of its shape.
        """
        if isinstance(batch, Tensor):
            return cls(batch)
        if not isinstance(batch, Mapping):
            raise TypeError(f"batch must be a tensor or a mapping with 'x0', not {type(batch).__name__}")
        if not isinstance(batch.get("x0"), Tensor):
            raise ValueError(f"batch must hold the tensor 'x0'; it holds {', '.join(map(str, batch))}")
        x0 = batch["x0"]
        for name in ("noise", "y"):
            value = batch.get(name)
            if value is not None and value.shape != x0.shape:
                raise ValueError(f"{name} must be of x0's shape {tuple(x0.shape)}, got {tuple(value.shape)}")
        conditions = {name: value for name, value in batch.items() if name not in RESERVED}
        return cls(x0, batch.get("noise"), batch.get("y"), batch.get("mask"), conditions)

    def flow_map(self, net: nn.Module, path: Path, prediction: str | Prediction) -> FlowMap:
        """A network with the conditions of this batch (and y, on a path that has one)."""
        conditions = dict(self.conditions)
        if path.uses_y:
            if self.y is None:
                raise ValueError(f"batch must hold y for {type(path).__name__}")
            conditions["y"] = self.y
        return FlowMap(net, path, prediction, conditions)

    def noise_or(self, generator: torch.Generator) -> Tensor:
        """The coupled noise, or a fresh draw."""
        return normal_like(self.x0, generator) if self.noise is None else self.noise


def normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    """A standard normal draw shaped like x."""
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def uniform(count: int, generator: torch.Generator, device: torch.device | str = "cpu") -> Tensor:
    """`count` float64 draws from [0, 1)."""
    return torch.rand(count, dtype=torch.float64, device=device, generator=generator)
