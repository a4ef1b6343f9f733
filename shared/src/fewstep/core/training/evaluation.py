"""Validation and previews of a run."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from fewstep.core.training.config import TrainerConfig
from fewstep.core.training.logging import RunLog
from fewstep.core.training.snapshot import Snapshot
from fewstep.core.training.state import untouched_rng

Validate = Callable[[nn.Module], Mapping[str, float]]
Preview = Callable[[nn.Module], np.ndarray | Mapping[str, np.ndarray]]


class Evaluation:
    """Validate and preview when due, on the main process, without a trace in the training's random numbers.

    Args:
        snapshot: of the run; its first average is evaluated (the trained weights when there is none).
        validate: gives metrics of a network.
        preview: gives pictures of a network.
        config: of the run.
    """

    def __init__(
        self, snapshot: Snapshot, validate: Validate | None, preview: Preview | None, config: TrainerConfig
    ) -> None:
        self.snapshot, self.validate, self.preview, self.config = snapshot, validate, preview, config

    @property
    def model(self) -> nn.Module:
        """The network that is evaluated."""
        return next(iter(self.snapshot.ema.models.values()), self.snapshot.model)

    def __call__(self, log: RunLog, finished: bool) -> None:
        """Evaluate if this step, or the end of the run, asks for it."""
        step, config = self.snapshot.position.step, self.config
        with untouched_rng(), torch.no_grad():
            if self.validate is not None and (finished or due(step, config.validate_every)):
                metrics = {name: float(value) for name, value in self.validate(self.model.eval()).items()}
                self.snapshot.position.metrics = metrics
                log.report(step, "validate", metrics)
                self._keep_best(metrics)
            if self.preview is not None and (finished or due(step, config.preview_every)):
                log.preview(step, self.preview(self.model.eval()))

    def _keep_best(self, metrics: dict[str, float]) -> None:
        monitor, best = self.config.monitor, self.snapshot.position.best
        if monitor is None:
            return
        if monitor not in metrics:
            raise ValueError(f"monitor must be one of {', '.join(metrics)}, got {monitor!r}")
        value = metrics[monitor]
        better = best is None or (value > best if self.config.monitor_mode == "max" else value < best)
        if better and math.isfinite(value):
            self.snapshot.position.best, self.snapshot.position.stale = value, 0
            self.snapshot.save_best()
        else:
            self.snapshot.position.stale += 1


def due(step: int, every: int | None) -> bool:
    """Whether something that happens every so many steps happens at this one."""
    return every is not None and step % every == 0
