"""Transitions of demonstrations: what was seen, done and gained, and what was seen then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..episodes import Episodes


def _normalised(reward: np.ndarray) -> np.ndarray:
    spread = reward.std(ddof=1) if len(reward) > 1 else 0.0
    return (reward - reward.mean()) / (spread or 1.0)


REWARDS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "none": lambda reward: reward,
    "minus-one": lambda reward: reward - 1,
    "antmaze": lambda reward: (reward - 0.5) * 4,
    "normalize": _normalised,
}


def tuned(reward: Float[np.ndarray, " steps"], name: str) -> Float[np.ndarray, " steps"]:
    """Rewards as the benchmarks of offline reinforcement learning shift and scale them.

    "none"       r
    "minus-one"  r − 1: every step costs 1 (the published code's "iql_antmaze")
    "antmaze"    4(r − ½) ("cql_antmaze")
    "normalize"  (r − mean)/std over all steps, std unbiased

    Args:
        reward: of every step.
        name: of the rule.

    Raises:
        ValueError: an unknown rule.

    Reference: Wang, Hunt & Zhou 2023, "Diffusion Policies as an Expressive Policy Class for Offline
        Reinforcement Learning", released code, its replay buffer.

    Example:
        >>> tuned(np.array([0.0, 1.0]), "antmaze").tolist()
        [-2.0, 2.0]
    """
    if name not in REWARDS:
        raise ValueError(f"reward must be tuned by one of {', '.join(REWARDS)}, got {name!r}")
    return REWARDS[name](np.asarray(reward, dtype=np.float64))


@dataclass(frozen=True, eq=False)
class Batch:
    """Some transitions.

    Args:
        state: what was seen.
        action: chunk of actions that followed.
        reward: R = Σ_j γ^j r_j over the chunk.
        next_state: what was seen after the chunk.
        discount: γ^h, or 0 where the episode had ended: the target of a critic is R + discount·Q'.
        inside: which actions lie inside the episode.
    """

    state: Float[Tensor, "batch state"]
    action: Float[Tensor, "batch chunk action"]
    reward: Float[Tensor, "batch 1"]
    next_state: Float[Tensor, "batch state"]
    discount: Float[Tensor, "batch 1"]
    inside: Bool[Tensor, "batch chunk"]

    def __len__(self) -> int:
        return len(self.state)

    def fields(self) -> dict[str, Tensor]:
        """All of it by name, the form in which the core's Trainer moves batches."""
        return dict(vars(self))

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})


