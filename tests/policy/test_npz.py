"""Demonstrations in .npz files and zarr replay buffers, whole and damaged."""

import contextlib
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from fewstep.policy.episodes import DataError, Episodes
from fewstep.policy.files.npz import read_npz, write_npz
from fewstep.policy.files.zarr_reading import read_zarr


def example() -> Episodes:
    rng = np.random.default_rng(0)
    arrays = {
        "state": rng.random((6, 3), dtype=np.float32),
        "action": rng.random((6, 2)),
        "image": rng.integers(0, 256, (6, 4, 4, 3), dtype=np.uint8),
        "done": np.array([False] * 6),
        "task_index": np.array([0, 0, 0, 1, 1, 1]),
    }
    labels = {"is_val_episode": np.array([True, False])}
    return Episodes(arrays, np.array([2, 6]), 12.5, ("push", "pull — 押す"), labels)


def assert_same(one: Episodes, other: Episodes) -> None:
    assert list(one.arrays) == list(other.arrays)
    for mine, theirs in ((one.arrays, other.arrays), (one.labels, other.labels)):
        assert set(mine) == set(theirs)
        for name, array in mine.items():
            assert array.dtype == theirs[name].dtype
            assert np.array_equal(array, theirs[name])
    assert np.array_equal(one.ends, other.ends)
    assert (one.fps, one.tasks) == (other.fps, other.tasks)


def test_what_is_written_is_read_back(tmp_path):
    write_npz(tmp_path / "a.npz", example())
    assert_same(read_npz(tmp_path / "a.npz"), example())
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_labels_are_told_from_steps_even_when_all_episodes_have_one_step(tmp_path):
    episodes = Episodes({"action": np.zeros((3, 1))}, np.array([1, 2, 3]), labels={"seed": np.arange(3)})
    write_npz(tmp_path / "a.npz", episodes)
    assert_same(read_npz(tmp_path / "a.npz"), episodes)


def test_files_of_others_are_read(tmp_path):
    np.savez(
        tmp_path / "maze.npz",
        observation=np.ones((5, 4), np.float32),
        next_observation=np.zeros((5, 4), np.float32),
        action=np.ones((5, 2)),
        goal_pose=np.array([356.0, 356.0, 0.785]),
        is_val_episode=np.array([True, False]),
        episode_ends=np.array([2, 5], np.int32),
    )
    episodes = read_npz(tmp_path / "maze.npz")
    assert set(episodes.arrays) == {"state", "next_state", "action"}
    assert episodes.labels["goal_pose"].shape == (2, 3)
    assert episodes.labels["is_val_episode"].tolist() == [True, False]
    assert (episodes.fps, episodes.ends.dtype) == (None, np.int64)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"action": np.zeros((3, 1))}, "no array 'episode_ends'; it has action"),
        ({"action": np.zeros((3, 1)), "episode_ends": np.array([], np.int64)}, "at least one episode"),
        ({"action": np.zeros((3, 1)), "episode_ends": np.array([2, 2])}, "must increase"),
        ({"action": np.zeros((3, 1)), "episode_ends": np.array([3, 2])}, "must increase"),
        ({"action": np.zeros((3, 1)), "episode_ends": np.array([1.0, 3.0])}, "integers"),
        ({"action": np.zeros((3, 1)), "episode_ends": np.array(3)}, "at least one"),
        ({"action": np.zeros((3, 1)), "episode_ends": np.array([[3]])}, "shape"),
        ({"action": np.zeros((2, 1)), "episode_ends": np.array([3])}, "must have 3 steps"),
        ({"action": np.full((3, 1), np.nan), "episode_ends": np.array([3])}, "finite"),
        ({"action": np.array(["a", "b", "c"]), "episode_ends": np.array([3])}, "numbers or booleans"),
        ({"action": np.zeros(3, object), "episode_ends": np.array([3])}, "Python objects"),
        ({"episode_ends": np.array([3])}, "at least one array"),
        ({"action": np.zeros(3), "episode_ends": np.array([3]), "about": np.array("{")}, "no demonstrations"),
        ({"action": np.zeros(3), "episode_ends": np.array([3]), "about": np.array("[]")}, "must state"),
        ({"action": np.zeros(3), "episode_ends": np.array([3]), "about": np.zeros(2)}, "must be a text"),
    ],
)
def test_contents_that_do_not_fit_are_refused(tmp_path, content, words):
    np.savez(tmp_path / "bad.npz", allow_pickle=True, **content)
    with pytest.raises(DataError, match=words) as refusal:
        read_npz(tmp_path / "bad.npz")
    assert "bad.npz" in str(refusal.value)


