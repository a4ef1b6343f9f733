"""Pictures of Push-T from its states: the camera's, for training, and larger ones for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fewstep.policy.envs.pusht_geometry import GOAL_POSE, PIXELS, checked_goal, checked_states
from fewstep.policy.envs.spec import needed


class Painter:
    """Draws states of Push-T as gym-pusht's camera sees them, without a mark of the action.

    Args:
        side: of a picture, in pixels.
        goal_pose: where the green goal is: x, y, angle.
    """

    def __init__(self, side: int = PIXELS, goal_pose: Sequence[float] | np.ndarray = GOAL_POSE) -> None:
        engine = needed("gym_pusht.envs").PushTEnv
        self._stage = engine(obs_type="pixels", observation_width=side, observation_height=side)
        self._stage.reset(seed=0)
        self._stage.goal_pose = checked_goal(goal_pose)

    def __call__(self, state: np.ndarray) -> UInt8[np.ndarray, "side side 3"]:
        """One picture.

        Args:
            state: disc x, y, block x, y, angle.

        Raises:
            ValueError: if it is not five finite numbers.
        """
        place(self._stage, state)
        return self._stage.get_obs()


def render_states(
    states: np.ndarray,
    side: int = PIXELS,
    goal_pose: Sequence[float] | np.ndarray = GOAL_POSE,
) -> UInt8[np.ndarray, "n side side 3"]:
    """The camera's pictures of recorded states: an image data set need not be stored.

    Args:
        states: (n, 5): disc x, y, block x, y, angle.
        side: in pixels; 96 is what policies observe.
        goal_pose: of the recording.

    Raises:
        ValueError: if the states are not (n, 5) finite numbers.
        ImportError: if the extra [envs] is not installed.
    """
    states = checked_states(states)
    paint = Painter(side, goal_pose)
    pictures = np.empty((len(states), side, side, 3), dtype=np.uint8)
    for i, state in enumerate(states):
        pictures[i] = paint(state)
    return pictures


def place(simulation: Any, state: Sequence[float] | np.ndarray) -> None:
    """Put disc and block of a gym-pusht environment exactly somewhere, at rest.

    Setting the angle turns the block about its centre of mass and so moves it: the angle goes first. The
    shapes follow their bodies only when they are indexed again.

    Args:
        simulation: gym-pusht's PushTEnv, after a reset.
        state: disc x, y, block x, y, angle.

    Raises:
        ValueError: if it is not five finite numbers.
    """
    exact = np.asarray(state, dtype=np.float64)
    if exact.shape != (5,) or not np.isfinite(exact).all():
        raise ValueError(f"state is {state!r}; it must be five finite numbers")
    simulation.agent.position = tuple(exact[:2].tolist())
    simulation.block.angle = float(exact[4])
    simulation.block.position = tuple(exact[2:4].tolist())
    simulation.space.reindex_shapes_for_body(simulation.agent)
    simulation.space.reindex_shapes_for_body(simulation.block)
