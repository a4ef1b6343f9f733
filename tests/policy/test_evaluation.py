"""Evaluation: the same for any number of environments, nothing hidden, plans end with their episodes."""

import gymnasium
import numpy as np
import pytest
from tests.policy.scripted import Random

from fewstep.policy.envs.spec import EnvSpec
from fewstep.policy.evaluation import evaluate
from fewstep.policy.rollouts import roll_out
from fewstep.policy.seeding import noise_seed


class Drift(gymnasium.Env):
    """A number drifts by the action and by noise of the episode's seed; lengths differ by seed."""

    def __init__(self, break_at=None, break_in="state"):
        self.observation_space = gymnasium.spaces.Dict(
            {"state": gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)}
        )
        self.action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        self.break_at, self.break_in = break_at, break_in
        self.closed = False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed, 0
        self.length = int(self.np_random.integers(3, 12))
        self.place = self.np_random.normal()
        return self._seen(), {}

    def step(self, action):
        self.steps += 1
        self.place += 0.1 * float(action[0]) + 0.01 * self.np_random.normal()
        reward = float(np.exp(-abs(self.place)))
        if self._breaks and self.break_in == "reward":
            reward = float("nan")
        info: dict[str, object] = {"success": self.place > 0}
        if self._breaks and self.break_in == "info":
            info["problem"] = "the simulation became unstable: bad QACC"
        return self._seen(), reward, self.steps == self.length, False, info

    def render(self):
        return np.full((32, 32, 3), self.steps, np.uint8)

    def close(self):
        self.closed = True

    @property
    def _breaks(self):
        return (self.seed, self.steps) == self.break_at

    def _seen(self):
        broken = self._breaks and self.break_in == "state"
        return {"state": np.array([np.nan if broken else self.place, self.steps], np.float32)}


def spec(create=lambda side: Drift(), **changes):
    facts = {
        "name": "drift",
        "observation_shapes": {"state": (2,)},
        "action_low": (-1.0,),
        "action_high": (1.0,),
        "fps": 10,
        "max_steps": 100,
        "score": "max reward",
        "has_success": True,
        "first_test_seed": 1000,
        "create": create,
    }
    return EnvSpec(**{**facts, **changes})


class Watched(Random):
    """Notes what it is asked, and that a plan never outlives its episode."""

    def __init__(self):
        super().__init__([-1], [1], chunk=5)
        self.asked = []

    def act(self, obs, indices):
        self.asked.append(list(indices))
        # The environment counts the steps of its episode; so does the slot's memory.
        assert [self.steps[i] for i in indices] == obs["state"][:, 1].tolist()
        return super().act(obs, indices)


@pytest.mark.parametrize("n_envs", [1, 3, 10, 50])
def test_results_do_not_depend_on_the_number_of_environments(n_envs):
    alone = evaluate(Watched(), spec(), range(1000, 1020), n_envs=1)
    policy = Watched()
    told = []
    together = evaluate(policy, spec(), range(1000, 1020), n_envs, told.append)
    assert together.episodes == alone.episodes
    assert len(set(alone.lengths)) > 3
    assert len(set(alone.scores)) == 20
    assert sorted(told, key=lambda episode: episode.seed) == list(alone.episodes)
    assert max(len(indices) for indices in policy.asked) == min(n_envs, 20)


def test_order_of_seeds_is_kept_and_does_not_matter():
    seeds = [7, 3, 11, 5]
    forth, back = evaluate(Watched(), spec(), seeds, 2), evaluate(Watched(), spec(), seeds[::-1], 2)
    assert forth.seeds == seeds
    assert forth.episodes == back.episodes[::-1]