def test_damaged_files_are_refused_wherever_the_damage_is(tmp_path):
    write_npz(tmp_path / "good.npz", example())
    whole = (tmp_path / "good.npz").read_bytes()
    bad, noticed = tmp_path / "bad.npz", 0
    rng = np.random.default_rng(0)
    for length in [0, 1, 4, 100, len(whole) // 2, len(whole) - 30]:
        bad.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"bad\.npz"):
            read_npz(bad)
    for position in rng.integers(0, len(whole), 200):
        bad.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        # Dates and the like in the zip's directory may be anything; no other error may come out.
        with contextlib.suppress(DataError):
            read_npz(bad)
            noticed -= 1
        noticed += 1
    assert noticed > 100


def test_a_single_array_and_a_missing_file(tmp_path):
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DataError, match="single array"):
        read_npz(tmp_path / "one.npy")
    with pytest.raises(FileNotFoundError, match="is not a file"):
        read_npz(tmp_path / "none.npz")


def test_writing_refuses_names_that_mean_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"end in \.npz"):
        write_npz(tmp_path / "a.npy", example())
    for name in ("episode_ends", "about", "observation"):
        with pytest.raises(ValueError, match=name):
            write_npz(tmp_path / "a.npz", example().with_array(name, np.zeros(6)))
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    write_npz(tmp_path / "a.npz", example())

    def full_disk(*_args, **_named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_npz(tmp_path / "a.npz", example().select([0]))
    assert_same(read_npz(tmp_path / "a.npz"), example())


class FakeArray:
    """As much of a zarr array as is looked at before and while it is read."""

    def __init__(self, values: np.ndarray, codec: str = "blosc") -> None:
        self.values, self.dtype = values, values.dtype
        self.metadata = types.SimpleNamespace(to_dict=lambda: {"filters": [{"id": codec}]})

    def __getitem__(self, part) -> np.ndarray:
        return self.values[part]


class FakeGroup:
    def __init__(self, ends: np.ndarray, **arrays: FakeArray) -> None:
        self.ends, self.all = ends, arrays

    def __getitem__(self, name: str):
        return FakeArray(self.ends) if name == "meta/episode_ends" else self

    def arrays(self):
        return list(self.all.items())


def install_zarr(monkeypatch, group: FakeGroup) -> None:
    fake = types.ModuleType("zarr")
    fake.__dict__["open_group"] = lambda _store, mode: group
    monkeypatch.setitem(sys.modules, "zarr", fake)


def test_a_replay_buffer_is_read(tmp_path, monkeypatch):
    picture = FakeArray(np.full((4, 2, 2, 3), 254.9999, np.float32))
    state = FakeArray(np.ones((4, 5), np.float32))
    group = FakeGroup(np.array([1, 4]), img=picture, state=state, action=state)
    install_zarr(monkeypatch, group)
    episodes = read_zarr(tmp_path, fps=10)
    assert set(episodes.arrays) == {"image", "state", "action"}
    assert episodes.arrays["image"].dtype == np.uint8
    assert episodes.arrays["image"].min() == 255


def test_a_replay_buffer_with_pickles_or_damage_is_refused(tmp_path, monkeypatch):
    ends = np.array([4])
    install_zarr(monkeypatch, FakeGroup(ends, action=FakeArray(np.zeros((4, 1)), codec="pickle")))
    with pytest.raises(DataError, match="could run code"):
        read_zarr(tmp_path)
    install_zarr(monkeypatch, FakeGroup(ends, action=FakeArray(np.zeros(4, object))))
    with pytest.raises(DataError, match="could run code"):
        read_zarr(tmp_path)
    install_zarr(monkeypatch, FakeGroup(ends, action=FakeArray(np.zeros((3, 1)))))
    with pytest.raises(DataError, match="must have 4 steps"):
        read_zarr(tmp_path)
    with pytest.raises(FileNotFoundError, match="not there"):
        read_zarr(tmp_path / "none")


def test_without_zarr_the_message_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(ImportError, match=r"pip install 'fewstep-policy\[zarr\]'"):
        read_zarr(Path("any"))
