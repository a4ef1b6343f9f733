"""Transitions, offline training on a bandit whose best action is known, and the policy that comes of it."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fewstep.core.weights import load_state_dict_file
from fewstep.policy.episodes import Episodes
from fewstep.policy.policy import Policy
from fewstep.policy.rl.actor_critic import ActorCriticConfig
from fewstep.policy.rl.policy_model import RLPolicy, RLPolicyConfig
from fewstep.policy.rl.recipe import PAPER_TASKS, OfflineRecipe, paper_recipe, point_maze_recipe
from fewstep.policy.rl.train import train_offline
from fewstep.policy.rl.transitions import Transitions, terminal_episodes, tuned

FAST = ActorCriticConfig(
    eta=1.0, tau=0.05, average_from=0, average_every=1, decay=0.9, actor_rate=3e-3, critic_rate=3e-3
)
TINY = OfflineRecipe(
    method="bc",
    hidden=32,
    depth=1,
    levels=3,
    state_mode="identity",
    learning=FAST,
    batch_size=64,
    updates=6,
    validate_every=3,
    decay=False,
)


def bandit(count: int = 400) -> Episodes:
    """One step each: half of the actions near −½ gain nothing, the others, near ½, gain 1."""
    rng = np.random.default_rng(0)
    good = rng.random(count) < 0.5
    action = np.where(good, 0.5, -0.5)[:, None] + 0.05 * rng.standard_normal((count, 1))
    edges = np.where(np.arange(count) < 2, np.array([-1.0, 1.0])[np.arange(count) % 2], action[:, 0])
    arrays = {
        "state": np.zeros((count, 1), np.float32),
        "action": edges[:, None].astype(np.float32),
        "reward": good.astype(np.float32),
        "terminated": np.ones(count, bool),
    }
    return Episodes(arrays, np.arange(1, count + 1))


def test_chunks_at_the_end_of_episodes() -> None:
    states, actions = np.arange(7.0)[:, None], np.arange(7.0)[:, None]
    rewards, ends = np.ones(7), np.array([4, 7])
    found = Transitions(states, actions, rewards, ends, np.array([True, False]), chunk=2, discount=0.5).all
    # The second episode was cut off: what followed its last step is not known.
    assert found.state.flatten().tolist() == [0, 1, 2, 3, 4]
    assert found.next_state.flatten().tolist() == [2, 3, 3, 3, 6]
    assert found.reward.flatten().tolist() == [1.5, 1.5, 1.5, 1.0, 1.5]
    assert found.discount.flatten().tolist() == [0.25, 0.25, 0, 0, 0.25]
    assert found.inside[3].tolist() == [True, False]
    assert found.action[3].flatten().tolist() == [3, 3]


def test_final_states_keep_the_last_steps() -> None:
    states = np.arange(5.0)[:, None]
    final = np.array([[10.0], [20.0]])
    found = Transitions(
        states, states, np.zeros(5), np.array([2, 5]), np.array([False, True]), final, discount=0.9
    ).all
    assert found.next_state.flatten().tolist() == [1, 10, 3, 4, 20]
    assert found.discount.flatten().tolist() == pytest.approx([0.9, 0.9, 0.9, 0.9, 0])


def test_tuning_of_rewards() -> None:
    reward = np.array([0.0, 1.0, 2.0])
    assert tuned(reward, "none").tolist() == [0, 1, 2]
    assert tuned(reward, "minus-one").tolist() == [-1, 0, 1]
    assert tuned(reward, "antmaze").tolist() == [-2, 2, 6]
    assert tuned(reward, "normalize").tolist() == [-1, 0, 1]
    assert tuned(np.ones(3), "normalize").tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="minus-one"):
        tuned(reward, "double")


def test_how_episodes_ended() -> None:
    arrays = {"action": np.zeros((3, 1)), "success": np.array([0, 1, 0], bool)}
    assert terminal_episodes(Episodes(arrays, np.array([2, 3]))).tolist() == [True, False]
    with pytest.raises(ValueError, match="terminated"):
        terminal_episodes(Episodes({"action": np.zeros((3, 1))}, np.array([3])))


@pytest.mark.parametrize("method", ["dql", "ofql", "fql"])
def test_the_better_half_of_a_bandit_is_found(method: str, tmp_path: Path) -> None:
    learning = FAST
    if method == "fql":
        learning = replace(FAST, gain="plain", backup="mean", next_actions="current", eta=20.0)
    updates = {"dql": 250, "ofql": 200, "fql": 150}[method]
    recipe = replace(TINY, method=method, learning=learning, updates=updates, validate_every=updates)
    told = {}

    def validate(policy: RLPolicy) -> dict[str, float]:
        actions = policy.predict({"state": torch.zeros(400, 1, 1)}, seed=1).flatten()
        assert policy.critic is not None
        best = policy.critic.least(torch.zeros(1, 1), torch.tensor([[0.5]]))
        told["value"] = float(best.detach())
        return {"good": float((actions > 0).float().mean())}

    result = train_offline(recipe, bandit(), tmp_path, validate=validate, device="cpu")
    # Cloning alone gives a half.
    assert result.metrics["good"] > 0.8
    assert told["value"] == pytest.approx(1.0, abs=0.2)
    loaded = RLPolicy.from_pretrained(str(tmp_path / "model"))
    assert validate(loaded)["good"] == result.metrics["good"]


def test_cloning_finds_the_mean(tmp_path: Path) -> None:
    recipe = replace(TINY, updates=150, learning=replace(FAST, actor_rate=1e-2))
    train_offline(recipe, bandit(), tmp_path, device="cpu")
    policy = RLPolicy.from_pretrained(str(tmp_path / "model"))
    action = float(policy.predict({"state": torch.zeros(1, 1, 1)}))
    assert action == pytest.approx(float(bandit().arrays["action"].mean()), abs=0.1)


@pytest.mark.parametrize("method", ["dql", "ofql"])
def test_a_resumed_run_equals_an_unbroken_one(method: str, tmp_path: Path) -> None:
    recipe = replace(TINY, method=method)

    def run(name: str, validate=None) -> str:
        return train_offline(recipe, bandit(50), tmp_path / name, validate=validate, device="cpu").stopped

    def interrupt(policy: RLPolicy) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    assert run("whole") == "max_steps"
    assert run("broken", interrupt) == "interrupted"
    assert not (tmp_path / "broken" / "model").exists()
    assert run("broken") == "max_steps"
    whole, broken = (
        load_state_dict_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "broken")
    )
    assert set(whole) == set(broken)
    for name, value in whole.items():
        # Statistics that a mode does not need are not a number.
        torch.testing.assert_close(value, broken[name], rtol=0, atol=0, equal_nan=True)
    with pytest.raises(ValueError, match="other settings"):
        train_offline(replace(recipe, seed=1), bandit(50), tmp_path / "whole", device="cpu")


def test_candidates_are_chosen_by_chance_with_the_critics_weights() -> None:
    torch.manual_seed(0)
    policy = RLPolicy(RLPolicyConfig({"state": (1,)}, 1, method="ofql", hidden=8, candidates=2))
    assert policy.critic is not None
    rows = 4000
    state, noise = torch.zeros(rows, 1), torch.randn(rows, 2 * 1 + 2)
    noise[:, 0], noise[:, 1] = 0.3, -0.3
    chosen = policy.choose(state, noise=lambda like: noise).detach().flatten()
    both = policy.actor.act(torch.zeros(2, 1), torch.tensor([[[0.3]], [[-0.3]]])).detach()
    value = policy.critic.least(torch.zeros(2, 1), both).flatten()
    wanted = float(torch.softmax(value, 0)[0].detach())
    share = float((chosen == both[0, 0]).float().mean())
    assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / rows) ** 0.5


def test_it_acts_as_a_policy() -> None:
    config = RLPolicyConfig(
        {"state": (3,), "environment_state": (2,)}, 2, method="dql", horizon=4, n_action_steps=3, hidden=8
    )
    policy = Policy(RLPolicy(config), device="cpu")  # type: ignore[arg-type]
    seen = {"state": np.zeros(3), "environment_state": np.zeros(2)}
    first = policy.select_action(seen)
    assert first.shape == (2,)
    policy.reset()
    np.testing.assert_array_equal(policy.select_action(seen), first)
    with pytest.raises(ValueError, match="environment_state"):
        RLPolicy(config).predict({"state": torch.zeros(1, 1, 3)})
    with pytest.raises(ValueError, match="steps"):
        RLPolicy(config).predict({}, steps=2)


def test_tasks_of_the_paper() -> None:
    assert len(PAPER_TASKS) == 20
    recipe = paper_recipe("walker2d-medium-v2")
    assert (recipe.clip, recipe.learning.eta, recipe.candidates, recipe.updates) == (1.0, 1.0, 50, 2_000_000)
    assert paper_recipe("pen-human-v1").reward == "normalize"
    maze = point_maze_recipe("medium", "ofql")
    assert (maze.reward, maze.learning.weight(1999), maze.environment) == ("minus-one", 0, "pointmaze-medium")
    assert (maze.horizon, maze.n_action_steps, maze.hindsight) == (4, 4, 20)
    with pytest.raises(ValueError, match="umaze, medium, large"):
        point_maze_recipe("tiny")
    with pytest.raises(ValueError, match="antmaze"):
        paper_recipe("ant")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"method": "sac"}, "method"),
        ({"observations": {"image": (3, 8, 8)}}, "vectors"),
        ({"action_dim": 0}, "action_dim"),
        ({"horizon": 2, "n_action_steps": 3}, "n_action_steps"),
        ({"action_low": (0.0, 0.0)}, "action_low"),
    ],
)
def test_bad_policy(options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        RLPolicyConfig(**{"observations": {"state": (1,)}, "action_dim": 1, **options})


@pytest.mark.parametrize(
    ("name", "value"),
    [("method", "sac"), ("reward", "big"), ("updates", 0), ("clip", -1.0), ("discount", 2.0)],
)
def test_bad_recipe(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        OfflineRecipe(**{name: value})  # type: ignore[arg-type]


def test_data_without_rewards_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reward"):
        train_offline(TINY, bandit(20).without("reward"), tmp_path, device="cpu")
    arrays = (np.zeros((2, 1)), np.zeros((2, 1)), np.zeros(2), np.array([2]), np.array([True]))
    with pytest.raises(ValueError, match="chunk"):
        Transitions(*arrays, chunk=0)
    with pytest.raises(ValueError, match="discount"):
        Transitions(*arrays, discount=0.0)
