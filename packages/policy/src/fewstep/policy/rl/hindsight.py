"""Hindsight: what was reached later had been the goal, so that one episode teaches many goals."""

from __future__ import annotations

import numpy as np

from ..envs.spec import Goals
from ..episodes import Episodes, from_episodes
from .transitions import rewards_of, terminal_episodes

# A start and an end that are too close teach nothing; another pair is drawn, this often.
_TRIES = 10


def with_hindsight(episodes: Episodes, goals: Goals, copies: int, seed: int = 0) -> Episodes:
    """The episodes, and pieces of them whose goal is a place that they reached.

    Of an episode with places p_0 … p_L, a piece begins at t, drawn evenly, and its goal is p_j, j drawn
    evenly from t + 1 … L. It ends, by itself and with reward 1, with the first step that arrives within the
    radius of the goal; all rewards before are 0. Observations but the goal, and actions, are what they were.

    Args:
        episodes: with the observation of `goals`, "action", "reward", and what says how they end; with
            "next_" observations the place after the last step counts too.
        goals: where the observation holds place and goal.
        copies: pieces that are drawn of every episode.
        seed: of the draws.

    Returns:
        Episodes with observation, "action", "reward" and "terminated", the given ones first.

    Raises:
        ValueError: an array is absent, or copies is negative.

    Reference: Andrychowicz et al. 2017, "Hindsight Experience Replay", section 3 ("future" goals).

    Example:
        >>> walk = np.array([[0.0, 9.0], [1.0, 9.0], [2.0, 9.0], [3.0, 9.0]], np.float32)
        >>> one = {"state": walk, "action": np.ones((4, 1), np.float32), "reward": np.zeros(4)}
        >>> one["terminated"] = np.zeros(4, bool)
        >>> made = with_hindsight(from_episodes([one]), Goals("state", (0, 1), (1, 2), 0.5), copies=1,
        ...     seed=1)
        >>> made.ends.tolist(), made.arrays["state"][4:].tolist(), made.arrays["reward"][4:].tolist()
        ([4, 6], [[1.0, 3.0], [2.0, 3.0]], [0.0, 1.0])
    """
    if copies < 0:
        raise ValueError(f"copies must not be negative, got {copies}")
    observation, following = goals.observation, f"next_{goals.observation}"
    absent = [name for name in (observation, "action") if name not in episodes.arrays]
    if absent:
        raise ValueError(f"episodes have no {', '.join(absent)}, only {sorted(episodes.arrays)}")
    names = [name for name in (observation, following, "action") if name in episodes.arrays]
    ended = np.zeros(episodes.steps, bool)
    ended[episodes.ends - 1] = terminal_episodes(episodes)
    kept = {name: episodes.arrays[name] for name in names}
    whole = Episodes(
        {**kept, "reward": rewards_of(episodes), "terminated": ended}, episodes.ends, episodes.fps
    )
    draws = np.random.default_rng(seed)
    every = [whole.episode(number) for number in range(len(whole))]
    pieces = [_piece(episode, goals, draws) for episode in every for _ in range(copies)]
    return from_episodes([*every, *(piece for piece in pieces if piece is not None)], episodes.fps)


def _piece(
    episode: dict[str, np.ndarray], goals: Goals, draws: np.random.Generator
) -> dict[str, np.ndarray] | None:
    """One of the pieces, see above; None where nothing far enough away was drawn."""
    following = f"next_{goals.observation}"
    place = slice(*goals.place)
    before = episode[goals.observation][:, place]
    after = episode[following][:, place] if following in episode else before[1:]
    for _ in range(_TRIES if len(after) else 0):
        start = int(draws.integers(len(after)))
        goal = after[int(draws.integers(start, len(after)))]
        if np.linalg.norm(before[start] - goal) <= goals.radius:
            continue
        arrived = np.linalg.norm(after[start:] - goal, axis=1) <= goals.radius
        end = start + int(arrived.argmax()) + 1
        piece = {name: array[start:end].copy() for name, array in episode.items()}
        for name in (goals.observation, following):
            if name in piece:
                piece[name][:, slice(*goals.goal)] = goal
        piece["reward"][:], piece["terminated"][:] = 0, False
        piece["reward"][-1], piece["terminated"][-1] = 1, True
        return piece
    return None
