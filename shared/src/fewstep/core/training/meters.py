"""Means of what the steps report, kept on the device until they are read."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fewstep.core.training.processes import Processes


class Meters:
    """Running means of named scalars since they were read last."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one value to each of the named means, without waiting for the device."""
        for name, value in values.items():
            value = value.detach().float().reshape(())
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self, processes: Processes) -> dict[str, float]:
        """The means over all steps and processes, after which they start anew; called on every process."""
        names = list(self._sums)
        if not names:
            return {}
        means = torch.stack([self._sums[name] / self._counts[name] for name in names])
        self._sums.clear()
        self._counts.clear()
        return dict(zip(names, processes.mean(means).tolist(), strict=True))
