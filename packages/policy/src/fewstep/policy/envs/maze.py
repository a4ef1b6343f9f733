"""PointMaze and AntMaze: reach a goal in a maze; the reward is 1 in the step that reaches it, 0 before."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from fewstep.policy.envs.spec import EnvSpec, Goals, choose_renderer, needed
from fewstep.policy.envs.states import NamedState, build

SIZES = {"umaze": "UMaze", "medium": "Medium", "large": "Large"}
_POINT_STEPS = {"umaze": 300, "medium": 600, "large": 800}
_ANT_STEPS = {"umaze": 700, "medium": 1000, "large": 1000}
_RADIUS = 0.45  # at which gymnasium-robotics calls a goal reached
# One goal an episode, and the episode ends there.
_ONE_GOAL = {"continuing_task": False, "reset_target": False}


def point_maze_spec(size: str) -> EnvSpec:
    """Facts of PointMaze, a ball pushed by a force: state = x, y, vx, vy, goal x, goal y.

    Args:
        size: "umaze", "medium" or "large".

    Reference: Fu et al. 2020, "D4RL", section 5 (Maze2D); gymnasium-robotics' v3, episodes of one goal.
    """
    return EnvSpec(
        name=f"pointmaze-{size}",
        observation_shapes={"state": (6,)},
        action_low=(-1.0,) * 2,
        action_high=(1.0,) * 2,
        fps=100,
        max_steps=_POINT_STEPS[size],
        score="success",
        has_success=True,
        first_test_seed=500_000,
        create=lambda side: _make(f"PointMaze_{SIZES[size]}-v3", side, _point_state, 6, dict(_ONE_GOAL)),
        goals=Goals("state", (0, 2), (4, 6), _RADIUS),
    )


def ant_maze_spec(size: str) -> EnvSpec:
    """Facts of AntMaze, a four-legged walker: state = x, y, 27 numbers of its body, goal x, goal y.

    The contact forces that gymnasium's Ant observes by default are left out, as in D4RL.

    Args:
        size: "umaze", "medium" or "large".

    Reference: Fu et al. 2020, "D4RL", section 5 (AntMaze); gymnasium-robotics' v5, episodes of one goal.
    """
    settings = {**_ONE_GOAL, "include_cfrc_ext_in_observation": False}
    return EnvSpec(
        name=f"antmaze-{size}",
        observation_shapes={"state": (31,)},
        action_low=(-1.0,) * 8,
        action_high=(1.0,) * 8,
        fps=20,
        max_steps=_ANT_STEPS[size],
        score="success",
        has_success=True,
        first_test_seed=500_000,
        create=lambda side: _make(f"AntMaze_{SIZES[size]}-v5", side, _ant_state, 31, settings),
        goals=Goals("state", (0, 2), (29, 31), _RADIUS),
    )


def _make(official: str, side: int | None, state_of: Any, width: int, settings: dict[str, Any]) -> NamedState:
    choose_renderer()
    gymnasium.register_envs(needed("gymnasium_robotics"))
    return NamedState(build(official, side, settings), state_of, width)


def _point_state(observation: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([observation["observation"], observation["desired_goal"]])


def _ant_state(observation: dict[str, np.ndarray]) -> np.ndarray:
    # The ant's own observation lacks its position, without which the maze cannot be solved.
    return np.concatenate(
        [observation["achieved_goal"], observation["observation"], observation["desired_goal"]]
    )
