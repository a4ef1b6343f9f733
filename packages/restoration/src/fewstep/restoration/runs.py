"""A training run as all recipes of this package make it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.training import CosineSchedule, Trainer, TrainerConfig


@runtime_checkable
class RunRecipe(Protocol):
    """The fields of a recipe that every run has."""

    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def warmup(self) -> float: ...
    @property
    def ema(self) -> float: ...
    @property
    def clip(self) -> float: ...
    @property
    def precision(self) -> str: ...
    @property
    def max_steps(self) -> int: ...
    @property
    def validate_every(self) -> int: ...
    @property
    def seed(self) -> int: ...


@runtime_checkable
class HeldOut(Protocol):
    """What is never trained on: metrics of a network, and a picture of what it makes."""

    def __call__(self, net: Any) -> dict[str, float]:
        """Metrics."""
        ...

    def picture(self, net: Any) -> np.ndarray:
        """(height, width, 3) uint8."""
        ...


def trainer_of(
    recipe: RunRecipe,
    net: nn.Module,
    loss: Callable[..., Tensor],
    batch: Callable[[np.random.Generator, int], dict[str, Tensor]],
    folder: Path,
    held_out: HeldOut,
    max_minutes: float | None = None,
    device: str = "auto",
    log_every: int = 200,
) -> Trainer:
    """AdamW under a cosine schedule, an average of the weights, checkpoints every three minutes.

    Args:
        recipe: settings.
        net: what is trained.
        loss: of the network and a batch.
        batch: gives so many samples, drawn with a generator.
        folder: of the run.
        held_out: is measured and shown.
        max_minutes: minutes of training over all parts of the run, by which the rate anneals.
        device: "auto" or "cpu".
        log_every: steps between two lines of the log.
    """
    return Trainer(
        net,
        loss,
        lambda generator: batch(generator, recipe.batch_size),
        folder=folder,
        config=TrainerConfig(
            max_steps=recipe.max_steps,
            max_minutes=max_minutes,
            batch_size=recipe.batch_size,
            precision="bf16" if recipe.precision == "bf16" else "no",
            clip=recipe.clip,
            ema_decays=(recipe.ema,),
            channels_last=True,
            save_every_minutes=3.0,
            log_every=log_every,
            validate_every=recipe.validate_every,
            preview_every=recipe.validate_every,
            seed=recipe.seed,
            device="cpu" if device == "cpu" else "auto",
        ),
        optimizer=torch.optim.AdamW(
            net.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99), weight_decay=0.0
        ),
        schedule=CosineSchedule(warmup=recipe.warmup, floor=0.001),
        validate=held_out,
        preview=held_out.picture,
    )
