"""Losses of critics: values of actions, with two heads, and values of states by expectiles."""

from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

Backup = Literal["min", "max", "mean"]


@runtime_checkable
class TwoValues(Protocol):
    """A critic with two heads, such as `nets.mlp.TwinCritic`."""

    def __call__(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]: ...


def double_q_loss(
    critic: TwoValues,
    state: Float[Tensor, "batch state"],
    action: Float[Tensor, "batch *action"],
    target: Float[Tensor, "batch 1"],
) -> Float[Tensor, ""]:
    """mean (Q1 − y)² + mean (Q2 − y)².

    Args:
        critic: both heads.
        state: of the transitions.
        action: that was done, flattened or not.
        target: y, without a graph.

    Reference: Fujimoto, van Hoof & Meger 2018, "Addressing Function Approximation Error in Actor-Critic
        Methods", algorithm 1.
    """
    first, second = critic(state, action.flatten(1))
    return (first - target).square().mean() + (second - target).square().mean()


@torch.no_grad()
def value_of_actions(
    critic: TwoValues,
    state: Float[Tensor, "batch state"],
    actions: Float[Tensor, "batch candidates numbers"],
    backup: Backup = "min",
) -> Float[Tensor, "batch 1"]:
    """What a target critic says of the actions that would follow.

    "min"   min over the heads (of one candidate, or the mean over several)
    "mean"  mean over the heads, likewise
    "max"   per head the best candidate, then min over the heads ("max_q_backup")

    Args:
        critic: the target network.
        state: of the next step.
        actions: candidates in it.
        backup: see above.

    Reference: Wang, Hunt & Zhou 2023, "Diffusion Policies as an Expressive Policy Class for Offline
        Reinforcement Learning", section 4 and released code; Kumar et al. 2020, "Conservative Q-Learning"
        (max backup); Park et al. 2025, "Flow Q-Learning", released code (mean).
    """
    count = actions.shape[1]
    repeated = state.repeat_interleave(count, 0)
    heads = [value.reshape(-1, count) for value in critic(repeated, actions.flatten(0, 1))]
    if backup == "max":
        heads = [head.amax(1, keepdim=True) for head in heads]
        return torch.minimum(*heads)
    joined = torch.minimum(*heads) if backup == "min" else (heads[0] + heads[1]) / 2
    return joined.mean(1, keepdim=True)


def policy_value_loss(
    critic: TwoValues,
    state: Float[Tensor, "batch state"],
    action: Float[Tensor, "batch numbers"],
    first: bool,
) -> Float[Tensor, ""]:
    """−mean Q_i / mean |Q_j|, without a gradient below: the scale of the rewards cancels.

    Args:
        critic: that judges; its weights should be frozen.
        state: where.
        action: the actor's, with its graph.
        first: i, j = 1, 2; else 2, 1. The published code tosses a coin.

    Reference: Wang, Hunt & Zhou 2023, eq. 3 and released code.
    """
    one, two = critic(state, action)
    judged, other = (one, two) if first else (two, one)
    return -judged.mean() / other.abs().mean().detach()


def plain_value_loss(
    critic: TwoValues, state: Float[Tensor, "batch state"], action: Float[Tensor, "batch numbers"]
) -> Float[Tensor, ""]:
    """−mean (Q1 + Q2)/2, without a scale.

    Args:
        critic: that judges; its weights should be frozen.
        state: where.
        action: the actor's, with its graph.

    Reference: Park, Li & Levine 2025, "Flow Q-Learning", eq. 8 and released code.
    """
    one, two = critic(state, action)
    return -((one + two) / 2).mean()


def expectile_loss(difference: Float[Tensor, "*shape"], expectile: float) -> Float[Tensor, ""]:
    """mean |τ − 1{u < 0}|·u²: for τ > ½ it pulls towards the larger values.

    Args:
        difference: u = Q − V.
        expectile: τ in (0, 1).

    Raises:
        ValueError: τ is not in (0, 1).

    Reference: Kostrikov, Nair & Levine 2022, "Offline Reinforcement Learning with Implicit Q-Learning",
        eq. 5.

    Example:
        >>> expectile_loss(torch.tensor([1.0, -1.0]), 0.75)
        tensor(0.5000)
    """
    if not 0 < expectile < 1:
        raise ValueError(f"expectile must lie in (0, 1), got {expectile}")
    weight = torch.where(difference < 0, 1 - expectile, expectile)
    return (weight * difference.square()).mean()


@torch.no_grad()
def advantage(
    critic: TwoValues,
    value: nn.Module,
    state: Float[Tensor, "batch state"],
    action: Float[Tensor, "batch *action"],
) -> Float[Tensor, "batch 1"]:
    """min(Q1, Q2)(s, a) − V(s).

    Args:
        critic: of actions.
        value: of states.
        state: where.
        action: what was done.

    Reference: Kostrikov et al. 2022, eq. 7; Lei et al. 2025, "RL-100", section on offline updates.
    """
    return torch.minimum(*critic(state, action.flatten(1))) - value(state)


def standardised(values: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch 1"]:
    """(x − mean)/(std + 1e-8), std unbiased: advantages of a batch on one scale.

    Args:
        values: at least two.
    """
    return (values - values.mean()) / (values.std() + 1e-8)


@torch.no_grad()
def move_towards(target: nn.Module, source: nn.Module, share: float) -> None:
    """w̄ ← (1 − share)·w̄ + share·w, parameters; buffers are copied.

    Args:
        target: w̄, a target network or an average.
        source: w.
        share: in [0, 1]; the τ of target networks, 1 − decay of averages.
    """
    torch._foreach_lerp_(list(target.parameters()), [p.detach() for p in source.parameters()], share)
    for theirs, ours in zip(source.buffers(), target.buffers(), strict=True):
        ours.copy_(theirs)
