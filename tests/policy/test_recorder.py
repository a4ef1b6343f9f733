"""The recorder: nothing that was recorded is lost."""

import numpy as np
import pytest

from fewstep.policy.episodes import DataError
from fewstep.policy.files.lerobot_reading import read_lerobot
from fewstep.policy.files.npz import read_npz
from fewstep.policy.recorder import Recorder


def record(recorder: Recorder, steps: int, start: float = 0.0) -> None:
    for step in range(steps):
        state = np.full(2, start + step, np.float32)
        recorder.add({"state": state}, action=-state, reward=float(step), done=step == steps - 1)


def test_episodes_are_kept_in_order_with_tasks_and_labels(tmp_path):
    with Recorder(tmp_path / "demos", fps=10) as recorder:
        record(recorder, 3)
        first = recorder.end_episode(task="push", success=True)
        record(recorder, 2, start=10)
        recorder.end_episode(task="pull", success=False)
        episodes = recorder.episodes()
    assert first.name == "episode_000000.npz"
    assert episodes.ends.tolist() == [3, 5]
    assert episodes.tasks == ("push", "pull")
    assert episodes.arrays["task_index"].tolist() == [0, 0, 0, 1, 1]
    assert episodes.labels["successful"].tolist() == [True, False]
    assert episodes.arrays["done"].tolist() == [False, False, True, False, True]
    assert episodes.arrays["action"][3].tolist() == [-10, -10]
    assert episodes.fps == 10


def test_a_discarded_episode_leaves_no_trace(tmp_path):
    recorder = Recorder(tmp_path, fps=10)
    record(recorder, 4)
    assert recorder.pending == 4
    assert recorder.discard_episode() == 4
    assert (recorder.pending, len(recorder)) == (0, 0)
    recorder.add({"state": np.zeros(7)}, action=np.zeros(1))  # another form is free to begin with
    recorder.end_episode()
    assert recorder.episodes().arrays["state"].shape == (1, 7)


def test_an_exception_keeps_the_unfinished_episode(tmp_path):
    def session() -> None:
        with Recorder(tmp_path, fps=10) as recorder:
            record(recorder, 3)
            recorder.end_episode()
            record(recorder, 2, start=50)
            raise RuntimeError("robot lost")

    with pytest.raises(RuntimeError, match="robot lost"):
        session()
    kept = read_npz(tmp_path / "unfinished_000001.npz")
    assert kept.arrays["state"][:, 0].tolist() == [50, 51]
    assert len(Recorder(tmp_path, fps=10)) == 1


def test_a_folder_is_opened_again_and_numbers_go_on(tmp_path):
    for start in (0.0, 100.0):
        with Recorder(tmp_path, fps=10) as recorder:
            record(recorder, 2, start)
            recorder.end_episode(task="push")
    assert recorder.episodes().arrays["state"][:, 0].tolist() == [0, 1, 100, 101]
    assert recorder.episodes().tasks == ("push",)
    with pytest.raises(ValueError, match=r"fps must be 10\.0"):
        Recorder(tmp_path, fps=20)
    (tmp_path / "recording.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Recorder(tmp_path, fps=10)


def test_a_full_disk_loses_neither_the_steps_nor_the_other_episodes(tmp_path, monkeypatch):
    recorder = Recorder(tmp_path, fps=10)
    record(recorder, 2)
    recorder.end_episode()
    record(recorder, 3, start=7)

    def full_disk(*_args, **_named):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", full_disk)
        with pytest.raises(OSError, match="No space left"):
            recorder.end_episode()
    assert (recorder.pending, len(recorder)) == (3, 1)
    recorder.end_episode()
    assert recorder.episodes().arrays["state"][:, 0].tolist() == [0, 1, 7, 8, 9]


def test_a_damaged_episode_is_named_and_the_others_are_whole(tmp_path):
    recorder = Recorder(tmp_path, fps=10)
    for _ in range(2):
        record(recorder, 2)
        recorder.end_episode()
    (tmp_path / "episode_000001.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(DataError, match="episode_000001"):
        recorder.episodes()
    assert read_npz(tmp_path / "episode_000000.npz").steps == 2


def test_the_environment_may_write_into_the_same_memory(tmp_path):
    recorder, state = Recorder(tmp_path, fps=10), np.zeros(2)
    for step in range(3):
        state[:] = step
        recorder.add({"state": state}, action=state)
    recorder.end_episode()
    assert recorder.episodes().arrays["state"][:, 0].tolist() == [0, 1, 2]


def test_images_become_bytes_and_go_to_lerobot_and_npz(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    recorder = Recorder(tmp_path / "demos", fps=10)
    for picture in (pixels, np.moveaxis(pixels, -1, 0).astype(np.float32) / 255):
        recorder.add({"state": np.zeros(2, np.float32), "image": picture}, action=np.zeros(2, np.float32))
    recorder.end_episode(task="look")
    assert np.array_equal(recorder.episodes().arrays["image"], np.stack([pixels, pixels]))
    recorder.save_npz(tmp_path / "all.npz")
    assert np.array_equal(read_npz(tmp_path / "all.npz").arrays["image"][1], pixels)
    recorder.save_lerobot(tmp_path / "set")
    assert read_lerobot(tmp_path / "set").arrays["image"].shape == (2, 16, 16, 3)
    assert read_lerobot(tmp_path / "set").tasks == ("look",)


@pytest.mark.parametrize(
    ("observation", "action", "error", "words"),
    [
        ({"state": np.zeros(3)}, np.zeros(2), ValueError, r"state float64 \(3,\)"),
        ({"state": np.zeros(2, np.float32)}, np.zeros(2), ValueError, "state float32"),
        ({"other": np.zeros(2)}, np.zeros(2), ValueError, "other float64"),
        ({"state": np.array([0.0, np.nan])}, np.zeros(2), ValueError, "'state' must be finite"),
        ({"state": np.zeros(2)}, np.array([np.inf, 0.0]), ValueError, "'action' must be finite"),
        ({"state": "text"}, np.zeros(2), TypeError, "'state' must be numbers"),
        ({"state": np.zeros(2), "action": 1}, np.zeros(2), ValueError, r"\['action'\]"),
        ({"image": np.zeros((2, 2))}, np.zeros(2), ValueError, "three dimensions"),
        ({"image": np.full((3, 2, 2), 255.0)}, np.zeros(2), ValueError, r"floats in \[0, 1\]"),
    ],
)
def test_steps_that_do_not_fit_are_refused_and_not_kept(tmp_path, observation, action, error, words):
    recorder = Recorder(tmp_path, fps=10)
    recorder.add({"state": np.zeros(2)}, action=np.zeros(2))
    with pytest.raises(error, match=words):
        recorder.add(observation, action)
    assert recorder.pending == 1


def test_empty_episodes_and_bad_rates_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no step"):
        Recorder(tmp_path, fps=10).end_episode()
    with pytest.raises(ValueError, match="no episode that was ended"):
        Recorder(tmp_path, fps=10).episodes()
    for fps in (0, -1.0, float("inf"), float("nan"), True):
        with pytest.raises(ValueError, match="fps must be positive"):
            Recorder(tmp_path / "new", fps=fps)
