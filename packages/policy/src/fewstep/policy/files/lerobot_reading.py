"""Reading a LeRobotDataset v3.0 folder without the lerobot package."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float, UInt8
from PIL import Image

from fewstep.policy.episodes import DataError, Episodes
from fewstep.policy.files.columns import read_table, to_numpy
from fewstep.policy.files.lerobot_layout import (
    INDEX_FEATURES,
    TASK_COLUMN,
    TASKS,
    Feature,
    Info,
    file_at,
    read_info,
)
from fewstep.policy.files.videos import read_frames
from fewstep.policy.names import from_lerobot_name
from fewstep.policy.windows import OBSERVATIONS

Rows = dict[str, np.ndarray]


def read_lerobot(
    folder: str | os.PathLike[str],
    *,
    episodes: Sequence[int] | None = None,
    cameras: Sequence[str] | None = None,
) -> Episodes:
    """Read a LeRobotDataset v3.0 folder.

    Features get our names: "observation.state" is "state", "observation.images.top" is "image.top",
    "next.reward" is "reward"; those of one number become (steps,), except observations and actions. A frame
    of a video is found at the episode's `from_timestamp` + the step's `timestamp`. Texts are left out.

    Args:
        folder: with meta, data and videos.
        episodes: numbers of the episodes that are wanted, in this order (None: all).
        cameras: our names of the cameras that are decoded (None: all; (): none, which is fast).

    Returns:
        The demonstrations; images are uint8, height × width × channels.

    Raises:
        FileNotFoundError: a file is missing.
        DataError: a file is damaged, of another version, does not fit the others, or names a path outside
            the folder.
        ValueError: there is no such episode or camera.

    Reference: Hugging Face LeRobot, LeRobotDataset format v3.0.
    """
    folder = Path(folder)
    info = read_info(folder)
    wanted = _wanted_features(info, cameras)
    rows = _read_episode_rows(folder, [f.name for f in wanted if f.dtype == "video"])
    chosen = _chosen(episodes, rows["episode_index"])
    steps = _read_steps(folder, info, [f for f in wanted if f.dtype != "video"], rows, chosen)
    arrays = {}
    for feature in wanted:
        name = from_lerobot_name(feature.name)
        if feature.dtype == "video":
            arrays[name] = _read_video(folder, info, feature, rows, chosen, [s["timestamp"] for s in steps])
        else:
            values = np.concatenate([episode[feature.name] for episode in steps])
            keeps_width = name in (*OBSERVATIONS, "action") or feature.shape != (1,)
            arrays[name] = values if keeps_width else values.reshape(-1)
    tasks = _read_tasks(folder)
    if len(tasks) > 1:
        arrays["task_index"] = np.concatenate([episode["task_index"] for episode in steps])
    try:
        return Episodes(arrays, np.cumsum(rows["length"][chosen]), info.fps, tasks)
    except (ValueError, TypeError) as error:
        raise DataError(f"{folder} holds no demonstrations that can be used: {error}") from error


def _wanted_features(info: Info, cameras: Sequence[str] | None) -> list[Feature]:
    known = {from_lerobot_name(f.name): f for f in info.features.values() if f.dtype in ("video", "image")}
    unknown = [name for name in cameras or () if name not in known]
    if unknown:
        raise ValueError(f"cameras must be of {sorted(known)}, got {unknown}")
    pictures = [known[name].name for name in (known if cameras is None else cameras)]
    return [
        feature
        for name, feature in info.features.items()
        if name not in INDEX_FEATURES and (feature.is_numeric or name in pictures)
    ]


def _read_episode_rows(folder: Path, videos: list[str]) -> Rows:
    """Columns of meta/episodes, one row per episode, by rising number."""
    files = sorted((folder / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{folder} has no meta/episodes/chunk-*/file-*.parquet")
    integers = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    integers += [f"videos/{key}/{column}" for key in videos for column in ("chunk_index", "file_index")]
    seconds = [f"videos/{key}/from_timestamp" for key in videos]
    tables = [(file, read_table(file, integers + seconds)) for file in files]
    rows = {
        column: np.concatenate([to_numpy(file, column, table[column], ()) for file, table in tables])
        for column in integers + seconds
    }
    for column in integers:
        if rows[column].dtype.kind not in "iu" or (rows[column] < 0).any():
            raise DataError(f"column {column!r} in meta/episodes of {folder} must be counts from 0 on")
    for column in seconds:
        if not np.isfinite(rows[column]).all():
            raise DataError(f"column {column!r} in meta/episodes of {folder} must be finite")
    order = np.argsort(rows["episode_index"], kind="stable")
    rows = {column: values[order] for column, values in rows.items()}
    numbers = rows["episode_index"]
    if not len(numbers):
        raise DataError(f"{folder} holds no episode")
    if (np.diff(numbers.astype(np.int64)) == 0).any():
        raise DataError(f"meta/episodes of {folder} lists an episode twice")
    return rows


def _chosen(episodes: Sequence[int] | None, numbers: np.ndarray) -> list[int]:
    """Positions among the rows of the episodes with these numbers."""
    positions = {int(number): position for position, number in enumerate(numbers)}
    if episodes is None:
        return list(positions.values())
    absent = [number for number in episodes if number not in positions]
    if absent or not len(episodes):
        raise ValueError(f"episodes must be of {min(positions)}..{max(positions)}, got {absent or 'none'}")
    return [positions[number] for number in episodes]


def _read_steps(
    folder: Path, info: Info, features: list[Feature], rows: Rows, chosen: list[int]
) -> list[dict[str, np.ndarray]]:
    """Numbers and single pictures of every chosen episode, with its timestamps and task indices."""
    steps: dict[int, dict[str, np.ndarray]] = {}
    places = {(int(rows["data/chunk_index"][i]), int(rows["data/file_index"][i])) for i in chosen}
    index = [Feature(name, "", ()) for name in INDEX_FEATURES]
    for chunk, file in sorted(places):
        path = file_at(folder, info.data_path, chunk, file)
        table = read_table(path, [feature.name for feature in [*features, *index]])
        numbers = to_numpy(path, "episode_index", table["episode_index"], ())
        starts = np.flatnonzero(np.diff(numbers, prepend=np.inf))
        start_of = dict(zip(numbers[starts].tolist(), starts.tolist(), strict=True))
        for i in chosen:
            if (rows["data/chunk_index"][i], rows["data/file_index"][i]) == (chunk, file):
                part = _rows_of(path, table, start_of, int(rows["episode_index"][i]), int(rows["length"][i]))
                steps[i] = {f.name: _values(path, f, part[f.name]) for f in [*features, *index]}
                _check_order(path, steps[i], int(rows["episode_index"][i]))
    return [steps[i] for i in chosen]


def _rows_of(path: Path, table: pa.Table, start_of: dict[Any, int], number: int, length: int) -> pa.Table:
    part = table.slice(start_of.get(number, table.num_rows), length)
    if part.num_rows != length or length < 1:
        raise DataError(
            f"{path} holds {part.num_rows} steps of episode {number}, meta/episodes says {length}"
        )
    return part


def _check_order(path: Path, steps: dict[str, np.ndarray], number: int) -> None:
    own = (steps["episode_index"] == number).all()
    if not own or not np.array_equal(steps["frame_index"], np.arange(len(steps["frame_index"]))):
        raise DataError(f"the steps of episode {number} in {path} are not one after the other")
    if (np.diff(steps["timestamp"]) <= 0).any() or not np.isfinite(steps["timestamp"]).all():
        raise DataError(f"the timestamps of episode {number} in {path} must increase")


def _values(path: Path, feature: Feature, column: pa.ChunkedArray) -> np.ndarray:
    if feature.dtype == "image":
        return np.stack([_picture(path, feature, cell) for cell in column.to_pylist()])
    return to_numpy(path, feature.name, column, feature.shape)


def _picture(path: Path, feature: Feature, cell: Any) -> UInt8[np.ndarray, "height width channels"]:
    """Decode a picture that is stored in the table itself."""
    if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
        raise DataError(f"column {feature.name!r} of {path} must hold the bytes of pictures")
    height, width, channels = _size(feature)
    try:
        with Image.open(io.BytesIO(cell["bytes"])) as picture:
            if picture.size != (width, height):
                raise DataError(
                    f"pictures of {feature.name!r} in {path} are {picture.size[1]} × {picture.size[0]}, "
                    f"meta/info.json says {height} × {width}"
                )
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"a picture of {feature.name!r} in {path} cannot be read ({error})") from error
    return pixels.reshape(height, width, -1)


def _read_video(
    folder: Path, info: Info, feature: Feature, rows: Rows, chosen: list[int], timestamps: list[np.ndarray]
) -> UInt8[np.ndarray, "steps height width channels"]:
    if info.video_path is None:
        raise DataError(f"{folder} has the video {feature.name!r}, but meta/info.json has no video_path")
    frames = []
    for i, seconds in zip(chosen, timestamps, strict=True):
        column = f"videos/{feature.name}/"
        chunk, file = int(rows[column + "chunk_index"][i]), int(rows[column + "file_index"][i])
        path = file_at(folder, info.video_path, chunk, file, feature.name)
        times: Float[np.ndarray, " frames"] = rows[column + "from_timestamp"][i] + seconds.astype(np.float64)
        frames.append(read_frames(path, times, info.fps, _size(feature)))
    return np.concatenate(frames)


def _size(feature: Feature) -> tuple[int, int, int]:
    """Height, width and channels; data sets of robots state them in either order."""
    first, second, third = feature.shape
    return (second, third, first) if first in (1, 3) and third not in (1, 3) else (first, second, third)


def _read_tasks(folder: Path) -> tuple[str, ...]:
    path = folder / TASKS
    table = read_table(path)
    texts = [name for name in (TASK_COLUMN, "task") if name in table.column_names]
    if not texts or "task_index" not in table.column_names:
        raise DataError(f"{path} must have the columns task_index and {TASK_COLUMN}")
    numbers = to_numpy(path, "task_index", table["task_index"], ())
    words = table[texts[0]].to_pylist()
    if sorted(numbers.tolist()) != list(range(len(words))) or not all(isinstance(w, str) for w in words):
        raise DataError(f"{path} must number its texts from 0 on")
    return tuple(words[i] for i in np.argsort(numbers))
