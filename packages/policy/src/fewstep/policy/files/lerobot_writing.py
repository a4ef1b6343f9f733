"""Writing demonstrations as a LeRobotDataset v3.0 folder without the lerobot package."""

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fewstep.policy.episodes import Episodes
from fewstep.policy.files.lerobot_layout import (
    DATA_PATH,
    EPISODES_PATH,
    INDEX_FEATURES,
    INFO,
    STATS,
    TASKS,
    VIDEO_PATH,
)
from fewstep.policy.files.lerobot_schema import (
    CHUNKS_SIZE,
    data_schema,
    describe_features,
    describe_set,
    episodes_table,
    step_column,
    tasks_table,
)
from fewstep.policy.files.lerobot_stats import Stats, joined, stats_of_images, stats_of_numbers
from fewstep.policy.files.videos import VideoWriter
from fewstep.policy.names import is_image, to_lerobot_name

_FEATURE_NAME = re.compile(r"[A-Za-z0-9_][\w.\-]*")


@dataclass(frozen=True)
class LeRobotOptions:
    """How a folder is written.

    Args:
        robot_type: free text for meta/info.json.
        task: instruction of demonstrations that have none.
        names: of the entries of a feature, by our name, such as {"action": ("x", "y")}.
        codec: of the videos, "libsvtav1" (AV1, as LeRobot) or "libx264"; both lose some detail.
        data_file_mb: size after which a new data file is begun.
        video_file_mb: size after which a new video file is begun.
    """

    robot_type: str | None = None
    task: str = "no instruction"
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    codec: str = "libsvtav1"
    data_file_mb: int = 100
    video_file_mb: int = 200

    def __post_init__(self) -> None:
        if self.codec not in ("libsvtav1", "libx264"):
            raise ValueError(f"codec must be libsvtav1 or libx264, got {self.codec!r}")
        if self.data_file_mb < 1 or self.video_file_mb < 1:
            raise ValueError("data_file_mb and video_file_mb must be at least 1")


def write_lerobot(
    folder: str | os.PathLike[str], episodes: Episodes, options: LeRobotOptions | None = None
) -> None:
    """Write demonstrations as a LeRobotDataset v3.0 folder, whole or not at all.

    Images become videos; labels of episodes have no place in the format and are left out. The quantiles in
    the statistics are exact, where the official writer estimates them.

    Args:
        folder: that is made, with those above it; it must not exist or be empty.
        episodes: the demonstrations, whose `fps` must be known.
        options: how it is written.

    Raises:
        FileExistsError: the folder is not empty.
        ValueError: `fps` is not known, a name has no place in the format, or images are not uint8 of even
            height and width with three channels.

    Reference: Hugging Face LeRobot, LeRobotDataset format v3.0.
    """
    options = options or LeRobotOptions()
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} is there already; nothing is written over it")
    _check(episodes)
    with _atomic_folder(folder) as temporary:
        _Writing(temporary, episodes, options).run()


