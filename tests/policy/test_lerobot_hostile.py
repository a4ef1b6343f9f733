"""LeRobot folders that are damaged, contradict themselves or want to reach outside."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.policy.lerobot_folders import DATA, EPISODES, edit_info, edit_table, moving_square, with_column

from fewstep.policy.episodes import DataError
from fewstep.policy.files.lerobot_reading import read_lerobot
from fewstep.policy.files.lerobot_writing import write_lerobot

VIDEO = "videos/observation.image/chunk-000/file-000.mp4"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lerobot") / "whole"
    write_lerobot(folder, moving_square().without("image.top"))
    return folder


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "set"))


@pytest.mark.parametrize("file", [DATA, EPISODES, "meta/tasks.parquet", VIDEO, "meta/info.json"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_truncated_files_are_named(folder, file, share):
    path = folder / file
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DataError, match=path.name):
        read_lerobot(folder)


@pytest.mark.parametrize("file", [DATA, "meta/tasks.parquet", VIDEO, "meta/info.json", EPISODES])
def test_missing_files_are_named(folder, file):
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks|is not a file|has no"):
        read_lerobot(folder)


def test_a_flipped_byte_never_gives_another_error(folder):
    rng = np.random.default_rng(0)
    for file in (DATA, EPISODES, VIDEO):
        content = (folder / file).read_bytes()
        for position in rng.integers(0, len(content), 40):
            damaged = bytearray(content)
            damaged[position] ^= 0xFF
            (folder / file).write_bytes(damaged)
            try:
                read_lerobot(folder)
            except (DataError, FileNotFoundError) as error:
                problem = str(error)
                assert str(folder) in problem
        (folder / file).write_bytes(content)


@pytest.mark.parametrize(
    "path",
    [
        "../../secret.parquet",
        "/etc/passwd",
        "data/../../x.parquet",
        "{chunk_index.__class__}.parquet",
        "{chunk_index!r}.parquet",
        "{chunk_index:999999999d}.parquet",
        "{video_key:>9999999}.parquet",
        "{chunk_index:{file_index}}.parquet",
        "{0}.parquet",
        "{robot}.parquet",
        "data/{chunk_index",
        "a\x00b.parquet",
        "C:\\x.parquet",
        "",
        None,
        7,
    ],
)
def test_paths_that_lead_elsewhere_are_refused(folder, path):
    edit_info(folder, data_path=path)
    with pytest.raises(DataError, match=r"data_path|inside the folder"):
        read_lerobot(folder)
    edit_info(folder, data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet", video_path=path)
    if path is not None:
        with pytest.raises(DataError, match=r"video_path|inside the folder"):
            read_lerobot(folder)


@pytest.mark.parametrize("name", ["../../x", "/abs", "a\x00b"])
def test_names_of_videos_cannot_lead_elsewhere(folder, name):
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    features[name] = features["observation.image"]
    edit_info(folder, features=features)
    with pytest.raises(DataError, match="inside the folder"):
        read_lerobot(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"codebase_version": "v2.1"}, "version 'v2.1'; only v3"),
        ({"codebase_version": 3}, "version 3"),
        ({"fps": 0}, "fps"),
        ({"fps": "10"}, "fps"),
        ({"features": {}}, "features"),
        ({"features": {"action": {"dtype": "float32", "shape": [3]}}}, "must have the shape"),
        ({"features": {"action": {"dtype": "float32", "shape": [0]}}}, "sizes"),
        ({"features": {"action": {"dtype": "float32", "shape": "2"}}}, "sizes"),
        ({"features": {"action": {"shape": [2]}}}, "dtype"),
        ({"features": {"motion": {"dtype": "float32", "shape": [2]}}}, "lacks the columns"),
        ({"features": {"observation.image": {"dtype": "video", "shape": [32, 48]}}}, "three sizes"),
        ({"features": {"observation.image": {"dtype": "video", "shape": [64, 48, 3]}}}, "32 × 48"),
        ({"video_path": None}, "no video_path"),
    ],
)
def test_descriptions_that_do_not_fit_are_refused(folder, changes, words):
    edit_info(folder, **changes)
    with pytest.raises(DataError, match=words):
        read_lerobot(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "null", "\ud800".encode("utf-8", "surrogatepass")])
def test_an_info_that_is_no_object_is_refused(folder, content):
    (folder / "meta/info.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=r"info\.json"):
        read_lerobot(folder)


@pytest.mark.parametrize(
    ("file", "column", "values", "words"),
    [
        (DATA, "action", lambda old: [row[:1] for row in old], "must have the shape"),
        (DATA, "action", lambda old: [*old[:-1], old[-1][:1]], "equally long"),
        (DATA, "action", lambda old: [None, *old[1:]], "lacks 1 values"),
        (DATA, "action", lambda old: [[float("nan"), 0.0], *old[1:]], "finite"),
        (DATA, "action", lambda old: [["a", "b"] for _ in old], "must hold numbers"),
        (DATA, "frame_index", lambda old: old[::-1], "one after the other"),
        (DATA, "timestamp", lambda old: [0.0 for _ in old], "must increase"),
        (DATA, "timestamp", lambda old: [x + 100 for x in old], "has no frame at"),
        (DATA, "episode_index", lambda old: [0 for _ in old], "episode 1"),
        (DATA, "task_index", lambda old: [5 for _ in old], "task_index"),
        (EPISODES, "length", lambda old: [2, *old[1:]], "not one after the other"),
        (
            EPISODES,
            "length",
            lambda old: [*old[:-1], 99],
            "holds 5 steps of episode 2, meta/episodes says 99",
        ),
        (EPISODES, "length", lambda old: [0, *old[1:]], "episode 0"),
        (EPISODES, "length", lambda old: [-1, *old[1:]], "counts from 0"),
        (EPISODES, "length", lambda old: [1.5, *old[1:]], "counts"),
        (EPISODES, "episode_index", lambda old: [0, 0, 1], "twice"),
        (EPISODES, "videos/observation.image/from_timestamp", lambda old: [50.0, 60.0, 70.0], "no frame at"),
        (EPISODES, "videos/observation.image/from_timestamp", lambda old: [float("nan")] * 3, "finite"),
        ("meta/tasks.parquet", "task_index", lambda old: [3, 4], "number its texts"),
    ],
)
def test_tables_that_contradict_each_other_are_refused(folder, file, column, values, words):
    edit_table(folder / file, with_column(column, values))
    with pytest.raises(DataError, match=words):
        read_lerobot(folder)


def test_an_empty_set_is_refused(folder):
    edit_table(folder / EPISODES, lambda table: table.slice(0, 0))
    with pytest.raises(DataError, match="no episode"):
        read_lerobot(folder)


def test_a_file_that_is_not_there_is_named(folder):
    edit_table(folder / EPISODES, with_column("data/file_index", pa.array([0, 0, 7])))
    with pytest.raises(FileNotFoundError, match=r"file-007\.parquet"):
        read_lerobot(folder)


def test_unknown_episodes_cameras_and_folders_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"0\.\.2, got \[3\]"):
        read_lerobot(folder, episodes=[0, 3])
    with pytest.raises(ValueError, match=r"\['image'\], got \['image\.wrist'\]"):
        read_lerobot(folder, cameras=["image.wrist"])
    with pytest.raises(FileNotFoundError, match="no LeRobot data set"):
        read_lerobot(tmp_path)
