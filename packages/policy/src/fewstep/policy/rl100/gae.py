"""Generalised advantage estimation over decisions of different lengths, environment by environment."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Estimates(NamedTuple):
    """What every decision was worth.

    Attributes:
        advantage: A.
        target: A + V, what the value should have said.
    """

    advantage: Float[Tensor, "time envs"]
    target: Float[Tensor, "time envs"]


def estimate_advantages(
    reward: Float[Tensor, "time envs"],
    value: Float[Tensor, "time envs"],
    next_value: Float[Tensor, "time envs"],
    discount: Float[Tensor, "time envs"],
    terminal: Bool[Tensor, "time envs"],
    ended: Bool[Tensor, "time envs"],
    lam: float = 0.95,
) -> Estimates:
    """A_t = δ_t + d_t·λ·(1 − ended_t)·A_{t+1},  δ_t = R_t + d_t·(1 − terminal_t)·V(s'_t) − V(s_t).

    Every column is an environment of its own, and nothing passes the end of an episode. An episode that was
    cut off by a limit of time has ended without being terminal: its last state still has a value.

    Args:
        reward: R_t = Σ_j γ^j r_j over the actions of a decision.
        value: V(s_t).
        next_value: V of the state after the decision, also after the last one of an episode.
        discount: d_t = γ^n, n the actions that were carried out.
        terminal: the task itself ended.
        ended: the episode ended, whatever the reason.
        lam: λ.

    Raises:
        ValueError: λ is not in [0, 1], or the shapes differ.

    Reference: Schulman et al. 2016, "High-Dimensional Continuous Control Using Generalized Advantage
        Estimation", eq. 16; Lei et al. 2025, "RL-100" (γ^Ta for chunks).

    Example:
        >>> one, no = torch.ones(2, 1), torch.zeros(2, 1, dtype=torch.bool)
        >>> zero, last = torch.zeros(2, 1), torch.tensor([[False], [True]])
        >>> estimate_advantages(one, zero, zero, 0.5 * one, last, last, 1.0).advantage.flatten()
        tensor([1.5000, 1.0000])
    """
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {lam}")
    if len({tuple(given.shape) for given in (reward, value, next_value, discount, terminal, ended)}) > 1:
        raise ValueError("reward, value, next_value, discount, terminal and ended must have one shape")
    delta = reward + discount * next_value * ~terminal - value
    carried = discount * lam * ~(ended | terminal)
    advantage = torch.zeros_like(delta)
    later = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        later = delta[t] + carried[t] * later
        advantage[t] = later
    return Estimates(advantage, advantage + value)