def test_slots_are_refilled_at_once():
    policy = Watched()
    results = evaluate(policy, spec(), range(40), n_envs=4)
    # Without refilling, slots would wait for the longest episode of each round.
    assert sum(len(indices) for indices in policy.asked) == sum(results.lengths)
    assert len(policy.asked) <= sum(results.lengths) / 4 + max(results.lengths)


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("state", "observation 'state' is not finite"),
        ("reward", "reward is nan"),
        ("info", "the simulation became unstable"),
    ],
)
def test_an_environment_that_breaks_is_reported(place, what, tmp_path):
    clean = evaluate(Watched(), spec(), range(6), 3)
    results = evaluate(Watched(), spec(lambda side: Drift((4, 2), place)), range(6), 3)
    broken = results.episodes[4]
    assert what in (broken.problem or "")
    assert broken.length == 1
    assert broken.success is False
    assert np.isfinite([broken.score, broken.total_reward]).all()
    assert results.problems == [broken]
    assert "1 broken off (seed 4" in str(results)
    assert results.summary()["problems"] == [{"seed": 4, "step": 1, "what": broken.problem}]
    others = [0, 1, 2, 3, 5]
    assert [results.episodes[i] for i in others] == [clean.episodes[i] for i in others]


def test_a_first_observation_that_is_broken_is_reported_too():
    policy = Watched()
    results = evaluate(policy, spec(lambda side: Drift((2, 0))), range(5), 2)
    assert [episode.length == 0 for episode in results.episodes] == [False, False, True, False, False]
    assert results.episodes[2].problem == "the environment's observation 'state' is not finite"
    assert len(results.episodes) == 5


def test_a_policy_that_gives_nan_is_reported():
    class Broken(Watched):
        def act(self, obs, indices):
            actions = super().act(obs, indices)
            actions[[self.seeds[i] == 1 and self.steps[i] == 3 for i in indices]] = np.nan
            return actions

    results = evaluate(Broken(), spec(), range(4), 2)
    assert [episode.problem is not None for episode in results.episodes] == [False, True, False, False]
    assert results.episodes[1].length == 2
    assert "the policy's action is not finite: [nan]" in str(results)


def test_scores_are_what_the_environment_says():
    by_score = {
        score: evaluate(Watched(), spec(score=score), range(8), 4)
        for score in ("max reward", "success", "return")
    }
    assert by_score["return"].scores == by_score["return"].returns
    assert by_score["success"].scores == [float(hit) for hit in by_score["success"].successes or []]
    assert 0 < sum(by_score["success"].scores) < 8
    best, total = by_score["max reward"].episodes[0], by_score["return"].episodes[0]
    assert best.score < total.score == best.total_reward
    assert evaluate(Watched(), spec(has_success=False), range(3)).successes is None


def test_an_environment_without_a_limit_is_cut_off():
    results = evaluate(Watched(), spec(max_steps=3), range(6), 2)
    assert results.lengths == [3] * 6


def test_environments_are_closed_even_after_an_error():
    made = []

    def create(side):
        made.append(Drift())
        return made[-1]

    class Fails(Watched):
        def act(self, obs, indices):
            raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        evaluate(Fails(), spec(create), range(3), 2)
    assert [env.closed for env in made] == [True, True]


def test_a_rollout_is_the_same_episode():
    results = evaluate(Watched(), spec(), range(5), 3)
    watched = roll_out(Watched(), spec(), 3)
    assert watched.episode == results.episodes[3]
    assert watched.frames[:, 0, 0, 0].tolist() == list(range(results.lengths[3] + 1))
    assert len(roll_out(Watched(), spec(), 3, max_steps=2).frames) == 3


def test_noise_seeds_are_far_apart():
    seeds = {noise_seed(episode, step) for episode in range(100) for step in range(100)}
    assert len(seeds) == 10_000
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = np.array([[seed >> k & 1 for k in range(63)] for seed in seeds])
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.03


class Misshapen(Watched):
    def act(self, obs, indices):
        return np.zeros((len(indices), 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluate(Watched(), spec(), []), "seeds is empty"),
        (lambda: evaluate(Watched(), spec(), [1, -2]), "seed -2 is negative"),
        (lambda: evaluate(Watched(), spec(), [1, 2, 1]), "seed 1 is there twice"),
        (lambda: evaluate(Watched(), spec(), [1], 0), "n_envs is 0; it must be at least 1"),
        (lambda: evaluate(Misshapen(), spec(), [1, 2]), r"shape \(2, 3\); drift needs \(2, 1\)"),
        (lambda: roll_out(Watched(), spec(), -1), "seed is -1"),
        (lambda: spec().test_seeds(0), "count is 0"),
        (lambda: noise_seed(-1, 0), "episode_seed is -1"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
