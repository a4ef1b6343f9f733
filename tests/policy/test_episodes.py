"""Episodes, their windows and their splits, against the published sequence sampler."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fewstep.policy.episodes import Episodes, from_episodes
from fewstep.policy.splits import limited_mask, validation_mask
from fewstep.policy.windows import Windows, check_horizons, observation_names, window_starts

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "policy" / "sampler_ema.safetensors")
ENDS = GOLDEN["in.episode_ends"].numpy()


def counted(ends: list[int] | np.ndarray, **more: np.ndarray) -> Episodes:
    """Every step's state is its own number, its action that number and its negative."""
    steps = np.arange(int(ends[-1]), dtype=np.float32)
    arrays = {"state": steps[:, None], "action": np.stack([steps, -steps], axis=1)}
    return Episodes({**arrays, **more}, np.asarray(ends))


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("out.idx_")])
def test_windows_are_those_of_the_published_sampler(name):
    horizon, before, after = map(int, name.split("_")[1:])
    rows, first = [], 0
    for end in ENDS.tolist():
        for start in window_starts(end - first, horizon, before, after):
            inside = max(start, 0), min(start + horizon, end - first)
            rows.append([first + inside[0], first + inside[1], inside[0] - start, inside[1] - start])
        first = end
    assert rows == GOLDEN[name].tolist()


def test_a_batch_repeats_the_edges_as_the_published_sampler_does():
    windows = Windows(counted(ENDS), horizon=16, n_obs_steps=2, n_action_steps=8)
    rows = GOLDEN["out.idx_16_1_7"].tolist()
    # The published code leaves out the episodes of 5 and 3 steps; here each gives one window.
    assert len(windows) == len(rows) + 2
    short = (0, 8)
    batch = windows.at(np.array([i for i in range(len(windows)) if i not in short]))
    expected = []
    for buffer_start, buffer_end, sample_start, sample_end in rows:
        inside = list(range(buffer_start, buffer_end))
        expected.append([inside[0]] * sample_start + inside + [inside[-1]] * (16 - sample_end))
    assert batch["action"][..., 0].tolist() == expected
    assert batch["obs"]["state"][..., 0].tolist() == [row[:2] for row in expected]
    pads = [[not row[2] <= i < row[3] for i in range(16)] for row in rows]
    assert batch["action_is_pad"].tolist() == pads


def test_window_index_i_is_now_minus_to_plus_one_plus_i():
    windows = Windows(counted([20]), horizon=8, n_obs_steps=3, n_action_steps=4)
    batch = windows.at(np.arange(len(windows)))
    newest = batch["obs"]["state"][:, -1, 0]
    executed = batch["action"][:, 2, 0]  # index To − 1
    assert torch.equal(newest, executed)
    assert newest.tolist() == list(range(18))
    assert batch["obs"]["state"][0, :, 0].tolist() == [0, 0, 0]
    assert batch["action_is_pad"][0].tolist() == [True, True] + [False] * 6
    assert batch["action_is_pad"][-1].tolist() == [False] * 5 + [True] * 3
    assert batch["action"][-1, -4:, 0].tolist() == [19] * 4


@pytest.mark.parametrize("length", [1, 2, 5])
def test_episodes_shorter_than_the_horizon_are_padded(length):
    windows = Windows(counted([length]), horizon=16, n_obs_steps=2, n_action_steps=8)
    assert len(windows) == 1
    batch = windows.batch(np.random.default_rng(0), 3)
    assert batch["action"].shape == (3, 16, 2)
    assert batch["action"][0, :, 0].tolist() == [0, *range(length), *([length - 1] * (15 - length))]
    assert (~batch["action_is_pad"][0]).sum() == length


def test_images_come_out_channels_first_in_zero_to_one():
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    windows = Windows(counted([6], image=images), horizon=2, n_obs_steps=2, n_action_steps=1)
    batch = windows.at(np.array([3]))
    assert windows.keys == ("state", "image")
    expected = torch.from_numpy(images[2:4]).permute(0, 3, 1, 2) / 255
    assert torch.equal(batch["obs"]["image"][0], expected)


def test_windows_keep_float64_and_further_arrays():
    rewards = np.arange(9.0)
    windows = Windows(counted([9], reward=rewards), 4, 1, 2, dtype=torch.float64, extra=("reward",))
    batch = windows.at(np.array([2]))
    assert batch["reward"].dtype == batch["action"].dtype == torch.float64
    assert batch["reward"].tolist() == [[2, 3, 4, 5]]


def test_an_epoch_sees_every_window_once_and_seeds_repeat():
    windows = Windows(counted([30]), 4, 2, 2)
    seen = torch.cat([b["obs"]["state"][:, -1, 0] for b in windows.epoch(np.random.default_rng(1), 7)])
    assert sorted(seen.tolist()) == list(range(len(windows)))
    first, second = (windows.batch(np.random.default_rng(5), 4)["action"] for _ in range(2))
    assert torch.equal(first, second)


def test_splits_are_the_published_ones():
    validation = validation_mask(206, 0.02, seed=42)
    assert np.array_equal(validation, GOLDEN["out.val_mask_206_0.02_42"].numpy())
    assert np.array_equal(limited_mask(~validation, 90, seed=42), GOLDEN["out.train_mask_90"].numpy())
    assert not validation_mask(5, 0.0, seed=0).any()
    assert validation_mask(1, 0.5, seed=0).sum() == 0
    assert validation_mask(2, 0.99, seed=0).sum() == 1


