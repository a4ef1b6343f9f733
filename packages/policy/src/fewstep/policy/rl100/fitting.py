"""Fitting what judges a policy: the critics of implicit Q-learning, and the model of the world."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.training import Trainer, TrainerConfig
from fewstep.core.training.phases import STUDENT, Losses, Moment, Networks, Objective, Phase
from fewstep.core.training.schedule import ConstantSchedule

from ..nets.mlp import StateValue, TwinCritic
from ..rl.critics import double_q_loss, expectile_loss, move_towards
from ..rl.transitions import Batch, Transitions
from .ope import WorldModel
from .recipe import CriticRecipe, WorldRecipe

VALUE, TARGET = "value", "target_critic"


class ImplicitQ(Objective):
    """Value and critic in turns, without ever asking for an action that the data do not hold.

    value   mean |τ − 1{u < 0}|·u²,  u = min Q'(s, a) − V(s)
    critic  mean (Q1 − y)² + mean (Q2 − y)²,  y = R + discount·V(s')

    Args:
        critic: the Trainer's student.
        value: of states.
        recipe: settings.

    Reference: Kostrikov, Nair & Levine 2022, "Offline Reinforcement Learning with Implicit Q-Learning",
        eqs. 5 and 6; Lei et al. 2025, "RL-100", released code.
    """

    def __init__(self, critic: TwinCritic, value: StateValue, recipe: CriticRecipe) -> None:
        self.recipe, self.value = recipe, value
        self.target = copy.deepcopy(critic).requires_grad_(False)

    def phases(self) -> tuple[Phase, ...]:
        """Value, then critic."""

        def adam(of: Any) -> torch.optim.Optimizer:
            return torch.optim.Adam(of, self.recipe.rate)

        return (
            Phase(VALUE, self.value_loss, (VALUE,), optimizer=adam),
            Phase("critic", self.critic_loss, optimizer=adam),
        )

    def modules(self) -> dict[str, nn.Module]:
        """The value and the target critic."""
        return {VALUE: self.value, TARGET: self.target}

    def value_loss(
        self, networks: Networks, batch: Any, generator: torch.Generator, moment: Moment
    ) -> Losses:
        """Expectile regression of the value."""
        seen = Batch(**batch)
        with torch.no_grad():
            judged = cast(TwinCritic, networks[TARGET]).least(seen.state, seen.action)
        return expectile_loss(judged - networks[VALUE](seen.state), self.recipe.expectile)

    def critic_loss(
        self, networks: Networks, batch: Any, generator: torch.Generator, moment: Moment
    ) -> Losses:
        """Temporal difference of both heads."""
        seen = Batch(**batch)
        with torch.no_grad():
            target = seen.reward + seen.discount * networks[VALUE](seen.next_state)
        loss = double_q_loss(cast(TwinCritic, networks[STUDENT]), seen.state, seen.action, target)
        return {"loss": loss, "target": target.mean()}

    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:
        """Move the target critic."""
        if phase == "critic" and moment.step % self.recipe.target_every == 0:
            move_towards(networks[TARGET], networks[STUDENT], self.recipe.tau)


def fit_critics(
    transitions: Transitions, recipe: CriticRecipe, folder: Path, seed: int, device: str = "auto"
) -> tuple[TwinCritic, StateValue]:
    """Train the critics on transitions; resumable.

    Args:
        transitions: of decisions.
        recipe: settings.
        folder: of the run.
        seed: of weights and batches.
        device: "auto" or "cpu".

    Returns:
        The target critic and the value.
    """
    torch.manual_seed(seed)
    numbers = transitions.all.action.flatten(1).shape[1]
    state_dim = transitions.all.state.shape[1]
    critic = TwinCritic(state_dim, numbers, recipe.hidden, "relu")
    value = StateValue(state_dim, recipe.hidden)
    objective = ImplicitQ(critic, value, recipe)
    config = _trainer_config(2 * recipe.updates, recipe.batch_size, seed, device, clip=None)

    def draw(generator: np.random.Generator) -> dict[str, Tensor]:
        return transitions.batch(generator, recipe.batch_size).fields()

    Trainer(critic, objective, draw, folder=folder, config=config, schedule=ConstantSchedule()).fit()
    return objective.target.eval(), value.eval()


def fit_world(
    transitions: Transitions, recipe: WorldRecipe, folder: Path, seed: int, device: str = "auto"
) -> WorldModel:
    """Train the model of the world on transitions, every member on batches of its own; resumable.

    Decisions after which an episode ended are left out: there is no next state to learn.

    Args:
        transitions: of decisions.
        recipe: settings.
        folder: of the run.
        seed: of weights and batches.
        device: "auto" or "cpu".

    Raises:
        ValueError: fewer than ten transitions.
    """
    rows = transitions.all
    going = (rows.discount[:, 0] > 0).nonzero()[:, 0]
    if len(going) < 10:
        raise ValueError(f"transitions must be at least 10 that an episode goes on after, got {len(going)}")
    order = going[torch.randperm(len(going), generator=torch.Generator().manual_seed(seed))]
    count = max(int(recipe.held_out * len(order)), 1)
    held, used = order[:count], order[count:]
    action = rows.action.flatten(1)
    torch.manual_seed(seed)
    world = WorldModel(
        rows.state.shape[1], action.shape[1], recipe.hidden, recipe.depth, recipe.members, recipe.elites
    )

    def draw(generator: np.random.Generator) -> dict[str, Tensor]:
        drawn = generator.integers(len(used), size=(recipe.members, recipe.batch_size))
        chosen = used[torch.from_numpy(drawn)]
        return {"state": rows.state[chosen], "action": action[chosen], "following": rows.next_state[chosen]}

    def loss(model: nn.Module, batch: Any, generator: torch.Generator) -> Tensor:
        return cast(WorldModel, model).loss(**batch).sum()

    config = _trainer_config(recipe.updates, recipe.batch_size, seed, device, clip=None)
    optimizer = torch.optim.Adam(world.parameters(), recipe.rate)
    schedule: Callable[[float], float] = ConstantSchedule()
    Trainer(world, loss, draw, folder=folder, config=config, optimizer=optimizer, schedule=schedule).fit()
    at = next(world.parameters()).device
    world.choose_elites(*(given[held].to(at) for given in (rows.state, action, rows.next_state)))
    return world.eval()


def _trainer_config(steps: int, batch_size: int, seed: int, device: str, clip: float | None) -> TrainerConfig:
    return TrainerConfig(
        max_steps=steps,
        batch_size=batch_size,
        clip=clip,
        ema_decays=(),
        log_every=200,
        seed=seed,
        device="cpu" if device == "cpu" else "auto",
        tensorboard=False,
    )
