"""What an evaluation needs to know about an environment, and how one is made."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import gymnasium

Score = Literal["max reward", "success", "return"]


@dataclass(frozen=True)
class Goals:
    """Where an observation holds the place of who acts and where it should go.

    Attributes:
        observation: its name.
        place: first and last + 1 of the numbers that say where it is.
        goal: the same of where it should be.
        radius: distance at which the goal is reached.
    """

    observation: str
    place: tuple[int, int]
    goal: tuple[int, int]
    radius: float


@dataclass(frozen=True)
class EnvSpec:
    """An environment's facts; `make` builds one.

    Attributes:
        name: as in `registry.env_names()`.
        observation_shapes: of one observation, by name; images are (height, width, channels) uint8 here.
        action_low: smallest action, in the environment's units, one number per dimension.
        action_high: largest action.
        fps: control steps per second of simulated time.
        max_steps: after which an episode is cut off.
        score: what the score of an episode is: its largest reward, 1 for a success, or its return.
        has_success: whether the environment says that its task is solved.
        first_test_seed: episodes with seeds from here on are for tests only.
        create: builds one; given the side of its pictures in pixels, or None for an environment that is not
            shown.
        picture_span: the actions are positions in a square picture of this side, in the actions' units; None
            when they are something else.
        goals: where the observation holds place and goal; None when the task is not to go somewhere.
    """

    name: str
    observation_shapes: Mapping[str, tuple[int, ...]]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    fps: float
    max_steps: int
    score: Score
    has_success: bool
    first_test_seed: int
    create: Callable[[int | None], gymnasium.Env[Any, Any]] = field(repr=False)
    picture_span: float | None = None
    goals: Goals | None = None

    @property
    def action_dim(self) -> int:
        """Numbers in one action."""
        return len(self.action_low)

    def test_seeds(self, count: int) -> range:
        """The first so many seeds that no training run or demonstration has used.

        Args:
            count: of episodes.

        Raises:
            ValueError: if count is not positive.
        """
        if count < 1:
            raise ValueError(f"count is {count}; there must be at least one episode")
        return range(self.first_test_seed, self.first_test_seed + count)

    def make(self, picture_side: int | None = None) -> gymnasium.Env[Any, Any]:
        """An environment whose `render()` gives (side, side, 3) uint8 when a side is given.

        Args:
            picture_side: in pixels; None when nothing will be shown.

        Raises:
            ValueError: if the side is not between 32 and 1920.
            ImportError: if the extra [envs] is not installed.
        """
        if picture_side is not None and not 32 <= picture_side <= 1920:
            raise ValueError(f"picture_side is {picture_side}; it must lie in 32..1920 pixels")
        return self.create(picture_side)


def needed(module: str) -> ModuleType:
    """Import a package of the extra [envs], or say how to get it.

    Args:
        module: its import name.

    Raises:
        ImportError: if it cannot be imported; the message holds the pip command.

    Example:
        >>> needed("json").__name__
        'json'
        >>> needed("gym_x")
        Traceback (most recent call last):
        ImportError: gym_x is not installed (No module named 'gym_x'): pip install 'fewstep-policy[envs]'
    """
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            # Old resource loaders warn and Farama prints a note on import: nothing that a user here can mend.
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} is not installed ({error}): pip install 'fewstep-policy[envs]'"
        ) from error


def choose_renderer() -> None:
    """Let MuJoCo draw without a display: MUJOCO_GL=egl, on Linux without one, unless it is set already.

    It works only before MuJoCo is imported; every environment of this package calls it first.
    """
    headless = sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    )
    if headless and "mujoco" not in sys.modules:
        os.environ.setdefault("MUJOCO_GL", "egl")
