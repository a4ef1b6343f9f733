"""A training run as all recipes of this package make it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.training import CosineSchedule, Trainer, TrainerConfig, TrainResult

from .recipes import refuse_other, remember

DrawBatch = Callable[[np.random.Generator, int], dict[str, Tensor]]
Save = Callable[[Any, Path], object]


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


@dataclass(frozen=True)
class Run:
    """Where a recipe is trained, and how long.

    Args:
        recipe: settings.
        folder: of the run.
        max_minutes: minutes of training over all parts of the run, by which the rate anneals.
        device: "auto" or "cpu".
    """

    recipe: RunRecipe
    folder: Path
    max_minutes: float | None = None
    device: str = "auto"

    @classmethod
    def begin(
        cls, recipe: RunRecipe, output: str | Path, max_minutes: float | None = None, device: str = "auto"
    ) -> Run:
        """Look at the folder, and seed the generator of the initial weights; nothing is written.

        Raises:
            ValueError: the folder holds a run of another recipe.
        """
        folder = Path(output)
        refuse_other(recipe, folder)
        torch.manual_seed(recipe.seed)
        return cls(recipe, folder, max_minutes, device)

    def settings(self, max_steps: int, log_every: int, turns: int = 1) -> TrainerConfig:
        """Checkpoints every three minutes, one average of the weights, no TensorBoard.

        Args:
            max_steps: end of the run by steps of the network.
            log_every: its steps between two lines of the log.
            turns: what the trainer counts for each of its steps.
        """
        recipe = self.recipe
        return TrainerConfig(
            max_steps=turns * max_steps,
            max_minutes=self.max_minutes,
            batch_size=recipe.batch_size,
            precision="bf16" if recipe.precision == "bf16" else "no",
            clip=recipe.clip,
            ema_decays=(recipe.ema,),
            learning_rate=recipe.learning_rate,
            channels_last=True,
            save_every_minutes=3.0,
            log_every=turns * log_every,
            validate_every=turns * recipe.validate_every,
            seed=recipe.seed,
            device="cpu" if self.device == "cpu" else "auto",
            tensorboard=False,
        )

    def fit(
        self,
        net: nn.Module,
        objective: Any,
        batch: DrawBatch,
        held_out: Callable[[Any], dict[str, float]],
        save: Save,
        config: TrainerConfig,
        floor: float = 0.01,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> TrainResult:
        """Write the recipe down, train under a cosine schedule, and save what has come to its end.

        Args:
            net: what is trained.
            objective: of the trainer.
            batch: gives so many samples, drawn with a generator.
            held_out: is measured, and shown if it is a `HeldOut`.
            save: keeps the averaged network in a folder.
            config: of the trainer.
            floor: last learning rate, relative to the largest.
            optimizer: None: AdamW as the trainer makes it.

        Returns:
            How the run ended.
        """
        remember(self.recipe, self.folder)
        trainer = Trainer(
            net,
            objective,
            lambda generator: batch(generator, self.recipe.batch_size),
            folder=self.folder,
            config=config,
            optimizer=optimizer,
            schedule=CosineSchedule(warmup=self.recipe.warmup, floor=floor),
            validate=held_out,
            preview=held_out.picture if isinstance(held_out, HeldOut) else None,
        )
        result = trainer.fit()
        if result.stopped != "interrupted":
            save(trainer.ema.models[self.recipe.ema], self.folder / "model")
        return result

    def restorer(
        self,
        net: nn.Module,
        loss: Callable[..., Tensor],
        batch: DrawBatch,
        held_out: HeldOut,
        save: Save,
        max_steps: int,
        log_every: int = 200,
    ) -> TrainResult:
        """Train a network to restore, with previews: `fit` with the optimiser of all such recipes.

        Args:
            net: what is trained.
            loss: of the network and a batch.
            batch: as of `fit`.
            held_out: is measured and shown.
            save: as of `fit`.
            max_steps: end of the run by steps.
            log_every: steps between two lines of the log.
        """
        rate = self.recipe.learning_rate
        config = replace(
            self.settings(max_steps, log_every),
            # Not used: the optimiser is given.
            learning_rate=TrainerConfig.learning_rate,
            preview_every=self.recipe.validate_every,
            tensorboard=True,
        )
        optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.0)
        return self.fit(net, loss, batch, held_out, save, config, floor=0.001, optimizer=optimizer)