def test_select_copies_and_keeps_labels():
    episodes = Episodes(counted([2, 3, 7]).arrays, np.array([2, 3, 7]), 10.0, ("a",), {"seed": np.arange(3)})
    chosen = episodes.select([2, 0])
    assert chosen.ends.tolist() == [4, 6]
    assert chosen.arrays["state"][:, 0].tolist() == [3, 4, 5, 6, 0, 1]
    assert chosen.labels["seed"].tolist() == [2, 0]
    assert (chosen.fps, chosen.tasks) == (10.0, ("a",))
    assert episodes.select(np.array([False, True, False])).steps == 1
    assert episodes.episode(-1)["state"][:, 0].tolist() == [3, 4, 5, 6]


def test_big_endian_arrays_can_be_trained_on():
    steps = np.arange(5, dtype=">f4")[:, None]
    windows = Windows(Episodes({"state": steps, "action": steps}, np.array([5])), 2, 1, 1)
    assert windows.at(np.array([3]))["action"][0, :, 0].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("ends", "error", "words"),
    [
        ([], ValueError, "at least one episode"),
        ([0, 3], ValueError, "ends must increase"),
        ([3, 3], ValueError, r"ends\[1\] = 3 follows 3"),
        ([4, 2], ValueError, "ends must increase"),
        ([-1, 2], ValueError, "ends must increase"),
        ([1.0, 2.0], TypeError, "integers"),
        ([[1, 2]], ValueError, "shape"),
        ([2, 9], ValueError, "must have 9 steps"),
    ],
)
def test_ends_that_do_not_fit_are_refused(ends, error, words):
    with pytest.raises(error, match=words):
        Episodes({"action": np.zeros((2, 2))}, np.array(ends))


@pytest.mark.parametrize(
    ("array", "error", "words"),
    [
        (np.array([0.0, np.nan]), ValueError, "finite, but it is not at index 1"),
        (np.array([np.inf, 0.0]), ValueError, "finite"),
        (np.array(["a", "b"]), TypeError, "numbers or booleans"),
        (np.array([None, None]), TypeError, "numbers or booleans"),
        (np.zeros(2, complex), TypeError, "numbers or booleans"),
        (np.zeros(3), ValueError, "2 steps"),
        (np.array(1.0), ValueError, "2 steps"),
        ([0.0, 1.0], TypeError, r"ends|array|NumPy|arrays"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(array, error, words):
    with pytest.raises(error, match=words):
        Episodes({"action": np.zeros((2, 1)), "state": array}, np.array([2]))


def test_tasks_must_be_counted_rightly():
    arrays = {"action": np.zeros((2, 1)), "task_index": np.array([0, 2])}
    with pytest.raises(ValueError, match=r"0\.\.1"):
        Episodes(arrays, np.array([2]), tasks=("a", "b"))
    with pytest.raises(ValueError, match="fps"):
        Episodes({"action": np.zeros((2, 1))}, np.array([2]), fps=0.0)


def test_joining_episodes_checks_that_they_are_alike():
    one = {"action": np.zeros((2, 1))}
    with pytest.raises(ValueError, match="episode 1 has the arrays"):
        from_episodes([one, {"state": np.zeros((2, 1))}])
    with pytest.raises(ValueError, match="of episode 1 is float64"):
        from_episodes([one, {"action": np.zeros((2, 3))}])
    with pytest.raises(ValueError, match="differ in their number of steps"):
        from_episodes([{"action": np.zeros((2, 1)), "state": np.zeros((3, 1))}])
    with pytest.raises(ValueError, match="at least one"):
        from_episodes([])


@pytest.mark.parametrize(
    ("numbers", "error", "words"),
    [
        ((16, 2, 16), ValueError, "at most horizon − n_obs_steps \\+ 1 = 15"),
        ((16, 0, 8), ValueError, "n_obs_steps must be at least 1"),
        ((16, 17, 1), ValueError, "at most"),
        ((True, 1, 1), TypeError, "horizon must be an integer"),
    ],
)
def test_horizons_that_do_not_fit_are_refused(numbers, error, words):
    with pytest.raises(error, match=words):
        check_horizons(*numbers)


def test_unknown_observations_are_refused():
    with pytest.raises(ValueError, match=r"\['picture'\]"):
        Windows(counted([5]), 4, 1, 1, keys=["picture"])
    with pytest.raises(ValueError, match="none"):
        Windows(counted([5]), 4, 1, 1, keys=[])
    with pytest.raises(ValueError, match=r"\['action'\]"):
        Windows(Episodes({"state": np.zeros((2, 1))}, np.array([2])), 2, 1, 1)
    with pytest.raises(IndexError, match=r"0\.\.0"):
        counted([5]).episode(1)
    with pytest.raises(ValueError, match="at least one"):
        counted([5]).select([])


def test_the_golden_file_says_where_it_is_from():
    about = json.loads((Path(__file__).parents[1] / "golden" / "policy" / "sampler_ema.json").read_text())
    assert "create_indices" in about["what"]
    assert observation_names(counted([3])) == ("state",)
