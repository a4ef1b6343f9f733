"""The layout of a LeRobotDataset v3.0 folder: meta/info.json, its features and the paths it names."""

import json
import re
import string
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fewstep.policy.episodes import DataError

INFO, STATS, TASKS = "meta/info.json", "meta/stats.json", "meta/tasks.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
TASK_COLUMN = "__index_level_0__"
# Features that every folder has and that follow from the order of the steps.
INDEX_FEATURES = ("timestamp", "frame_index", "episode_index", "index", "task_index")
_FIELDS = ("chunk_index", "file_index", "video_key")
_NUMBER_SPEC = re.compile(r"(0?\d)?d?")
_PATH = re.compile(r"[\w.\-/ ]+")
_NUMBERS = ("float16", "float32", "float64", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16")


@dataclass(frozen=True)
class Feature:
    """One feature of a data set.

    Args:
        name: LeRobot's, such as "observation.state".
        dtype: of numbers, such as "float32"; "video" and "image" for pictures; others are not read.
        shape: of one step; of pictures (height, width, channels) or (channels, height, width).
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def is_numeric(self) -> bool:
        """Whether it is a column of numbers."""
        return self.dtype in _NUMBERS


@dataclass(frozen=True)
class Info:
    """What meta/info.json says, checked.

    Args:
        fps: steps per second.
        features: by LeRobot's name.
        data_path: template of the parquet files.
        video_path: template of the videos; None without videos.
    """

    fps: float
    features: dict[str, Feature]
    data_path: str
    video_path: str | None


def read_info(folder: Path) -> Info:
    """Read and check meta/info.json.

    Raises:
        FileNotFoundError: the folder has none.
        DataError: it is damaged, of another version, or names paths outside the folder.
    """
    path = folder / INFO
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no LeRobot data set: it has no {INFO}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} must hold a JSON object, got {type(content).__name__}")
    version = content.get("codebase_version")
    if not isinstance(version, str) or not version.startswith("v3."):
        raise DataError(
            f"{path} is of version {version!r}; only v3 can be read: convert older sets with LeRobot's script"
        )
    fps = content.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < float("inf"):
        raise DataError(f"fps in {path} must be positive, got {fps!r}")
    features = content.get("features")
    if not isinstance(features, dict) or not features:
        raise DataError(f"features in {path} must be a JSON object with features, got {features!r}")
    video_path = content.get("video_path")
    return Info(
        fps=float(fps),
        features={name: _feature(path, name, value) for name, value in features.items()},
        data_path=_checked_template(path, "data_path", content.get("data_path")),
        video_path=None if video_path is None else _checked_template(path, "video_path", video_path),
    )


def file_at(folder: Path, template: str, chunk: int, file: int, video_key: str = "") -> Path:
    """Return the path of one file, which lies inside the folder.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: the path would lead out of the folder.
    """
    relative = template.format(chunk_index=chunk, file_index=file, video_key=video_key)
    _check_inside(folder / INFO, relative)
    path = folder / relative
    if not path.is_file():
        raise FileNotFoundError(f"{folder} lacks the file {relative}")
    return path


def _feature(path: Path, name: str, value: Any) -> Feature:
    if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
        raise DataError(f"feature {name!r} in {path} must state its dtype, got {value!r}")
    shape = value.get("shape")
    if not isinstance(shape, list) or not all(
        isinstance(n, int) and not isinstance(n, bool) and 0 < n < 1 << 31 for n in shape
    ):
        raise DataError(f"feature {name!r} in {path} must state its shape as sizes, got {shape!r}")
    if value["dtype"] in ("video", "image") and len(shape) != 3:
        raise DataError(f"feature {name!r} in {path} must have three sizes as a picture, got {shape!r}")
    _check_inside(path, name)
    return Feature(name, value["dtype"], tuple(shape))


def _checked_template(path: Path, name: str, template: Any) -> str:
    """A template is a stranger's format string: fields beyond the three known ones could reach anything."""
    if not isinstance(template, str):
        raise DataError(f"{name} in {path} must be a text, got {template!r}")
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise DataError(f"{name} in {path} is no path with fields in braces: {template!r}") from error
    for literal, field, spec, conversion in parts:
        plain = field != "video_key" or not spec
        known = field is None or (field in _FIELDS and plain and _NUMBER_SPEC.fullmatch(spec or ""))
        if not known or conversion or (literal and not _PATH.fullmatch(literal)):
            raise DataError(
                f"{name} in {path} must be a path inside the folder with no fields but "
                f"{', '.join(_FIELDS)}, got {template!r}"
            )
    _check_inside(path, template.replace("{", "").replace("}", "").replace(":", ""))
    return template


def _check_inside(path: Path, relative: str) -> None:
    pure = PurePosixPath(relative)
    if not _PATH.fullmatch(relative) or pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise DataError(f"{path} names {relative!r}, which is no path inside the folder; it is refused")
