"""Policy: memory, chunks, seeds, and observations that do not fit."""

import numpy as np
import pytest
import torch

from fewstep.core.weights import CheckpointError
from fewstep.policy.config import PolicyConfig
from fewstep.policy.model import PolicyModel
from fewstep.policy.policy import Policy

TINY = {"embedding": 16, "down_dims": (8, 16)}


@pytest.fixture(scope="module")
def model() -> PolicyModel:
    torch.manual_seed(0)
    return PolicyModel(PolicyConfig({"state": (3,)}, 2, steps=2, network_options=TINY)).eval()


def observation(step: int, robot: int = 0) -> np.ndarray:
    return np.array([step, robot, 1.0], np.float32) / 10


def test_actions_come_from_the_chunk_that_the_newest_observations_give(model):
    policy = Policy(model, "cpu", seed=3)
    seen = [observation(step) for step in range(9)]
    actions = [policy.select_action(now) for now in seen]

    def chunk(first: np.ndarray, second: np.ndarray, number: int) -> np.ndarray:
        fresh = Policy(model, "cpu", seed=3)
        fresh.reset([0], [3])
        slot = fresh._slots[0]
        slot.chunks = number
        slot.seen.extend([{"state": torch.from_numpy(first)}, {"state": torch.from_numpy(second)}])
        fresh._refill([slot])
        return np.stack(slot.actions)

    np.testing.assert_array_equal(actions[:8], chunk(seen[0], seen[0], 0), "the first one stands for both")
    np.testing.assert_array_equal(actions[8], chunk(seen[7], seen[8], 1)[0])


@pytest.mark.parametrize("rows", [1, 4])
def test_robots_side_by_side_act_as_each_alone(model, rows):
    together = Policy(model, "cpu", rows_per_call=rows)
    together.reset([0, 1, 2], [7, 8, 9])
    film = [
        together.act({"state": np.stack([observation(step, robot) for robot in range(3)])}, [0, 1, 2])
        for step in range(10)
    ]
    for robot in range(3):
        alone = Policy(model, "cpu")
        alone.reset([0], [7 + robot])
        single = np.stack(
            [alone.act({"state": observation(step, robot)[None]}, [0])[0] for step in range(10)]
        )
        own = np.stack(film)[:, robot]
        if rows == 1:
            np.testing.assert_array_equal(own, single)
        else:
            np.testing.assert_allclose(own, single, atol=1e-5)


def test_reset_of_one_slot_leaves_the_others(model):
    policy = Policy(model, "cpu")
    policy.reset([0, 1], [1, 2])
    both = {"state": np.stack([observation(0), observation(0, 1)])}
    policy.act(both, [0, 1])
    plan = policy.plan(1)
    assert plan is not None
    policy.reset([0], [5])
    assert policy.plan(0) is None
    np.testing.assert_array_equal(policy.plan(1), plan)
    policy.act({"state": observation(1, 1)[None]}, [1])
    np.testing.assert_array_equal(policy.plan(1), plan[1:])


def test_the_same_seed_gives_the_same_episode_and_another_one_another(model):
    def episode(seed: int) -> np.ndarray:
        policy = Policy(model, "cpu")
        policy.reset([0], [seed])
        return np.stack([policy.select_action(observation(step)) for step in range(10)])

    np.testing.assert_array_equal(episode(4), episode(4))
    assert np.abs(episode(4) - episode(5)).max() > 1e-3
    first = episode(4)
    assert np.abs(first[0] - first[8]).max() > 0, "every chunk has its own noise"


def test_lerobot_names_tensors_and_chunks(model):
    policy = Policy(model, "cpu")
    by_name = policy.predict_action_chunk({"observation.state": torch.tensor(observation(0))})
    window = np.stack([observation(0)] * 2)
    np.testing.assert_array_equal(by_name, policy.predict_action_chunk({"state": observation(0)}))
    assert by_name.shape == (8, 2)
    batch = policy.predict_action_chunk({"state": np.stack([window] * 4)})
    assert batch.shape == (4, 8, 2)
    np.testing.assert_allclose(batch[0], by_name, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros(4), r"observation 'state' must have the shape \(3,\)"),
        (np.array([0.0, np.nan, 0.0]), "observation 'state' holds NaN or infinity"),
        ({"pose": np.zeros(3)}, "observation must hold state"),
        ({"state": np.zeros((2, 2, 3, 1))}, "must be an array of shape"),
    ],
)
def test_observations_that_do_not_fit_are_refused(model, given, words):
    with pytest.raises(ValueError, match=words):
        Policy(model, "cpu").select_action(given)


def test_a_refused_observation_leaves_the_memory_as_it_was(model):
    policy, other = Policy(model, "cpu"), Policy(model, "cpu")
    for step in range(10):
        if step == 4:
            with pytest.raises(ValueError, match="NaN"):
                policy.select_action(np.full(3, np.nan))
        np.testing.assert_array_equal(
            policy.select_action(observation(step)), other.select_action(observation(step))
        )


def test_broken_weights_are_noticed(model):
    broken = PolicyModel(model.config)
    with torch.no_grad():
        broken.net.get_parameter("final_conv.1.bias").fill_(float("nan"))
    with pytest.raises(ValueError, match="its weights are broken"):
        Policy(broken, "cpu").select_action(observation(0))


def test_names_that_are_no_policy_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint 'nobody'"):
        Policy.from_pretrained("nobody")
    (tmp_path / "config.json").write_text('{"_class": "ResShift"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="holds a 'ResShift'; policies are"):
        Policy.from_pretrained(tmp_path)
