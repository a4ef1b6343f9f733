"""Demonstrations in memory: the steps of all episodes one after the other, and where each episode ends."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Int


class DataError(ValueError):
    """A file or folder of demonstrations cannot be read."""


@dataclass(frozen=True, eq=False)
class Episodes:
    """Demonstrations: arrays of all steps, one episode after the other, and their exclusive ends.

    Episode i is `arrays[name][ends[i − 1] : ends[i]]`, with ends[−1] = 0.

    Args:
        arrays: by name, each (steps, …) of numbers or booleans. Usual names: "state", "environment_state",
            "image" or "image.<camera>" (uint8, height × width × channels), "points", "action", "reward",
            "done", "success", and "task_index" when there are several tasks.
        ends: (episodes,) strictly increasing; the last one is the number of steps.
        fps: steps per second (None: not known).
        tasks: distinct instructions, which `arrays["task_index"]` counts (without that array: the first).
        labels: by name, one value per episode (episodes, …), such as whether it is for validation.

    Raises:
        ValueError: there is no episode, the ends do not increase, an array has another number of steps,
            or holds NaN or infinity.
        TypeError: an array holds neither numbers nor booleans, or the ends are no integers.

    Example:
        >>> two = Episodes({"action": np.zeros((5, 2), np.float32)}, np.array([2, 5]))
        >>> len(two), two.steps, two.episode(1)["action"].shape
        (2, 5, (3, 2))

    Reference: Chi et al. (2023), Diffusion Policy; this is the layout of its replay buffer.
    """

    arrays: dict[str, np.ndarray]
    ends: np.ndarray
    fps: float | None = None
    tasks: tuple[str, ...] = ()
    labels: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ends = check_ends(self.ends)
        if not self.arrays:
            raise ValueError("arrays must hold at least one array, got none")
        arrays = {name: _checked(name, array, int(ends[-1]), "steps") for name, array in self.arrays.items()}
        labels = {name: _checked(name, array, len(ends), "episodes") for name, array in self.labels.items()}
        if self.fps is not None and not (np.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"fps must be positive and finite, got {self.fps!r}")
        object.__setattr__(self, "arrays", arrays)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "ends", ends)
        object.__setattr__(self, "tasks", tuple(self.tasks))
        self._check_tasks()

    def _check_tasks(self) -> None:
        index = self.arrays.get("task_index")
        if index is None or not self.tasks:
            return
        if not np.issubdtype(index.dtype, np.integer) or index.ndim != 1:
            raise TypeError(f"'task_index' must be (steps,) integers, got {index.dtype} {index.shape}")
        if index.min() < 0 or index.max() >= len(self.tasks):
            raise ValueError(
                f"'task_index' must lie in 0..{len(self.tasks) - 1}, one of the {len(self.tasks)} tasks, "
                f"got {index.min()}..{index.max()}"
            )

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def steps(self) -> int:
        """Number of steps of all episodes."""
        return int(self.ends[-1])

    @property
    def starts(self) -> Int[np.ndarray, " episodes"]:
        """First step of every episode."""
        return np.concatenate([np.zeros(1, np.int64), self.ends[:-1]])

    @property
    def lengths(self) -> Int[np.ndarray, " episodes"]:
        """Number of steps of every episode."""
        return self.ends - self.starts

    def episode(self, index: int) -> dict[str, np.ndarray]:
        """Arrays of one episode, as views.

        Raises:
            IndexError: there is no such episode.
        """
        index = self._position(index)
        first, end = int(self.starts[index]), int(self.ends[index])
        return {name: array[first:end] for name, array in self.arrays.items()}

    def select(self, indices: Iterable[int] | np.ndarray) -> "Episodes":
        """Those episodes, in that order, copied.

        Args:
            indices: of episodes, or one boolean per episode.

        Raises:
            ValueError: none is chosen, or there are not as many booleans as episodes.
            IndexError: there is no such episode.
        """
        chosen = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
        if chosen.dtype == bool:
            if chosen.shape != (len(self),):
                raise ValueError(f"indices must be {len(self)} booleans, got shape {chosen.shape}")
            chosen = np.flatnonzero(chosen)
        if chosen.ndim != 1 or not len(chosen):
            raise ValueError(f"indices must name at least one episode, got {chosen.tolist()}")
        chosen = np.array([self._position(index) for index in chosen.tolist()])
        bounds = list(zip(self.starts[chosen].tolist(), self.ends[chosen].tolist(), strict=True))
        steps = np.concatenate([np.arange(first, end) for first, end in bounds])
        arrays = {name: array[steps] for name, array in self.arrays.items()}
        labels = {name: array[chosen] for name, array in self.labels.items()}
        return Episodes(arrays, np.cumsum(self.lengths[chosen]), self.fps, self.tasks, labels)

    def with_array(self, name: str, values: np.ndarray) -> "Episodes":
        """The same episodes with one array more, or another one under that name."""
        return replace(self, arrays={**self.arrays, name: values})

    def without(self, *names: str) -> "Episodes":
        """The same episodes without those arrays; names that are absent do not matter."""
        kept = {name: array for name, array in self.arrays.items() if name not in names}
        return replace(self, arrays=kept)

    def _position(self, index: int) -> int:
        if isinstance(index, bool | np.bool_) or not isinstance(index, int | np.integer):
            raise TypeError(f"an episode's index must be an integer, got {index!r}")
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are episodes 0..{len(self) - 1}, got {index}")
        return int(index) % len(self)


def from_episodes(
    episodes: Sequence[Mapping[str, np.ndarray]], fps: float | None = None, tasks: tuple[str, ...] = ()
) -> Episodes:
    """Join episodes that are given one by one.

    Args:
        episodes: each with the same names and each array (its steps, …).
        fps: steps per second.
        tasks: see `Episodes`.

    Raises:
        ValueError: there is none, or they differ in their names or shapes.

    Example:
        >>> steps = {"action": np.zeros((3, 2)), "state": np.zeros((3, 4))}
        >>> from_episodes([steps, steps]).ends.tolist()
        [3, 6]
    """
    if not episodes:
        raise ValueError("episodes must hold at least one episode, got none")
    names = list(episodes[0])
    for number, episode in enumerate(episodes):
        if set(episode) != set(names):
            raise ValueError(f"episode {number} has the arrays {sorted(episode)}, the first {sorted(names)}")
        if len({len(array) for array in episode.values()}) > 1:
            sizes = {name: len(array) for name, array in episode.items()}
            raise ValueError(f"the arrays of episode {number} differ in their number of steps: {sizes}")
        for name in names:
            _check_alike(name, number, episode[name], episodes[0][name])
    arrays = {name: np.concatenate([episode[name] for episode in episodes]) for name in names}
    return Episodes(arrays, np.cumsum([len(episode[names[0]]) for episode in episodes]), fps, tasks)


def check_ends(ends: np.ndarray) -> Int[np.ndarray, " episodes"]:
    """Return exclusive ends of episodes as int64, after checking that they increase from 1 or more."""
    ends = np.asarray(ends)
    if ends.ndim != 1 or not len(ends):
        raise ValueError(f"ends must name at least one episode's end, got shape {ends.shape}")
    if not np.issubdtype(ends.dtype, np.integer):
        raise TypeError(f"ends must be integers, got {ends.dtype}")
    ends = ends.astype(np.int64)
    falls = np.flatnonzero(np.diff(ends, prepend=0) <= 0)
    if len(falls):
        first = int(falls[0])
        before = int(ends[first - 1]) if first else 0
        raise ValueError(
            f"ends must increase from above 0, as every episode has a step; ends[{first}] = {ends[first]} "
            f"follows {before}"
        )
    return ends


def _checked(name: str, array: np.ndarray, count: int, what: str) -> np.ndarray:
    """The array in this machine's byte order, as torch knows no other."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of an array must be text, got {name!r}")
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        kind = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise TypeError(f"array {name!r} must be a NumPy array of numbers or booleans, got {kind}")
    if array.ndim < 1 or len(array) != count:
        raise ValueError(f"array {name!r} must have {count} {what}, as the ends say, got shape {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        first = int(np.argwhere(~np.isfinite(array))[0][0])
        raise ValueError(f"array {name!r} must be finite, but it is not at index {first}")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _check_alike(name: str, number: int, array: np.ndarray, first: np.ndarray) -> None:
    if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
        raise ValueError(
            f"array {name!r} of episode {number} is {array.dtype} {array.shape[1:]} a step, "
            f"in the first episode {first.dtype} {first.shape[1:]}"
        )
