"""An objective as a distillation runs it: with the recipe's optimiser, and telling how far it is."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from fewstep.core.objectives.recipe import DistillRecipe
from fewstep.core.training import Moment, Objective, Phase
from fewstep.core.training.phases import STUDENT, MakeOptimizer, Networks

OnProgress = Callable[["DistillProgress"], None]


@dataclass(frozen=True)
class DistillProgress:
    """Where a distillation stands.

    Args:
        updates: of the student so far.
        fraction: of the run that is done.
    """

    updates: int
    fraction: float


class Equipped(Objective):
    """An objective whose phases have an optimiser, and which tells how far it is.

    Args:
        inner: the objective.
        recipe: of the optimiser of the phases that have none of their own.
        on_progress: called after every update of the student.
    """

    def __init__(self, inner: Objective, recipe: DistillRecipe, on_progress: OnProgress | None) -> None:
        self.inner, self.make, self.on_progress = inner, _optimizer_of(recipe), on_progress
        self.partial = inner.partial
        self.students = {phase.name for phase in inner.phases() if STUDENT in phase.trains}

    def phases(self) -> tuple[Phase, ...]:
        """Those of the inner one."""
        return tuple(replace(phase, optimizer=phase.optimizer or self.make) for phase in self.inner.phases())

    def modules(self) -> dict[str, nn.Module]:
        """Those of the inner one."""
        return self.inner.modules()

    def frozen(self) -> tuple[nn.Module, ...]:
        """Those of the inner one."""
        return self.inner.frozen()

    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:
        """Pass it on, and tell."""
        self.inner.after_update(phase, networks, moment)
        if self.on_progress is not None and phase in self.students:
            self.on_progress(DistillProgress(moment.step + 1, moment.progress))


def _optimizer_of(recipe: DistillRecipe) -> MakeOptimizer:
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}

    def make(parameters):
        return kinds[recipe.optimizer](
            parameters, lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
        )

    return make