class Transitions:
    """All transitions of a data set, drawn in batches.

    A transition starts at every step t. For chunks of h actions,
        R = Σ_{j<h} γ^j r_{t+j},  s' = s_{t+h},  discount = γ^h·(1 − done).
    A chunk over the end of an episode that ended by itself gains nothing there, repeats the last action and
    is marked as outside; an episode that was cut off has no s' there, so such chunks are left out.

    Args:
        states: of every step, (steps, state).
        actions: of every step, (steps, action).
        rewards: of every step.
        ends: exclusive ends of the episodes.
        terminal: per episode, whether it ended by itself (a goal, a fall) rather than by a limit of time.
        final_states: what was seen after the last step of each episode; without it the last step of an
            episode that was cut off is left out.
        chunk: h.
        discount: γ.
        dtype: of the tensors.

    Raises:
        ValueError: lengths that do not agree, a chunk below 1, γ outside (0, 1], or nothing is left.

    Reference: Wang, Hunt & Zhou 2023, released code (h = 1); Li, Zhou & Levine 2025, "Reinforcement Learning
        with Action Chunking", eq. 5 (chunks).

    Example:
        >>> found = Transitions(np.zeros((4, 3)), np.zeros((4, 2)), np.ones(4), np.array([4]),
        ...     np.array([True]), chunk=2, discount=0.5)
        >>> found.all.reward.flatten().tolist(), found.all.discount.flatten().tolist()
        ([1.5, 1.5, 1.5, 1.0], [0.25, 0.25, 0.0, 0.0])
    """

    def __init__(
        self,
        states: Float[np.ndarray, "steps state"],
        actions: Float[np.ndarray, "steps action"],
        rewards: Float[np.ndarray, " steps"],
        ends: np.ndarray,
        terminal: np.ndarray,
        final_states: Float[np.ndarray, "episodes state"] | None = None,
        *,
        chunk: int = 1,
        discount: float = 0.99,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1, got {chunk}")
        if not 0 < discount <= 1:
            raise ValueError(f"discount must lie in (0, 1], got {discount}")
        ends = np.asarray(ends, np.int64)
        sizes = {"states": len(states), "actions": len(actions), "rewards": len(rewards)}
        if set(sizes.values()) != {int(ends[-1])}:
            raise ValueError(f"states, actions and rewards must have {ends[-1]} steps, got {sizes}")
        if len(terminal) != len(ends):
            raise ValueError(f"terminal must be {len(ends)}, one for each episode, got {len(terminal)}")
        starts = np.concatenate([[0], ends[:-1]])
        step = np.arange(ends[-1])
        end = np.repeat(ends, ends - starts)
        done = np.repeat(np.asarray(terminal, bool), ends - starts)
        after = step + chunk
        # With final states, step `end` exists as well: it is what was seen after the last action.
        kept = done | (after < end) | ((after == end) & (final_states is not None))
        step, end, done, after = step[kept], end[kept], done[kept], after[kept]
        if not len(step):
            raise ValueError(f"no episode is long enough for a transition over {chunk} steps")
        within = step[:, None] + np.arange(chunk)
        inside = within < end[:, None]
        rows = np.minimum(within, end[:, None] - 1)
        gained = np.where(inside, rewards[rows], 0.0) * discount ** np.arange(chunk)
        over = done & (after >= end)
        followed = states[np.minimum(after, end - 1)]
        if final_states is not None:
            episode = np.searchsorted(ends, step, side="right")
            followed = np.where((after >= end)[:, None], final_states[episode], followed)

        def tensor(array: np.ndarray) -> Tensor:
            return torch.as_tensor(np.ascontiguousarray(array), dtype=dtype)

        self.all = Batch(
            tensor(states[step]),
            tensor(actions[rows]),
            tensor(gained.sum(1)[:, None]),
            tensor(followed),
            tensor(np.where(over, 0.0, discount**chunk)[:, None]),
            torch.as_tensor(inside),
        )

    def __len__(self) -> int:
        return len(self.all)

    def batch(self, generator: np.random.Generator, n: int) -> Batch:
        """Draw transitions uniformly, with replacement.

        Args:
            generator: of the choice.
            n: how many.
        """
        rows = torch.from_numpy(generator.integers(len(self), size=n))
        return Batch(**{name: value[rows] for name, value in vars(self.all).items()})


def vectors_of(episodes: Episodes, names: tuple[str, ...], prefix: str = "") -> np.ndarray:
    """Vector observations of every step side by side.

    Args:
        episodes: with those arrays.
        names: of the observations.
        prefix: "next_" for what was seen after each step.

    Raises:
        ValueError: an array is absent or holds no vectors.
    """
    absent = [prefix + name for name in names if prefix + name not in episodes.arrays]
    if absent or not names:
        raise ValueError(
            f"episodes have no {', '.join(absent) or 'observation'}, only {sorted(episodes.arrays)}"
        )
    found = [episodes.arrays[prefix + name] for name in names]
    if any(array.ndim != 2 for array in found):
        raise ValueError(f"observations {', '.join(names)} must be vectors, (steps, numbers)")
    return np.concatenate(found, axis=1).astype(np.float32)


def terminal_episodes(episodes: Episodes) -> Bool[np.ndarray, " episodes"]:
    """Which episodes ended by themselves: "terminated", else "success", else "done" at their last step.

    Raises:
        ValueError: none of the three is there.
    """
    for name in ("terminated", "success", "done"):
        if name in episodes.arrays:
            return np.asarray(episodes.arrays[name]).reshape(episodes.steps)[episodes.ends - 1].astype(bool)
    raise ValueError(
        f"episodes must say with 'terminated', 'success' or 'done' how they end, "
        f"got {sorted(episodes.arrays)}"
    )


def rewards_of(episodes: Episodes) -> Float[np.ndarray, " steps"]:
    """The reward of every step.

    Raises:
        ValueError: there is none.
    """
    if "reward" not in episodes.arrays:
        raise ValueError(f"episodes must have 'reward', got {sorted(episodes.arrays)}")
    return np.asarray(episodes.arrays["reward"], np.float64).reshape(episodes.steps)
