"""Push-T without its simulator: what states look like as keypoints, and the task's facts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float

Observed = Literal["state", "keypoints", "pixels"]
SIDE = 512.0
"""The table's side in its own units; actions are target positions of the disc in 0..512."""
PIXELS = 96
"""Side of an observed picture."""
GOAL_POSE = (256.0, 256.0, math.pi / 4)
"""The block's goal: x, y and angle in radians."""

# Corners of the block's two boxes in its own frame, which does not start at its centre of mass.
_CORNERS = np.array(
    [(-60, 0), (60, 0), (60, 30), (-60, 30), (-15, 30), (15, 30), (15, 120), (-15, 120)], dtype=np.float64
)
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "state": {"state": (5,)},
    "keypoints": {"state": (2,), "environment_state": (16,)},
    "pixels": {"state": (2,), "image": (PIXELS, PIXELS, 3)},
}


def keypoints_of_states(states: np.ndarray) -> Float[np.ndarray, "n 16"]:
    """The eight corners of the block, as the environment observes them: x0, y0, x1, y1, ….

    k_i = R(angle) c_i + (x, y), with the corners c_i of the crossbar first, then those of the stem. Keypoints
    do not jump where an angle wraps, so policies learn from them more easily than from the state.

    Args:
        states: (n, 5): disc x, y, block x, y and angle in radians, wrapped or not. The result keeps a
            floating type; it is computed in float64.

    Raises:
        ValueError: if a state does not have five numbers.

    Example:
        >>> keypoints_of_states(np.array([[0.0, 0.0, 100.0, 200.0, 0.0]]))[0, :4]
        array([ 40., 200., 160., 200.])
    """
    states = checked_states(states)
    exact = states.astype(np.float64)
    cos, sin = np.cos(exact[:, 4:]), np.sin(exact[:, 4:])
    x = _CORNERS[:, 0] * cos - _CORNERS[:, 1] * sin + exact[:, 2:3]
    y = _CORNERS[:, 0] * sin + _CORNERS[:, 1] * cos + exact[:, 3:4]
    return np.stack([x, y], axis=-1).reshape(len(states), 16).astype(states.dtype)


def observations_of_states(states: np.ndarray, obs: str = "keypoints") -> dict[str, np.ndarray]:
    """What the environment would have observed in recorded states, for training.

    Args:
        states: as in `keypoints_of_states`.
        obs: "state", "keypoints" or "pixels"; pixels need the extra [envs].

    Returns:
        "state" (n, 5) alone; or "state" (n, 2), the disc's position, with "environment_state" (n, 16) or
        "image" (n, 96, 96, 3) uint8.

    Raises:
        ValueError: if the states have another shape or `obs` is unknown.
    """
    check_observed(obs)
    states = checked_states(states)
    if obs == "state":
        return {"state": states.astype(np.float32)}
    agent = states[:, :2].astype(np.float32)
    if obs == "keypoints":
        return {"state": agent, "environment_state": keypoints_of_states(states).astype(np.float32)}
    from fewstep.policy.envs.pusht_pictures import render_states

    return {"state": agent, "image": render_states(states)}


def check_observed(obs: str) -> Observed:
    """The name of an observation of Push-T, or a refusal.

    Args:
        obs: its name.

    Raises:
        ValueError: if it is unknown.
    """
    for known in get_args(Observed):
        if obs == known:
            return known
    raise ValueError(f"obs is {obs!r}; Push-T has {', '.join(get_args(Observed))}")


def checked_states(states: np.ndarray) -> Float[np.ndarray, "n 5"]:
    """States as floating numbers, or a refusal.

    Args:
        states: (n, 5).

    Raises:
        ValueError: if they have another shape or are not finite.
    """
    states = np.asarray(states)
    if states.ndim != 2 or states.shape[1] != 5:
        raise ValueError(f"states has shape {states.shape}; Push-T's are (n, 5)")
    if not np.isfinite(states).all():
        raise ValueError("states holds numbers that are not finite")
    return states if np.issubdtype(states.dtype, np.floating) else states.astype(np.float64)


def checked_goal(goal_pose: Sequence[float] | np.ndarray) -> np.ndarray:
    """A goal's pose as float64, or a refusal.

    Args:
        goal_pose: x, y, angle.

    Raises:
        ValueError: if it is not three finite numbers.
    """
    goal = np.array(goal_pose, dtype=np.float64)
    if goal.shape != (3,) or not np.isfinite(goal).all():
        raise ValueError(f"goal_pose is {goal_pose!r}; it must be three finite numbers x, y, angle")
    return goal
