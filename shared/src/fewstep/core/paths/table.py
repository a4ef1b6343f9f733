"""One quantity tabulated at the integer times of a discrete path and linear in between."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Table:
    """Values at the times ``first``, ``first + 1``, … with linear interpolation, monotone and invertible.

    Args:
        values: strictly monotone values, the clean end first.
        first: time of the first value.
    """

    def __init__(self, values: Sequence[float] | Tensor, first: float) -> None:
        with torch.inference_mode(False):
            self.values = torch.as_tensor(values, dtype=torch.float64).clone()
        self.first = first
        self._on_device = {self.values.device: self.values}

    def on(self, device: torch.device) -> Tensor:
        """Return the values on ``device``, copied there once."""
        if device not in self._on_device:
            with torch.inference_mode(False):
                self._on_device[device] = self.values.to(device)
        return self._on_device[device]

    def locate(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (value before t, value after t, fraction of the way), clamped to the table."""
        values = self.on(t.device)
        position = (t.double() - self.first).clamp(0, len(values) - 1)
        index = position.detach().floor().clamp(max=max(len(values) - 2, 0)).long()
        return values[index], values[(index + 1).clamp(max=len(values) - 1)], position - index

    def __call__(self, t: Tensor) -> Tensor:
        """Return the interpolated value at every time of ``t``; exact at the table's own times."""
        low, high, weight = self.locate(t)
        return torch.lerp(low, high, weight)

    def inverse(self, value: Tensor) -> Tensor:
        """Return the time at which the interpolated quantity takes ``value``, clamped to the table."""
        values = self.on(value.device)
        sign = 1.0 if float(self.values[-1]) > float(self.values[0]) else -1.0
        index = torch.searchsorted(sign * values, (sign * value).contiguous()).clamp(1, len(values) - 1)
        low, high = values[index - 1], values[index]
        return self.first + (index - 1) + ((value - low) / (high - low)).clamp(0, 1)
