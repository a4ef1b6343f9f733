"""Demonstrations of any format, as the observations that an environment gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from .envs.pusht_geometry import observations_of_states
from .episodes import DataError, Episodes
from .files.lerobot_reading import read_lerobot
from .files.npz import read_npz


def read_demonstrations(path: str | Path) -> Episodes:
    """Read a LeRobot v3 folder, a folder in zarr format, or a .npz file.

    Args:
        path: of the file or folder.

    Returns:
        The demonstrations under our names.

    Raises:
        FileNotFoundError: there is nothing.
        DataError: it is damaged or of no known format.
        ImportError: a zarr folder without the extra [zarr].
    """
    path = Path(path)
    if path.is_dir() and (path / "meta" / "info.json").is_file():
        return read_lerobot(path)
    if path.is_dir() and any((path / name).is_file() for name in (".zgroup", "zarr.json")):
        from .files.zarr_reading import read_zarr

        return read_zarr(path)
    if path.is_dir():
        raise DataError(f"{path} is neither a LeRobot data set (meta/info.json) nor a zarr store (.zgroup)")
    return read_npz(path)


def observed(episodes: Episodes, environment: str, obs: str | None = None) -> Episodes:
    """Demonstrations with the observations of an environment.

    Push-T's recorded states (disc x, y, block x, y, angle) become what `obs` shows; in the point mazes the
    goal joins the state.

    Args:
        episodes: as they were read.
        environment: a name of `envs.registry.env_names()`, or "" for demonstrations taken as they are.
        obs: of Push-T: "state", "keypoints" (default) or "pixels".

    Raises:
        DataError: an array that is needed is absent or of another width.
    """
    arrays = dict(episodes.arrays)
    state = arrays.get("state")
    if environment == "pusht" and state is not None and state.shape[1] == 5:
        arrays.update(observations_of_states(state, obs or "keypoints"))
        if (obs or "keypoints") == "pixels":
            raise DataError("states hold no pictures; record them, or train on keypoints")
    elif environment.startswith("pointmaze") and state is not None and "goal" in arrays:
        for name in ("state", "next_state"):
            if name in arrays:
                arrays[name] = np.concatenate([arrays[name], arrays["goal"]], axis=1).astype(np.float32)
    return replace(episodes, arrays=arrays)


def fitting(episodes: Episodes, shapes: Mapping[str, Sequence[int]], who: str) -> Episodes:
    """The demonstrations, once it is sure that they hold what somebody needs.

    Args:
        episodes: under our names.
        shapes: of one step by name, "action" among them; images in either order of the channels.
        who: needs them, for the message.

    Raises:
        DataError: an array is absent or of another shape.
    """
    for name, shape in shapes.items():
        if name not in episodes.arrays:
            raise DataError(
                f"the demonstrations have no {name!r}, which {who} needs; they have "
                f"{', '.join(episodes.arrays)}"
            )
        given = episodes.arrays[name].shape[1:]
        turned = (*given[-1:], *given[:-1]) if len(given) == 3 else given
        if tuple(shape) not in (given, turned):
            raise DataError(f"{name!r} of the demonstrations is {given} a step, of {who} {tuple(shape)}")
    return episodes
