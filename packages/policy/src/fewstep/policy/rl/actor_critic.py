"""Critic and actor in turns: the objective that all offline methods share."""

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from fewstep.core.training.batches import Batch as AnyBatch
from fewstep.core.training.phases import STUDENT, Losses, Moment, Networks, Objective, Phase

from ..nets.mlp import TwinCritic
from .actor import Actor
from .critics import (
    Backup,
    double_q_loss,
    move_towards,
    plain_value_loss,
    policy_value_loss,
    value_of_actions,
)
from .transitions import Batch

CRITIC, TARGET, AVERAGE = "critic", "target_critic", "average"


@dataclass(frozen=True)
class ActorCriticConfig:
    """How critic and actor improve each other; the defaults are Diffusion Q-Learning's.

    Args:
        eta: η, weight of the critic's word in the actor's loss.
        gain: "normalised" −mean Q_i/mean|Q_j|, or "plain" −mean (Q1 + Q2)/2.
        backup: "min", "mean", or "max" over `candidates` actions of the next state, see `value_of_actions`.
        candidates: actions of the next state that "max" compares.
        next_actions: whose actions the target is made of, the "average" actor's or the "current" one's.
        tau: share that the target critic moves after every update.
        decay: of the average actor.
        average_every: actor updates between two moves of the average.
        average_from: actor updates before its first move; until then it is the initial actor.
        warmup: actor updates in which it only clones, while the critic learns.
        ramp: actor updates over which η then grows to its value.
        actor_rate: learning rate of the actor.
        critic_rate: of the critic.

    Raises:
        ValueError: a value out of its range.

    Reference: Wang, Hunt & Zhou 2023, "Diffusion Policies as an Expressive Policy Class for Offline
        Reinforcement Learning", algorithm 1 and released code. Warm-up and ramp are ours: an untrained critic
        costs what cloning had learned.
    """

    eta: float = 1.0
    gain: str = "normalised"
    backup: str = "min"
    candidates: int = 10
    next_actions: str = "average"
    tau: float = 0.005
    decay: float = 0.995
    average_every: int = 5
    average_from: int = 1000
    warmup: int = 0
    ramp: int = 0
    actor_rate: float = 3e-4
    critic_rate: float = 3e-4

    def __post_init__(self) -> None:
        for name in ("tau", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("candidates", "average_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("eta", "average_from", "warmup", "ramp"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("actor_rate", "critic_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        allowed = {
            "gain": ("normalised", "plain"),
            "backup": ("min", "max", "mean"),
            "next_actions": ("average", "current"),
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def weight(self, update: int) -> float:
        """η at an update of the actor.

        Example:
            >>> settings = ActorCriticConfig(eta=2.0, warmup=10, ramp=20)
            >>> settings.weight(9), settings.weight(20), settings.weight(99)
            (0.0, 1.0, 2.0)
        """
        if update < self.warmup:
            return 0.0
        return self.eta * min((update - self.warmup) / self.ramp, 1.0) if self.ramp else self.eta


class ActorCritic(Objective):
    """One update of the critic, one of the actor, and so on, each with a batch of its own.

    critic   y = R + discount·Q'(s', a'),  loss = mean (Q1 − y)² + mean (Q2 − y)²
    actor    loss = behaviour loss + η·(gain of its own actions)

    The published code gives both the same batch; here each has its own, as phases of the Trainer have.

    Args:
        actor: the Trainer's student; a copy of it becomes the average.
        critic: of flattened chunks; None: the actor only clones.
        config: see `ActorCriticConfig`.

    Reference: Wang, Hunt & Zhou 2023, algorithm 1; Fujimoto & Gu 2021, "A Minimalist Approach to Offline
        Reinforcement Learning" (the normalised gain).
    """

    def __init__(self, actor: Actor, critic: TwinCritic | None, config: ActorCriticConfig) -> None:
        self.config, self.critic = config, critic
        self.average = copy.deepcopy(actor).requires_grad_(False)
        self.target = None if critic is None else copy.deepcopy(critic).requires_grad_(False)

    def phases(self) -> tuple[Phase, ...]:
        """Critic and actor; without a critic the actor alone."""
        config = self.config
        actor = Phase("actor", self.actor_loss, optimizer=lambda of: torch.optim.Adam(of, config.actor_rate))
        if self.critic is None:
            return (actor,)
        rate = config.critic_rate
        return (
            Phase(CRITIC, self.critic_loss, (CRITIC,), optimizer=lambda of: torch.optim.Adam(of, rate)),
            actor,
        )

    def modules(self) -> dict[str, torch.nn.Module]:
        """The critic, its target, and the average of the actor."""
        if self.critic is None or self.target is None:
            return {AVERAGE: self.average}
        return {CRITIC: self.critic, TARGET: self.target, AVERAGE: self.average}

    def critic_loss(
        self, networks: Networks, batch: AnyBatch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        """Temporal difference of both heads, see the class."""
        config, seen = self.config, _read(batch)
        actor = cast(Actor, networks[AVERAGE if config.next_actions == "average" else STUDENT])
        count = config.candidates if config.backup == "max" else 1
        with torch.no_grad():
            repeated = seen.next_state.repeat_interleave(count, 0)
            actions = actor.act(repeated, actor.noise(repeated, generator))
            actions = actions.unflatten(0, (len(seen), count))
        target = self.target_value(cast(TwinCritic, networks[TARGET]), seen, actions)
        critic = cast(TwinCritic, networks[CRITIC])
        return {"loss": double_q_loss(critic, seen.state, seen.action, target), "target": target.mean()}

    def target_value(self, critic: TwinCritic, batch: Batch, next_actions: Tensor) -> Tensor:
        """y = R + discount·Q'(s', a'), (batch, 1).

        Args:
            critic: the target network.
            batch: of transitions.
            next_actions: (batch, candidates, numbers).
        """
        later = value_of_actions(critic, batch.next_state, next_actions, cast(Backup, self.config.backup))
        return (batch.reward + batch.discount * later).detach()

    def actor_loss(
        self, networks: Networks, batch: AnyBatch, generator: torch.Generator, moment: Moment
    ) -> Losses:
        """Behaviour loss and gain, see the class; chunks that leave their episode are no behaviour."""
        actor, seen = cast(Actor, networks[STUDENT]), _read(batch)
        whole = seen.inside.all(1)
        shown = slice(None) if bool(whole.all()) or not bool(whole.any()) else whole
        told = dict(actor.behaviour_loss(seen.state[shown], seen.action[shown].flatten(1), generator))
        weight = 0.0 if self.critic is None else self.config.weight(moment.step)
        if not weight:
            return told
        critic = cast(TwinCritic, networks[CRITIC])
        action = actor.act(seen.state, actor.noise(seen.state, generator))
        if self.config.gain == "plain":
            gain = plain_value_loss(critic, seen.state, action)
        else:
            first = torch.rand((), generator=generator, device=action.device) > 0.5
            gain = policy_value_loss(critic, seen.state, action, bool(first))
        return {**told, "loss": told["loss"] + weight * gain, "behaviour": told["loss"], "gain": -gain}

    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:
        """Move the target critic, and from time to time the average of the actor."""
        config = self.config
        if phase == CRITIC:
            move_towards(networks[TARGET], networks[CRITIC], config.tau)
        elif moment.step >= config.average_from and moment.step % config.average_every == 0:
            move_towards(networks[AVERAGE], networks[STUDENT], 1 - config.decay)


def _read(batch: AnyBatch) -> Batch:
    return batch if isinstance(batch, Batch) else Batch(**batch)