class _Writing:
    """One folder on its way: what all the files need to know."""

    def __init__(self, folder: Path, episodes: Episodes, options: LeRobotOptions) -> None:
        assert episodes.fps is not None
        self.folder, self.episodes, self.options, self.fps = folder, episodes, options, episodes.fps
        self.ours = {to_lerobot_name(name): name for name in episodes.arrays if name != "task_index"}
        arrays = {name: episodes.arrays[ours] for name, ours in self.ours.items()}
        self.images = {name: array for name, array in arrays.items() if is_image(self.ours[name])}
        self.numbers = {name: array for name, array in arrays.items() if name not in self.images}
        self.tasks = episodes.tasks or (options.task,)
        self.features = describe_features(
            {name: (array.dtype, array.shape[1:]) for name, array in self.numbers.items()},
            {name: array.shape[1:3] for name, array in self.images.items()},
            list(self.ours),
            self.fps,
            options.codec,
        )
        for name, entries in options.names.items():
            self._name_entries(name, list(entries))

    def run(self) -> None:
        steps = self._steps()
        rows = [self._row(number, steps) for number in range(len(self.episodes))]
        self._write_data(steps, rows)
        for name, frames in self.images.items():
            self._write_video(name, frames, rows)
        stats = [self._stats(steps, number) for number in range(len(self.episodes))]
        _write_parquet(self._path(EPISODES_PATH, 0, 0), episodes_table(rows, stats))
        _write_parquet(self.folder / TASKS, tasks_table(self.tasks))
        _write_json(self.folder / STATS, self._all_stats(steps, stats))
        counts = {"episodes": len(rows), "frames": self.episodes.steps, "tasks": len(self.tasks)}
        sizes = (self.options.data_file_mb, self.options.video_file_mb)
        _write_json(
            self.folder / INFO, describe_set(self.features, counts, self.fps, self.options.robot_type, sizes)
        )

    def _name_entries(self, ours: str, entries: list[str]) -> None:
        feature = self.features.get(to_lerobot_name(ours))
        if feature is None or feature["dtype"] == "video" or feature["shape"] != [len(entries)]:
            raise ValueError(
                f"names must name every entry of a vector that is recorded, got {ours!r}: {entries}"
            )
        feature["names"] = entries

    def _steps(self) -> dict[str, np.ndarray]:
        """Columns of all steps; timestamps are in float64 here, so that their statistics are exact."""
        lengths = self.episodes.lengths
        frame = np.arange(self.episodes.steps) - np.repeat(self.episodes.starts, lengths)
        tasks = self.episodes.arrays.get("task_index", np.zeros(self.episodes.steps, np.int64))
        index = {
            "timestamp": frame / self.fps,
            "frame_index": frame,
            "episode_index": np.repeat(np.arange(len(lengths)), lengths),
            "index": np.arange(self.episodes.steps),
            "task_index": tasks.astype(np.int64),
        }
        return {**self.numbers, **index}

    def _row(self, number: int, steps: dict[str, np.ndarray]) -> dict[str, Any]:
        first, end = int(self.episodes.starts[number]), int(self.episodes.ends[number])
        return {
            "episode_index": number,
            "tasks": [self.tasks[i] for i in np.unique(steps["task_index"][first:end])],
            "length": end - first,
            "data/chunk_index": 0,
            "data/file_index": 0,
            "dataset_from_index": first,
            "dataset_to_index": end,
        }

    def _write_data(self, steps: dict[str, np.ndarray], rows: list[dict[str, Any]]) -> None:
        schema = data_schema(self.features)
        place, writer, size = -1, None, 0
        try:
            for row in rows:
                part = slice(row["dataset_from_index"], row["dataset_to_index"])
                columns = [
                    step_column(
                        steps[field.name][part].astype(self.features[field.name]["dtype"]), field.type
                    )
                    for field in schema
                ]
                table = pa.table(columns, schema=schema)
                if writer is None or size + table.nbytes > self.options.data_file_mb << 20:
                    if writer is not None:
                        writer.close()
                    place, size = place + 1, 0
                    writer = pq.ParquetWriter(self._path(DATA_PATH, *divmod(place, CHUNKS_SIZE)), schema)
                # One row group per episode, so that one of them can be read without the others.
                writer.write_table(table, row_group_size=table.num_rows)
                size += table.nbytes
                row["data/chunk_index"], row["data/file_index"] = divmod(place, CHUNKS_SIZE)
        finally:
            if writer is not None:
                writer.close()

    def _write_video(self, name: str, frames: np.ndarray, rows: list[dict[str, Any]]) -> None:
        height, width = frames.shape[1:3]
        place, writer = -1, None
        try:
            for row in rows:
                if writer is None or writer.size >= self.options.video_file_mb << 20:
                    if writer is not None:
                        writer.close()
                    place += 1
                    path = self._path(VIDEO_PATH, *divmod(place, CHUNKS_SIZE), video_key=name)
                    writer = VideoWriter(path, self.fps, height, width, self.options.codec)
                first = writer.count
                for frame in frames[row["dataset_from_index"] : row["dataset_to_index"]]:
                    writer.write(frame)
                column = f"videos/{name}/"
                row[column + "chunk_index"], row[column + "file_index"] = divmod(place, CHUNKS_SIZE)
                row[column + "from_timestamp"] = first / self.fps
                row[column + "to_timestamp"] = writer.count / self.fps
        finally:
            if writer is not None:
                writer.close()

    def _stats(self, steps: dict[str, np.ndarray], number: int) -> dict[str, Stats]:
        part = slice(int(self.episodes.starts[number]), int(self.episodes.ends[number]))
        return {
            name: stats_of_images(self.images[name][part])
            if name in self.images
            else stats_of_numbers(steps[name][part])
            for name in self.features
        }

    def _all_stats(self, steps: dict[str, np.ndarray], parts: list[dict[str, Stats]]) -> dict[str, Any]:
        whole = {
            name: joined([part[name] for part in parts])
            if name in self.images
            else stats_of_numbers(steps[name])
            for name in self.features
        }
        return {name: {key: value.tolist() for key, value in s.items()} for name, s in whole.items()}

    def _path(self, template: str, chunk: int, file: int, video_key: str = "") -> Path:
        path = self.folder / template.format(chunk_index=chunk, file_index=file, video_key=video_key)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def _check(episodes: Episodes) -> None:
    if episodes.fps is None:
        raise ValueError("fps of the episodes must be known; set it with dataclasses.replace")
    names = [to_lerobot_name(name) for name in episodes.arrays]
    for name in names:
        if not _FEATURE_NAME.fullmatch(name) or ".." in name or names.count(name) > 1:
            raise ValueError(
                f"array {name!r} cannot be a feature; rename it to letters, digits, '_', '.', '-'"
            )
        if name in INDEX_FEATURES and name != "task_index":
            raise ValueError(f"array {name!r} follows from the order of the steps; leave it out")
    for name, array in episodes.arrays.items():
        picture = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3
        if is_image(name) and not (picture and array.shape[1] % 2 == array.shape[2] % 2 == 0):
            raise ValueError(
                f"images {name!r} must be uint8 (steps, height, width, 3) with even height and width, "
                f"got {array.dtype} {array.shape}"
            )


@contextmanager
def _atomic_folder(target: Path) -> Iterator[Path]:
    """Give a new folder beside the target to write into; it becomes the target when the block ends well."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.part")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_parquet(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=4), encoding="utf-8")
