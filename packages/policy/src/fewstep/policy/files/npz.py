"""Demonstrations in one NumPy .npz file: arrays of all steps and "episode_ends"."""

import json
import os
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.core.files import atomic_path
from fewstep.policy.episodes import DataError, Episodes, check_ends

ENDS, ABOUT = "episode_ends", "about"
_NAMES = {"observation": "state", "next_observation": "next_state"}
# Entries of a vector that is taken for a fact of the whole set, such as the goal, and not for damaged steps.
_LARGEST_CONSTANT = 16
# What zipfile and NumPy are known to raise on damaged files; anything else would be a fault of ours.
_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError, OSError, EOFError, MemoryError),
    *(ValueError, KeyError, TypeError, AttributeError, SyntaxError, NotImplementedError),
)


def read_npz(path: str | os.PathLike[str]) -> Episodes:
    """Read demonstrations from a .npz file.

    Arrays as long as the last end become arrays of the steps, those as long as the number of episodes labels,
    and short vectors of another length, such as a goal, labels that are the same for every episode;
    "observation" is called "state" here and "next_observation" "next_state". Nothing in the file is executed.

    Args:
        path: of a file with "episode_ends" (the exclusive end of every episode) and further arrays.

    Returns:
        The demonstrations.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is damaged, holds Python objects, has no "episode_ends", or its arrays do not fit
            together.

    Reference: Chi et al. (2023), Diffusion Policy; its replay buffer has the same arrays.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file")
    content = _read(path)
    if ENDS not in content:
        raise DataError(f"{path} has no array {ENDS!r}; it has {', '.join(content) or 'none'}")
    try:
        return _episodes_from(content)
    except (ValueError, TypeError) as error:
        raise DataError(f"{path} holds no demonstrations that can be used: {error}") from error


def write_npz(path: str | os.PathLike[str], episodes: Episodes) -> None:
    """Write demonstrations as a compressed .npz file that `read_npz` gives back exactly.

    Args:
        path: of the file, which must end in .npz; its folder must exist.
        episodes: the demonstrations.

    Raises:
        ValueError: the path does not end in .npz, or an array's name means something else in such a file.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path must end in .npz, got {str(path)!r}")
    named = [*episodes.arrays, *episodes.labels]
    taken = {name for name in named if name in (ENDS, ABOUT, "file", *_NAMES) or named.count(name) > 1}
    if taken:
        raise ValueError(f"arrays cannot be stored under the names {sorted(taken)}; rename them")
    about = {"fps": episodes.fps, "tasks": list(episodes.tasks), "labels": list(episodes.labels)}
    arrays: dict[str, Any] = {
        **episodes.arrays,
        **episodes.labels,
        ENDS: episodes.ends,
        ABOUT: np.array(json.dumps(about)),
    }
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            raise DataError(f"{path} is a single array, not a .npz file with {ENDS!r}")
        with content:
            return {name: content[name] for name in content.files}
    except DataError:
        raise
    except _DAMAGE as error:
        what = "holds Python objects, which are not read" if "allow_pickle" in str(error) else "is damaged"
        raise DataError(f"{path} {what}, or is no .npz file ({type(error).__name__}: {error})") from error


def _episodes_from(content: dict[str, np.ndarray]) -> Episodes:
    ends = check_ends(content.pop(ENDS))
    about = _about(content.pop(ABOUT, None))
    steps = int(ends[-1])
    arrays, labels = {}, {}
    for name, array in content.items():
        length = len(array) if array.ndim else 0
        if length == len(ends) and (name in about["labels"] or length != steps):
            labels[name] = array
        elif length != steps and array.ndim < 2 and array.size <= _LARGEST_CONSTANT:
            labels[name] = np.broadcast_to(array, (len(ends), *array.shape)).copy()
        else:
            arrays[_NAMES.get(name, name)] = array
    return Episodes(arrays, ends, about["fps"], tuple(about["tasks"]), labels)


def _about(stored: np.ndarray | None) -> dict[str, Any]:
    """Return the facts that `write_npz` adds; files of others have none."""
    about: dict[str, Any] = {"fps": None, "tasks": [], "labels": []}
    if stored is None:
        return about
    if stored.ndim or stored.dtype.kind != "U":
        raise ValueError(f"{ABOUT!r} must be a text, got {stored.dtype} {stored.shape}")
    found = json.loads(str(stored))
    if not isinstance(found, dict) or not set(about) <= set(found):
        raise ValueError(f"{ABOUT!r} must state {sorted(about)}, got {found!r}")
    for key in ("tasks", "labels"):
        if not isinstance(found[key], list) or not all(isinstance(text, str) for text in found[key]):
            raise ValueError(f"{ABOUT!r} must state {key} as texts, got {found[key]!r}")
    if found["fps"] is not None and not isinstance(found["fps"], int | float):
        raise ValueError(f"{ABOUT!r} must state fps as a number, got {found['fps']!r}")
    return found
