"""Recording demonstrations, one file per episode, so that nothing that was recorded is lost."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fewstep.core.files import atomic_path
from fewstep.policy.episodes import DataError, Episodes, from_episodes
from fewstep.policy.files.lerobot_writing import LeRobotOptions, write_lerobot
from fewstep.policy.files.npz import read_npz, write_npz
from fewstep.policy.names import is_image

_ABOUT = "recording.json"
_ENDED, _UNFINISHED = "episode_{:06d}.npz", "unfinished_{:06d}.npz"


class Recorder:
    """Takes down the steps of demonstrations and writes every episode to its own file as soon as it ends.

    A folder may be opened again to go on recording. Used in a `with` block, steps of an episode that was
    neither ended nor discarded are kept in a file of their own (`unfinished_….npz`), whatever went wrong.

    Args:
        folder: of the episodes; made when it is missing.
        fps: steps per second.

    Raises:
        ValueError: fps is not positive, or the folder was begun with another one.
        DataError: the folder's recording.json is damaged.

    Example:
        >>> import tempfile
        >>> with Recorder(Path(tempfile.mkdtemp()) / "demos", fps=10) as recorder:
        ...     for step in range(3):
        ...         recorder.add({"state": np.ones(2)}, action=np.zeros(2))
        ...     _ = recorder.end_episode(task="push")
        ...     len(recorder), recorder.episodes().steps
        (1, 3)
    """

    def __init__(self, folder: str | os.PathLike[str], fps: float) -> None:
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
            raise ValueError(f"fps must be positive and finite, got {fps!r}")
        self.folder, self.fps = Path(folder), float(fps)
        self._steps: list[dict[str, np.ndarray]] = []
        self._form: dict[str, tuple[tuple[int, ...], np.dtype]] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_fps()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of episodes that were ended."""
        return len(self._files())

    @property
    def pending(self) -> int:
        """Steps of the current episode."""
        return len(self._steps)

    def add(
        self,
        observation: Mapping[str, Any],
        action: Any,
        *,
        reward: float | None = None,
        done: bool | None = None,
    ) -> None:
        """Take down one step: what was seen, what was done then, and what that gave.

        Args:
            observation: arrays by name; images as uint8 (height, width, channels) or as floats in [0, 1]
                (channels, height, width), which are stored as bytes.
            action: (Da,).
            reward: of the action.
            done: whether the episode ended with it.

        Raises:
            ValueError: a value is not finite, or another name, shape or type than in the steps before.
            TypeError: a value is no number.
        """
        step = {
            name: _as_bytes(name, value) if is_image(name) else _copied(name, value)
            for name, value in observation.items()
        }
        extra = {"action": action, "reward": reward, "done": done}
        clash = sorted(set(extra) & set(step))
        if clash:
            raise ValueError(f"observation must not hold {clash}; give them as arguments")
        step.update({name: _copied(name, value) for name, value in extra.items() if value is not None})
        form = {name: (value.shape, value.dtype) for name, value in step.items()}
        if self._form is not None and form != self._form:
            raise ValueError(f"a step must have the arrays {_told(self._form)}, got {_told(form)}")
        self._form = form
        self._steps.append(step)

    def end_episode(self, task: str = "", success: bool | None = None) -> Path:
        """Write the current episode and begin a new one.

        Args:
            task: instruction that was followed.
            success: whether it was reached, kept as a label.

        Returns:
            The file of the episode.

        Raises:
            ValueError: it has no step.
        """
        if not self._steps:
            raise ValueError("the episode has no step; add some or discard it")
        path = self._write(_ENDED, task, success)
        self._steps = []
        return path

    def discard_episode(self) -> int:
        """Forget the current episode; return how many steps it had."""
        count, self._steps = len(self._steps), []
        if not len(self):
            self._form = None
        return count

    def close(self) -> None:
        """Keep the steps of an episode that was neither ended nor discarded in a file of their own."""
        if self._steps:
            self._write(_UNFINISHED, "", None)
            self._steps = []

    def episodes(self) -> Episodes:
        """All episodes that were ended, in the order of recording.

        Raises:
            ValueError: there is none, or they differ in their arrays.
            DataError: a file is damaged; the message names it, and the others are whole.
        """
        files = self._files()
        if not files:
            raise ValueError(f"{self.folder} holds no episode that was ended")
        return _joined([read_npz(file) for file in files], self.fps)

    def save_npz(self, path: str | os.PathLike[str]) -> None:
        """Write all episodes to one .npz file."""
        write_npz(path, self.episodes())

    def save_lerobot(self, folder: str | os.PathLike[str], options: LeRobotOptions | None = None) -> None:
        """Write all episodes as a LeRobotDataset v3.0 folder."""
        write_lerobot(folder, self.episodes(), options)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("episode_*.npz"))

    def _write(self, template: str, task: str, success: bool | None) -> Path:
        arrays = {name: np.stack([step[name] for step in self._steps]) for name in self._steps[0]}
        episode = from_episodes([arrays], self.fps, (task,) if task else ())
        if success is not None:
            episode = replace(episode, labels={"successful": np.array([success])})
        numbers = [int(file.stem.rpartition("_")[2]) for file in self.folder.glob("*_*.npz")]
        path = self.folder / template.format(max(numbers, default=-1) + 1)
        write_npz(path, episode)
        return path

    def _check_fps(self) -> None:
        path = self.folder / _ABOUT
        if not path.exists():
            with atomic_path(path) as temporary:
                temporary.write_text(json.dumps({"fps": self.fps}), encoding="utf-8")
            return
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))["fps"]
        except (ValueError, OSError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error})") from error
        if begun != self.fps:
            raise ValueError(f"fps must be {begun}, with which {self.folder} was begun, got {self.fps}")


def _joined(parts: list[Episodes], fps: float) -> Episodes:
    """Episodes of single files; labels that not all of them have are left out."""
    texts = [part.tasks[0] if part.tasks else "" for part in parts]
    tasks = tuple(dict.fromkeys(texts)) if any(texts) else ()
    episodes = [dict(part.arrays) for part in parts]
    if len(tasks) > 1:
        for arrays, part, text in zip(episodes, parts, texts, strict=True):
            arrays["task_index"] = np.full(part.steps, tasks.index(text))
    common = set.intersection(*(set(part.labels) for part in parts))
    labels = {name: np.concatenate([part.labels[name] for part in parts]) for name in sorted(common)}
    return replace(from_episodes(episodes, fps, tasks), labels=labels)


def _copied(name: str, value: Any) -> np.ndarray:
    """A copy, as environments write the next observation into the same memory."""
    array = np.array(value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name!r} must be numbers, got {array.dtype}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name!r} must be finite, got {array.reshape(-1)[:8].tolist()}")
    return array


def _as_bytes(name: str, value: Any) -> UInt8[np.ndarray, "height width channels"]:
    array = _copied(name, value)
    if array.ndim != 3:
        raise ValueError(f"{name!r} must have three dimensions as an image, got {array.shape}")
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f" or array.min() < 0 or array.max() > 1:
        raise ValueError(f"{name!r} must be uint8, or floats in [0, 1], got {array.dtype}")
    return np.ascontiguousarray(np.rint(np.moveaxis(array, 0, -1) * 255).astype(np.uint8))


def _told(form: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> str:
    return ", ".join(f"{name} {dtype} {shape}" for name, (shape, dtype) in sorted(form.items()))
