"""Environments by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fewstep.policy.envs.spec import EnvSpec, needed

if TYPE_CHECKING:
    import gymnasium

_MAZES = ("umaze", "medium", "large")
_NAMES = (
    "pusht",
    *(f"pointmaze-{size}" for size in _MAZES),
    *(f"antmaze-{size}" for size in _MAZES),
    *(f"adroit-{task}" for task in ("door", "pen", "hammer", "relocate")),
    *("halfcheetah", "hopper", "walker2d", "ant"),
)
# Their models use joints that MuJoCo 4 describes differently, which gymnasium-robotics refuses.
_REFUSED = ("fetch", "kitchen", "handreach", "handmanipulate")


def env_names() -> tuple[str, ...]:
    """Names that `env_spec` and `make` know.

    Example:
        >>> env_names()[:2]
        ('pusht', 'pointmaze-umaze')
    """
    return _NAMES


def env_spec(name: str, obs: str | None = None, goal_pose: Sequence[float] | None = None) -> EnvSpec:
    """Facts of an environment.

    Args:
        name: one of `env_names()`.
        obs: what Push-T shows: "state", "keypoints" (default) or "pixels"; the others show "state".
        goal_pose: of Push-T's block: x, y, angle.

    Raises:
        ValueError: if the name or the observation is unknown, the environment does not work here, or it has
            no goal to be set.
        ImportError: if gymnasium is not installed.
    """
    _check_name(name)
    needed("gymnasium")
    if name == "pusht":
        from fewstep.policy.envs.pusht import pusht_spec
        from fewstep.policy.envs.pusht_geometry import GOAL_POSE, check_observed

        chosen = check_observed(obs or "keypoints")
        return pusht_spec(chosen, GOAL_POSE if goal_pose is None else goal_pose)
    if obs not in (None, "state"):
        raise ValueError(f"obs is {obs!r}; {name} has state only")
    if goal_pose is not None:
        raise ValueError(f"goal_pose is a setting of pusht; {name} has none")
    family, _, rest = name.partition("-")
    return _families()[family](rest or name)


def make(
    name: str,
    obs: str | None = None,
    goal_pose: Sequence[float] | None = None,
    picture_side: int | None = None,
) -> gymnasium.Env[Any, Any]:
    """An environment of gymnasium whose observations are dicts of named arrays.

    Args:
        name: one of `env_names()`.
        obs: as in `env_spec`.
        goal_pose: as in `env_spec`.
        picture_side: of `render()`, in pixels; None when nothing will be shown.

    Raises:
        ValueError: as in `env_spec`.
        ImportError: if a package of the extra [envs] is not installed.
    """
    return env_spec(name, obs, goal_pose).make(picture_side)


def _families() -> dict[str, Callable[[str], EnvSpec]]:
    from fewstep.policy.envs.adroit import adroit_spec
    from fewstep.policy.envs.locomotion import ROBOTS, locomotion_spec
    from fewstep.policy.envs.maze import ant_maze_spec, point_maze_spec

    mazes = {"pointmaze": point_maze_spec, "antmaze": ant_maze_spec}
    return {**mazes, "adroit": adroit_spec, **dict.fromkeys(ROBOTS, locomotion_spec)}


def _check_name(name: str) -> None:
    if name in _NAMES:
        return
    if any(word in name.lower().replace("_", "").replace("-", "") for word in _REFUSED):
        raise ValueError(
            f"{name} does not work with MuJoCo 4, on which this package stands: the Fetch, FrankaKitchen and "
            "shadow-hand tasks of gymnasium-robotics need mujoco<4"
        )
    raise ValueError(f"environment {name!r} is unknown; there are {', '.join(_NAMES)}")
