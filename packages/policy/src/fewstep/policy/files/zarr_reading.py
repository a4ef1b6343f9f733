"""Demonstrations in a zarr replay buffer, Diffusion Policy's own format (needs the extra `zarr`)."""

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.policy.episodes import DataError, Episodes
from fewstep.policy.names import is_image

_NAMES = {"img": "image", "obs": "state", "agent_pos": "state"}


def read_zarr(path: str | os.PathLike[str], fps: float | None = None) -> Episodes:
    """Read a replay buffer: `data/<name>` with all steps and `meta/episode_ends`.

    "img" is called "image" here and becomes uint8; "obs" is called "state".

    Args:
        path: of the zarr folder, or of a .zip file of it.
        fps: steps per second, which the format does not state.

    Returns:
        The demonstrations.

    Raises:
        ImportError: the package zarr is not installed; the message names the pip command.
        FileNotFoundError: there is no such folder or file.
        DataError: it is damaged, no replay buffer, or its arrays would be unpickled.

    Reference: Chi et al. (2023), Diffusion Policy, its ReplayBuffer.
    """
    try:
        zarr: Any = importlib.import_module("zarr")
    except ImportError as error:
        raise ImportError(
            "reading zarr needs the package zarr: pip install 'fewstep-policy[zarr]'"
        ) from error
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there")
    try:
        store = zarr.storage.ZipStore(path, mode="r") if path.is_file() else path
        group = zarr.open_group(store, mode="r")
        ends = _values(path, group["meta/episode_ends"])
        arrays = dict(_named(path, name, array) for name, array in group["data"].arrays())
        return Episodes(arrays, ends, fps)
    except DataError:
        raise
    except Exception as error:  # zarr and its codecs fail in whatever way damaged chunks lead them to
        raise DataError(
            f"{path} is no replay buffer that can be read ({type(error).__name__}: {error})"
        ) from error


def _named(path: Path, name: str, array: Any) -> tuple[str, np.ndarray]:
    name, values = _NAMES.get(name, name), _values(path, array)
    if is_image(name) and values.dtype.kind == "f":
        # The published PushT set keeps the bytes of its pictures as floats from 0 to 255.
        values = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return name, values


def _values(path: Path, array: Any) -> np.ndarray:
    """A zarr store chooses the codec of its chunks, and one of them is pickle."""
    codecs = str(array.metadata.to_dict()).lower()
    if array.dtype.kind not in "fiub" or "pickle" in codecs:
        raise DataError(f"{path} holds arrays that are no plain numbers; loading those could run code")
    return np.asarray(array[:])
