"""LeRobotDataset v3.0 folders: one written by the official writer, and ours beside it."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tests.policy.lerobot_folders import DATA, EPISODES, OFFICIAL, edit_info, moving_square

from fewstep.policy.episodes import Episodes
from fewstep.policy.files.lerobot_reading import read_lerobot
from fewstep.policy.files.lerobot_writing import LeRobotOptions, write_lerobot

AXES = {"state": ("x", "y"), "action": ("x", "y")}


@pytest.fixture(scope="module")
def official() -> Episodes:
    return read_lerobot(OFFICIAL)


@pytest.fixture(scope="module")
def rewritten(official, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lerobot") / "again"
    write_lerobot(folder, official, LeRobotOptions(names=AXES))
    return folder


def test_the_official_folder_is_read(official):
    table = pq.read_table(OFFICIAL / DATA)
    assert official.ends.tolist() == [158, 270, 377]
    assert official.fps == 10
    assert official.tasks == ("Push the T-shaped block onto the T-shaped target.",)
    pairs = {"state": "observation.state", "environment_state": "observation.environment_state"}
    pairs |= {"action": "action", "reward": "next.reward", "success": "next.success"}
    assert set(official.arrays) == {*pairs, "image"}
    for ours, theirs in pairs.items():
        assert np.array_equal(official.arrays[ours], np.array(table[theirs].to_pylist()))
    assert official.arrays["image"].shape == (377, 96, 96, 3)


def test_every_frame_belongs_to_its_step(official):
    """The pusher is a blue disc in the picture, at the recorded position."""
    images = official.arrays["image"].astype(int)
    blue = images[..., 2] - images[..., 0] > 100
    rows, columns = np.mgrid[:96, :96] + 0.5
    count = blue.sum((1, 2))
    seen = count >= 12  # else the block hides it
    assert seen.mean() > 0.8
    found = np.stack([(blue * columns).sum((1, 2)), (blue * rows).sum((1, 2))], axis=1)[seen]
    found = found / count[seen, None] * 512 / 96
    apart = np.linalg.norm(found - official.arrays["state"][seen], axis=1)
    speed = np.linalg.norm(np.diff(official.arrays["state"], axis=0), axis=1)
    assert np.median(apart) < 3
    assert np.median(apart) < np.median(speed) / 2  # a shift by one frame would show


def test_single_episodes_are_read_in_the_wanted_order(official):
    some = read_lerobot(OFFICIAL, episodes=[2, 0])
    expected = official.select([2, 0])
    assert np.array_equal(some.ends, expected.ends)
    for name, array in expected.arrays.items():
        assert np.array_equal(some.arrays[name], array)
    assert "image" not in read_lerobot(OFFICIAL, cameras=()).arrays


@pytest.mark.parametrize("file", [DATA, EPISODES, "meta/tasks.parquet"])
def test_written_tables_have_the_official_schema(rewritten, file):
    ours, theirs = pq.read_schema(rewritten / file), pq.read_schema(OFFICIAL / file)
    assert ours.equals(theirs, check_metadata=False)
    assert ours.names == theirs.names
    for key in (b"huggingface", b"pandas"):
        if key in (theirs.metadata or {}):
            mine, other = json.loads(ours.metadata[key]), json.loads(theirs.metadata[key])
            versions = {"fingerprint", "creator", "pandas_version"}
            assert {k: v for k, v in mine.items() if k not in versions} == {
                k: v for k, v in other.items() if k not in versions
            }


def test_written_content_is_the_official_one(rewritten):
    assert pq.read_table(rewritten / DATA).equals(pq.read_table(OFFICIAL / DATA))
    assert pq.read_table(rewritten / "meta/tasks.parquet").equals(
        pq.read_table(OFFICIAL / "meta/tasks.parquet")
    )
    ours, theirs = (pq.read_table(folder / EPISODES) for folder in (rewritten, OFFICIAL))
    for name in theirs.column_names:
        if not name.startswith("stats/"):
            assert ours[name].equals(theirs[name]), name
    mine, other = (json.loads((folder / "meta/info.json").read_text()) for folder in (rewritten, OFFICIAL))
    assert mine == other
    assert list(mine) == list(other)


def test_written_statistics_are_the_official_ones(rewritten):
    ours, theirs = (json.loads((folder / "meta/stats.json").read_text()) for folder in (rewritten, OFFICIAL))
    assert set(ours) == set(theirs)
    for feature, entries in theirs.items():
        assert list(ours[feature]) == list(entries)
        for key in entries:
            assert np.shape(ours[feature][key]) == np.shape(entries[key])
        # The pictures went through another round of compression; the official deviation of pictures and all
        # its quantiles are estimates.
        if feature == "observation.image":
            assert np.allclose(ours[feature]["mean"], entries["mean"], atol=0.01)
            assert ours[feature]["count"] == entries["count"]
            continue
        for key in ("min", "max", "count"):
            assert ours[feature][key] == entries[key]
        for key in ("mean", "std"):
            assert np.allclose(ours[feature][key], entries[key], rtol=1e-4, atol=1e-7)


def test_quantiles_are_those_of_the_data(rewritten, official):
    stats = json.loads((rewritten / "meta/stats.json").read_text())
    expected = np.quantile(official.arrays["action"].astype(np.float64), [0.01, 0.5, 0.99], axis=0)
    assert np.allclose([stats["action"][q] for q in ("q01", "q50", "q99")], expected, rtol=1e-12)


@pytest.mark.parametrize("codec", ["libsvtav1", "libx264"])
def test_our_own_folder_round_trip(tmp_path, codec):
    episodes = moving_square()
    write_lerobot(tmp_path / "set", episodes, LeRobotOptions(codec=codec))
    back = read_lerobot(tmp_path / "set")
    assert set(back.arrays) == set(episodes.arrays)
    assert np.array_equal(back.ends, episodes.ends)
    assert (back.fps, back.tasks) == (5.0, ("push", "pull"))
    for name, array in episodes.arrays.items():
        if name.startswith("image"):
            assert np.abs(back.arrays[name].astype(int) - array).max() < 10  # steps are 20 apart
        else:
            assert back.arrays[name].dtype == array.dtype
            assert np.array_equal(back.arrays[name], array)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert set(read_lerobot(tmp_path / "set", cameras=["image.top"]).arrays) & {"image", "image.top"} == {
        "image.top"
    }


def test_large_sets_are_split_into_files(tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.policy.files.lerobot_writing.CHUNKS_SIZE", 2)
    steps = np.random.default_rng(0).random((40, 30_000), dtype=np.float32)
    frames = np.random.default_rng(1).integers(0, 256, (40, 352, 352, 3), dtype=np.uint8)
    episodes = Episodes({"state": steps, "image": frames}, np.array([10, 20, 30, 40]), 10.0)
    write_lerobot(
        tmp_path / "set", episodes, LeRobotOptions(data_file_mb=1, video_file_mb=1, codec="libx264")
    )
    names = {
        suffix: sorted(str(path.relative_to(tmp_path / "set")) for path in (tmp_path / "set").rglob(suffix))
        for suffix in ("data/**/*.parquet", "*.mp4")
    }
    assert len(names["data/**/*.parquet"]) == 4
    assert names["data/**/*.parquet"][-1] == "data/chunk-001/file-001.parquet"
    assert len(names["*.mp4"]) > 1
    back = read_lerobot(tmp_path / "set")
    assert np.array_equal(back.arrays["state"], steps)
    one = read_lerobot(tmp_path / "set", episodes=[3])
    assert np.array_equal(one.arrays["image"], back.arrays["image"][30:])


def test_pictures_inside_the_table_are_read(tmp_path):
    episodes = moving_square().without("image.top", "points")
    write_lerobot(tmp_path / "set", episodes.without("image"))
    cells = []
    for frame in episodes.arrays["image"]:
        Image.fromarray(frame).save(tmp_path / "frame.png")
        cells.append({"bytes": (tmp_path / "frame.png").read_bytes(), "path": None})
    table = pq.read_table(tmp_path / "set" / DATA)
    pq.write_table(table.append_column("observation.image", pa.array(cells)), tmp_path / "set" / DATA)
    info = json.loads((tmp_path / "set/meta/info.json").read_text())
    info["features"]["observation.image"] = {"dtype": "image", "shape": [3, 32, 48], "names": None}
    edit_info(tmp_path / "set", features=info["features"])
    assert np.array_equal(read_lerobot(tmp_path / "set").arrays["image"], episodes.arrays["image"])


def test_nothing_is_written_over_and_nothing_half(tmp_path, monkeypatch):
    (tmp_path / "set").mkdir()
    write_lerobot(tmp_path / "set", moving_square().without("image", "image.top"))  # empty: fine
    with pytest.raises(FileExistsError, match="nothing is written over"):
        write_lerobot(tmp_path / "set", moving_square())
    shutil.rmtree(tmp_path / "set")

    def full_disk(*_args, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fewstep.policy.files.lerobot_writing.pq.write_table", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_lerobot(tmp_path / "set", moving_square())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        ("timestamp", np.zeros(9), "follows from the order"),
        ("a/b", np.zeros(9), "cannot be a feature"),
        ("observation.state", np.zeros(9), "cannot be a feature"),
        ("..x", np.zeros(9), "cannot be a feature"),
        ("image", np.zeros((9, 4, 4, 3), np.float32), "uint8"),
        ("image", np.zeros((9, 5, 4, 3), np.uint8), "even"),
        ("image", np.zeros((9, 4, 4, 1), np.uint8), "uint8"),
    ],
)
def test_arrays_without_a_place_in_the_format_are_refused(tmp_path, name, array, words):
    with pytest.raises(ValueError, match=words):
        write_lerobot(tmp_path / "set", moving_square().with_array(name, array))
    assert not list(tmp_path.iterdir())


def test_options_and_fps_are_checked(tmp_path):
    without = Episodes({"action": np.zeros((2, 1))}, np.array([2]))
    with pytest.raises(ValueError, match="fps"):
        write_lerobot(tmp_path / "set", without)
    with pytest.raises(ValueError, match="codec"):
        LeRobotOptions(codec="gif")
    for names in ({"action": ("x",)}, {"nothing": ("x",)}, {"image": ("x", "y", "z")}):
        with pytest.raises(ValueError, match="names must name"):
            write_lerobot(tmp_path / "set", moving_square(), LeRobotOptions(names=names))
    assert not list(tmp_path.iterdir())
