"""Push-T: a disc pushes a T-shaped block onto its goal (gym-pusht, named observations, exact starts)."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np

from fewstep.policy.envs.pusht_geometry import (
    GOAL_POSE,
    PIXELS,
    SHAPES,
    SIDE,
    Observed,
    check_observed,
    checked_goal,
    keypoints_of_states,
)
from fewstep.policy.envs.pusht_pictures import Painter, place
from fewstep.policy.envs.spec import EnvSpec, needed


class PushT(gymnasium.Env[dict[str, np.ndarray], np.ndarray]):
    """The Push-T task of gym-pusht; reward min(coverage / 0.95, 1), done when the coverage exceeds 0.95.

    `reset(options={"state": (x, y, block x, block y, angle)})` puts disc and block exactly there, at rest; a
    recorded episode's actions then give the recorded states again. Every other start is drawn from the seed.

    Args:
        obs: "state": disc x, y, block x, y, angle in [0, 2 pi); "keypoints": the disc as "state", the block's
            corners as "environment_state"; "pixels": the disc as "state", the camera's picture, without a
            mark of the action, as "image".
        goal_pose: of the block: x, y, angle.
        picture_side: of `render()`, in pixels.
        max_steps: after which an episode is cut off.

    Reference: Chi et al. 2023, "Diffusion Policy", section 5.1; Florence et al. 2021, "Implicit Behavioral
        Cloning".
    """

    def __init__(
        self,
        obs: Observed = "keypoints",
        goal_pose: Sequence[float] = GOAL_POSE,
        picture_side: int | None = None,
        max_steps: int = 300,
    ) -> None:
        check_observed(obs)
        goal = checked_goal(goal_pose)
        self.obs, self.goal_pose, self.max_steps = obs, goal, max_steps
        self.simulation = _in_order(needed("gym_pusht.envs.pusht"))(
            obs_type="state", observation_width=PIXELS, observation_height=PIXELS
        )
        self.render_mode = "rgb_array"
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
        self.action_space = self.simulation.action_space
        self.observation_space = _space(obs)
        self._camera = Painter(PIXELS, goal) if obs == "pixels" else None
        self._screen = None if picture_side is None else Painter(picture_side, goal)
        self._steps = 0

    @property
    def state(self) -> np.ndarray:
        """Disc x, y, block x, y and angle in [0, 2 pi)."""
        return self.simulation.get_obs()

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of the start; the same seed gives the same start.
            options: {"state": five numbers} for an exact start.

        Raises:
            ValueError: if an option is unknown or its state is not five finite numbers.
        """
        given = dict(options or {})
        start = given.pop("state", None)
        if given:
            raise ValueError(f"option {next(iter(given))!r} is unknown; Push-T knows 'state'")
        _, info = self.simulation.reset(seed=seed)
        self.simulation.goal_pose = self.goal_pose.copy()
        if start is not None:
            place(self.simulation, start)
        self._steps = 0
        return self._observation(), self._facts(info)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Let the disc pull towards a target for a tenth of a second.

        Args:
            action: target x, y.

        Raises:
            ValueError: if it is not two finite numbers; the physics engine would end the process.
        """
        target = np.asarray(action, dtype=np.float64)
        if target.shape != (2,) or not np.isfinite(target).all():
            raise ValueError(f"action is {action!r}; it must be two finite numbers")
        _, reward, terminated, _, info = self.simulation.step(target)
        self._steps += 1
        cut_off = self._steps >= self.max_steps
        return self._observation(), float(reward), bool(terminated), cut_off, self._facts(info)

    def render(self) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The table as (side, side, 3) uint8.

        Raises:
            RuntimeError: if the environment was made without a picture's side.
        """
        if self._screen is None:
            raise RuntimeError("this PushT has no pictures: make it with picture_side=384, say")
        return self._screen(self.state)

    def _observation(self) -> dict[str, np.ndarray]:
        state = self.state
        if self._camera is not None:
            return {"state": state[:2].astype(np.float32), "image": self._camera(state)}
        if self.obs == "keypoints":
            corners = keypoints_of_states(state[None])[0]
            return {"state": state[:2].astype(np.float32), "environment_state": corners.astype(np.float32)}
        return {"state": state.astype(np.float32)}

    def _facts(self, info: Mapping[str, Any]) -> dict[str, Any]:
        pose = np.array([*self.simulation.block.position, self.simulation.block.angle])
        agent = np.array(self.simulation.agent.position)
        return {
            **info,
            "success": bool(info["is_success"]),
            "goal_pose": self.goal_pose.copy(),
            "block_pose": pose,
            "pos_agent": agent,
        }


def pusht_spec(obs: Observed = "keypoints", goal_pose: Sequence[float] = GOAL_POSE) -> EnvSpec:
    """Facts of Push-T.

    Args:
        obs: what is observed.
        goal_pose: of the block.

    Raises:
        ValueError: if `obs` is unknown or the pose is not three finite numbers.
    """
    check_observed(obs)
    goal = tuple(checked_goal(goal_pose).tolist())
    return EnvSpec(
        name="pusht",
        observation_shapes=SHAPES[obs],
        action_low=(0.0, 0.0),
        action_high=(SIDE, SIDE),
        fps=10,
        max_steps=300,
        score="max reward",
        has_success=True,
        first_test_seed=100_000,
        create=lambda picture_side: PushT(obs, goal, picture_side),
        picture_span=SIDE,
    )


@functools.cache
def _in_order(engine: ModuleType) -> Any:
    """gym-pusht's simulation, whose coverage has the same last bits in every process.

    The engine adds the areas of the block's boxes up in the order of a set of objects: of their addresses.
    """

    class InOrder(engine.PushTEnv):
        def _get_coverage(self) -> float:
            goal_body = self.get_goal_pose_body(self.goal_pose)
            goal = engine.pymunk_to_shapely(goal_body, self._block_shapes)
            block = engine.pymunk_to_shapely(self.block, self._block_shapes)
            return goal.intersection(block).area / goal.area

    return InOrder


def _space(obs: str) -> gymnasium.Space[Any]:
    boxes: dict[str, gymnasium.Space[Any]] = {}
    for name, shape in SHAPES[obs].items():
        if name == "image":
            boxes[name] = gymnasium.spaces.Box(0, 255, shape, np.uint8)
        else:
            boxes[name] = gymnasium.spaces.Box(-np.inf, np.inf, shape, np.float32)
    return gymnasium.spaces.Dict(boxes)
