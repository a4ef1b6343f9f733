"""Hindsight: pieces of episodes whose goal is a place that they reached."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fewstep.policy.envs.registry import env_spec
from fewstep.policy.envs.spec import Goals
from fewstep.policy.episodes import Episodes
from fewstep.policy.rl.hindsight import with_hindsight
from fewstep.policy.rl.recipe import OfflineRecipe
from fewstep.policy.rl.train import train_offline

GOALS = Goals("state", (0, 2), (3, 5), 0.3)


def wandered(lengths: tuple[int, ...] = (30, 40), *, followed: bool = True, pace: float = 0.2) -> Episodes:
    """Random walks with a goal that nobody reaches: place, a number that must stay, goal."""
    rng = np.random.default_rng(0)
    steps = sum(lengths)
    ends = np.cumsum(lengths)
    path = np.cumsum(rng.normal(size=(steps + 1, 2)) * pace, axis=0)
    rest = np.column_stack([np.arange(steps + 1), np.full((steps + 1, 2), 99.0)])
    state = np.column_stack([path, rest]).astype(np.float32)
    arrays = {
        "state": state[:-1],
        "next_state": state[1:],
        "action": rng.normal(size=(steps, 2)).astype(np.float32),
        "reward": np.zeros(steps, np.float32),
        "terminated": np.zeros(steps, bool),
    }
    if not followed:
        del arrays["next_state"]
    return Episodes(arrays, ends, fps=10.0)


def distance(states: np.ndarray) -> np.ndarray:
    return np.linalg.norm(states[:, :2] - states[:, 3:5], axis=1)


def test_pieces_end_where_their_goal_is_first_reached() -> None:
    given = wandered()
    made = with_hindsight(given, GOALS, copies=20)
    assert len(made) > 2 + 30
    assert made.fps == 10.0
    last = made.ends - 1
    reached = distance(made.arrays["next_state"]) <= GOALS.radius
    # Arrived in the last step of every piece and in no other; rewards and ends say the same.
    pieces = np.arange(made.steps) >= given.steps
    assert np.array_equal(np.flatnonzero(reached), last[2:])
    assert np.array_equal(np.flatnonzero(made.arrays["reward"]), last[2:])
    assert np.array_equal(np.flatnonzero(made.arrays["terminated"]), last[2:])
    assert set(made.arrays["reward"][reached]) == {1.0}
    assert (distance(made.arrays["state"][pieces]) > GOALS.radius).mean() > 0.9
    # Step by step they are the walk itself: the number that counts steps, actions, what followed.
    counted = made.arrays["state"][:, 2].astype(int)
    assert np.array_equal(made.arrays["action"], given.arrays["action"][counted])
    assert np.array_equal(made.arrays["state"][:, :2], given.arrays["state"][counted, :2])
    assert np.array_equal(made.arrays["next_state"][:, :3], given.arrays["next_state"][counted, :3])
    for number in range(2, len(made)):
        piece = made.episode(number)
        assert np.array_equal(np.diff(piece["state"][:, 2]), np.ones(len(piece["state"]) - 1))
        assert len(np.unique(np.concatenate([piece["state"], piece["next_state"]])[:, 3:], axis=0)) == 1
        assert distance(piece["state"][:1])[0] > GOALS.radius


def test_given_episodes_stay_as_they_are() -> None:
    given = wandered()
    before = {name: array.copy() for name, array in given.arrays.items()}
    made = with_hindsight(given, GOALS, copies=5)
    for name, array in before.items():
        assert np.array_equal(given.arrays[name], array)
        assert np.array_equal(made.arrays[name][: given.steps], array)
    assert np.array_equal(with_hindsight(given, GOALS, copies=0).arrays["state"], before["state"])


def test_the_same_seed_gives_the_same_pieces() -> None:
    first, again, other = (with_hindsight(wandered(), GOALS, copies=5, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.arrays["state"], again.arrays["state"])
    assert not np.array_equal(first.ends, other.ends)


def test_without_following_states_goals_are_places_seen_later() -> None:
    made = with_hindsight(wandered(followed=False), GOALS, copies=20)
    seen = wandered().arrays["state"][:, :2]
    goals = made.arrays["state"][70:, 3:5]
    assert all((seen == goal).all(axis=1).any() for goal in goals)
    # The step after the last one seen is not known, so no piece ends with an episode's last step.
    assert not {29, 69} & set(made.arrays["state"][70:, 2].astype(int))


def test_who_never_moves_teaches_nothing_new() -> None:
    still = wandered(pace=1e-3)
    assert len(with_hindsight(still, GOALS, copies=5)) == len(still)


@pytest.mark.parametrize("name", ["pointmaze-umaze", "antmaze-umaze"])
def test_mazes_say_where_place_and_goal_are(name: str) -> None:
    pytest.importorskip("gymnasium_robotics", reason="pip install 'fewstep-policy[envs]'")
    spec = env_spec(name)
    goals = spec.goals
    assert goals is not None
    env = spec.make()
    maze: Any = env.unwrapped
    observation, _ = env.reset(seed=3)
    state = observation[goals.observation]
    np.testing.assert_allclose(state[slice(*goals.goal)], maze.goal, atol=1e-6)
    env.action_space.seed(0)
    for _ in range(20):
        observation, *_ = env.step(env.action_space.sample())
    body = getattr(maze, "point_env", None) or maze.ant_env
    np.testing.assert_allclose(
        observation[goals.observation][slice(*goals.place)], body.data.qpos[:2], atol=1e-6
    )
    for share, reached in ((0.999, True), (1.001, False)):
        there = maze.goal + np.array([share * goals.radius, 0.0])
        assert maze.compute_terminated(there, maze.goal, {}) == reached
    env.close()


def test_hindsight_needs_goals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hindsight needs an environment with goals, got ''"):
        train_offline(OfflineRecipe(hindsight=1), wandered(), tmp_path, device="cpu")
    with pytest.raises(ValueError, match="hindsight must not be negative"):
        OfflineRecipe(hindsight=-1)
    with pytest.raises(ValueError, match="copies"):
        with_hindsight(wandered(), GOALS, copies=-1)
    with pytest.raises(ValueError, match="no action"):
        with_hindsight(wandered().without("action"), GOALS, copies=1)
