"""Arrow schemas and the JSON of a LeRobotDataset v3.0 folder, as the official writer makes them."""

import json
from typing import Any

import numpy as np
import pyarrow as pa

from fewstep.policy.files.lerobot_layout import DATA_PATH, TASK_COLUMN, VIDEO_PATH
from fewstep.policy.files.lerobot_stats import Stats

CHUNKS_SIZE = 1000
_INDEX_DTYPES = {
    "timestamp": np.dtype(np.float32),
    "frame_index": np.dtype(np.int64),
    "episode_index": np.dtype(np.int64),
    "index": np.dtype(np.int64),
    "task_index": np.dtype(np.int64),
}


def describe_features(
    numbers: dict[str, tuple[np.dtype, tuple[int, ...]]],
    videos: dict[str, tuple[int, int]],
    order: list[str],
    fps: float,
    codec: str,
) -> dict[str, Any]:
    """Features for meta/info.json.

    Args:
        numbers: dtype and shape of one step by LeRobot's name.
        videos: height and width by LeRobot's name.
        order: of the features; those that index the steps are added.
        fps: frames per second.
        codec: of the videos.
    """
    described: dict[str, Any] = {}
    for name in order:
        if name in videos:
            described[name] = _describe_video(*videos[name], fps, codec)
        else:
            dtype, shape = numbers[name]
            described[name] = {"dtype": dtype.name, "shape": list(shape or (1,)), "names": None}
    for name, dtype in _INDEX_DTYPES.items():
        described[name] = {"dtype": dtype.name, "shape": [1], "names": None}
    return described


def describe_set(
    features: dict[str, Any],
    counts: dict[str, int],
    fps: float,
    robot_type: str | None,
    sizes_in_mb: tuple[int, int],
) -> dict[str, Any]:
    """All of meta/info.json.

    Args:
        features: from `describe_features`.
        counts: of "episodes", "frames" and "tasks".
        fps: frames per second.
        robot_type: free text.
        sizes_in_mb: after which a new data file and a new video file is begun.
    """
    has_videos = any(feature["dtype"] == "video" for feature in features.values())
    return {
        "codebase_version": "v3.0",
        "robot_type": robot_type,
        "total_episodes": counts["episodes"],
        "total_frames": counts["frames"],
        "total_tasks": counts["tasks"],
        "chunks_size": CHUNKS_SIZE,
        "data_files_size_in_mb": sizes_in_mb[0],
        "video_files_size_in_mb": sizes_in_mb[1],
        "fps": _whole(fps),
        "splits": {"train": f"0:{counts['episodes']}"},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if has_videos else None,
        "features": features,
    }


def data_schema(features: dict[str, Any]) -> pa.Schema:
    """Columns of the data files, with the description that the `datasets` library reads."""
    fields, described = [], {}
    for name, feature in features.items():
        if feature["dtype"] == "video":
            continue
        shape = tuple(feature["shape"])
        fields.append(pa.field(name, _column_type(np.dtype(feature["dtype"]), shape)))
        described[name] = _datasets_feature(feature["dtype"], shape)
    metadata = {"huggingface": json.dumps({"info": {"features": described}})}
    return pa.schema(fields, metadata=metadata)


def step_column(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """A column of (rows, …) numbers; nested lists are made from the innermost outwards."""
    if not _is_list(kind):
        return pa.array(values.reshape(-1), kind)
    return _nested(values.reshape(-1), values.shape[1:], kind)


def tasks_table(tasks: tuple[str, ...]) -> pa.Table:
    """meta/tasks.parquet: a pandas table whose index holds the texts."""
    texts = {"pandas_type": "unicode", "numpy_type": "str", "metadata": {"encoding": "UTF-8"}}
    number = {"pandas_type": "int64", "numpy_type": "int64", "metadata": None}
    index = {"pandas_type": "object", "numpy_type": "str", "metadata": None}
    description = {
        "index_columns": [TASK_COLUMN],
        "column_indexes": [{"name": None, "field_name": None, **texts}],
        "columns": [
            {"name": "task_index", "field_name": "task_index", **number},
            {"name": None, "field_name": TASK_COLUMN, **index},
        ],
        "attributes": {},
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "3.0.0",
    }
    schema = pa.schema(
        [("task_index", pa.int64()), (TASK_COLUMN, pa.large_string())],
        metadata={"pandas": json.dumps(description)},
    )
    return pa.table([list(range(len(tasks))), list(tasks)], schema=schema)


def episodes_table(rows: list[dict[str, Any]], stats: list[dict[str, Stats]]) -> pa.Table:
    """meta/episodes: one row per episode, with its statistics between its place and the place of the row.

    Args:
        rows: plain columns by name: integers, seconds and lists of texts.
        stats: by feature, of every episode.
    """
    columns: dict[str, pa.Array] = {}
    for name, value in rows[0].items():
        kind = _list_of(pa.string()) if isinstance(value, list) else None
        columns[name] = pa.array([row[name] for row in rows], kind)
    for feature, entries in stats[0].items():
        for entry, value in entries.items():
            kind = pa.from_numpy_dtype(value.dtype)
            for _ in range(value.ndim):
                kind = _list_of(kind)
            columns[f"stats/{feature}/{entry}"] = pa.array([s[feature][entry].tolist() for s in stats], kind)
    for name in ("meta/episodes/chunk_index", "meta/episodes/file_index"):
        columns[name] = pa.array([0] * len(rows), pa.int64())
    return pa.table(columns)


def _describe_video(height: int, width: int, fps: float, codec: str) -> dict[str, Any]:
    return {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": height,
            "video.width": width,
            "video.codec": {"libsvtav1": "av1", "libx264": "h264"}[codec],
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": _whole(fps),
            "video.channels": 3,
            "has_audio": False,
        },
    }


def _whole(fps: float) -> float | int:
    return int(fps) if float(fps).is_integer() else fps


def _column_type(dtype: np.dtype, shape: tuple[int, ...]) -> pa.DataType:
    kind = pa.from_numpy_dtype(dtype)
    if shape == (1,):
        return kind
    if len(shape) == 1:
        return pa.list_(pa.field("element", kind), shape[0])
    for _ in shape:
        kind = _list_of(kind)
    return kind


def _datasets_feature(dtype: str, shape: tuple[int, ...]) -> dict[str, Any]:
    if shape == (1,):
        return {"dtype": dtype, "_type": "Value"}
    if len(shape) == 1:
        return {"feature": {"dtype": dtype, "_type": "Value"}, "length": shape[0], "_type": "List"}
    return {"shape": list(shape), "dtype": dtype, "_type": f"Array{len(shape)}D"}


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)


def _nested(flat: np.ndarray, shape: tuple[int, ...], kind: pa.DataType) -> pa.Array:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind)
    inner = pa.array(flat, kind.value_type) if len(shape) == 1 else _nested(flat, shape[1:], kind.value_type)
    offsets = pa.array(np.arange(0, len(inner) + 1, shape[0]), pa.int32())
    return pa.ListArray.from_arrays(offsets, inner, type=kind)
