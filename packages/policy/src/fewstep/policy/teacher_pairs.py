"""Pairs of noise and of the chunk that a teacher makes of it, made while a student learns from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .model import PolicyModel
from .windows import Windows

DETERMINISTIC = ("ddim", "euler", "heun")


class TeacherPairs:
    """Batches of (encoded observation c, noise ε, chunk a), a = what the teacher draws from ε seeing c.

    A batch is drawn from a store; before that, `batch_size/reuse` new pairs enter it, and the oldest leave
    once it holds `capacity`. So a pair is used `reuse` times on average, while one of `steps` network calls
    costs only 1/reuse of what it would in every update. A teacher whose solver is none of
    `DETERMINISTIC` is drawn from by DDIM. The store is not part of a checkpoint: a run that goes on fills
    another.

    Args:
        teacher: a policy of kind "ode" or "flow-map".
        windows: of the demonstrations whose observations are used.
        batch_size: pairs of a batch.
        steps: the teacher's network calls for a chunk.
        reuse: how often a pair is used, on average.
        capacity: batches in the store.

    Raises:
        ValueError: a number below 1, or a teacher of kind "regression", which sees no noise.

    Reference: Luhman & Luhman 2021, "Knowledge Distillation in Iterative Generative Models for Improved
        Sampling Speed"; Lei et al. 2025, "RL-100" (their "action_same_noise").
    """

    def __init__(
        self,
        teacher: PolicyModel,
        windows: Windows,
        batch_size: int,
        *,
        steps: int = 10,
        reuse: int = 4,
        capacity: int = 128,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size), ("steps", steps), ("reuse", reuse), ("capacity", capacity)
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if teacher.config.kind == "regression":
            raise ValueError("a policy of kind 'regression' sees no noise, so it makes no pairs")
        self.teacher, self.windows, self.steps = _without_noise(teacher), windows, steps
        self.batch_size, self.limit = batch_size, capacity * batch_size
        self.fresh = -(-batch_size // reuse)
        self.store: dict[str, Tensor] = {}
        self.count = self.oldest = 0

    def batch(self, generator: np.random.Generator) -> dict[str, Tensor]:
        """Draw a batch.

        Args:
            generator: of windows, noise and choice.

        Returns:
            "x0" and "noise", each (batch, horizon, numbers), normalised; "global_cond", (batch, told).
        """
        self._keep(self._made(generator, self.fresh if self.count else self.batch_size))
        rows = torch.from_numpy(generator.integers(self.count, size=self.batch_size))
        return {name: values[rows] for name, values in self.store.items()}

    @torch.no_grad()
    def _made(self, generator: np.random.Generator, count: int) -> dict[str, Tensor]:
        config = self.teacher.config
        told = self.teacher.encode(self.windows.batch(generator, count)["obs"])
        shape = (count, config.horizon, config.action_dim)
        noise = torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)).to(told)
        chunk = self.teacher.draw(told, steps=self.steps, noise=lambda _: noise)
        return {"x0": chunk, "noise": noise, "global_cond": told}

    def _keep(self, new: Mapping[str, Tensor]) -> None:
        """Put pairs into the store, over the oldest ones where it is full."""
        if not self.store:
            self.store = {name: value.new_empty(self.limit, *value.shape[1:]) for name, value in new.items()}
        places = (self.oldest + torch.arange(len(new["x0"]))) % self.limit
        for name, value in new.items():
            self.store[name][places] = value
        self.oldest = (self.oldest + len(places)) % self.limit
        self.count = min(self.count + len(places), self.limit)


def _without_noise(teacher: PolicyModel) -> PolicyModel:
    """The teacher, with a solver that adds no noise on the way."""
    config = teacher.config
    if config.kind == "flow-map" or (config.kind == "ode" and config.solver in DETERMINISTIC):
        return teacher
    if config.kind != "ode":
        raise ValueError(
            f"a policy of kind {config.kind!r} adds noise between its calls; it cannot make pairs"
        )
    made = PolicyModel(replace(config, solver="ddim", grid="trailing"))
    made.load_state_dict(teacher.state_dict())
    return made.to(next(teacher.parameters()).device).eval().requires_grad_(False)
