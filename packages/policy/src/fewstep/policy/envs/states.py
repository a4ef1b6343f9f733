"""MuJoCo tasks with named observations, and a word when their simulation breaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np

_BREAKS = ("QPOS", "QVEL", "QACC", "CTRL")


class NamedState(gymnasium.Wrapper[dict[str, np.ndarray], np.ndarray, Any, np.ndarray]):
    """Turns an environment's observation into {"state": float32} and says when MuJoCo gave up.

    MuJoCo puts a simulation that has exploded silently back to its start. `info["problem"]` then holds a
    sentence, which evaluation reports.

    Args:
        env: a MuJoCo environment.
        state_of: from its observation to the state, one row of numbers.
        width: numbers in the state.
    """

    def __init__(
        self, env: gymnasium.Env[Any, np.ndarray], state_of: Callable[[Any], np.ndarray], width: int
    ) -> None:
        super().__init__(env)
        self._state_of = state_of
        box = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        # gymnasium types Dict as a space of dicts of spaces, not of observations.
        self.observation_space = gymnasium.spaces.Dict({"state": box})  # type: ignore[assignment]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode; see gymnasium."""
        observation, info = self.env.reset(seed=seed, options=options)
        return {"state": self._state_of(observation).astype(np.float32)}, info

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """One control step; see gymnasium."""
        observation, reward, terminated, truncated, info = self.env.step(np.asarray(action, np.float64))
        state = self._state_of(observation).astype(np.float32)
        return {"state": state}, float(reward), bool(terminated), bool(truncated), self._with_problem(info)

    def _with_problem(self, info: Mapping[str, Any]) -> dict[str, Any]:
        counts = self.env.unwrapped.data.warning.number  # pyright: ignore[reportAttributeAccessIssue]
        # The last four of MuJoCo's seven warnings: numbers that are not finite, or huge.
        broken = [name for name, count in zip(_BREAKS, counts[3:7], strict=True) if count]
        if not broken:
            return dict(info)
        return {**info, "problem": f"the simulation became unstable: bad {', '.join(broken)}"}


def flat(observation: np.ndarray) -> np.ndarray:
    """An observation that is a row of numbers already.

    Args:
        observation: (width,).
    """
    return observation


def build(
    official: str, picture_side: int | None, settings: Mapping[str, object]
) -> gymnasium.Env[Any, np.ndarray]:
    """Make a registered environment, with a renderer when a picture's side is given.

    Args:
        official: its registered name.
        picture_side: in pixels, or None.
        settings: of the environment.
    """
    pictures = (
        {}
        if picture_side is None
        else {"render_mode": "rgb_array", "width": picture_side, "height": picture_side}
    )
    return gymnasium.make(official, disable_env_checker=True, **settings, **pictures)
