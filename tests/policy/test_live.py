"""Episodes that somebody watches, takes over, or records."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.policy.line_world import STEPS, line_policy, line_spec
from tests.policy.tiny_policy import tiny_policy

from fewstep.policy.envs.registry import env_spec
from fewstep.policy.evaluation import evaluate
from fewstep.policy.live import LiveEpisode
from fewstep.policy.policy import Policy
from fewstep.policy.recorder import Recorder
from fewstep.policy.recording import record_episodes
from fewstep.policy.rollouts import roll_out

pytest.importorskip("gym_pusht", reason="pip install 'fewstep-policy[envs]'")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return Policy(tiny_policy(), "cpu")


def test_what_is_watched_is_what_is_kept(policy: Policy) -> None:
    spec = env_spec("pusht", "state")
    kept = roll_out(policy, spec, 100_003, 64, max_steps=9)
    with LiveEpisode(policy, spec, 100_003, 64) as live:
        np.testing.assert_array_equal(np.stack(list(live.frames(9))), kept.frames)
        assert (live.steps, live.episode()) == (9, kept.episode)
        assert live.running
        assert live.seconds_per_action > 0


def test_somebody_takes_over(policy: Policy) -> None:
    spec = env_spec("pusht", "state")
    with LiveEpisode(policy, spec, 7, 64) as live:
        live.step()
        before = live._slot.env.unwrapped.state[:2]  # pyright: ignore[reportAttributeAccessIssue]
        frame = live.step(np.array([1e6, -1e6]))
        after = live._slot.env.unwrapped.state[:2]  # pyright: ignore[reportAttributeAccessIssue]
        # To the upper right corner, which is as far as the limits go.
        assert after[0] > before[0]
        assert after[1] < before[1]
        assert (frame[:6, -6:] != live.picture()[:6, -6:]).any(), "where the hand is"
        assert policy.plan(0) is not None
        live.step()
        # The policy began anew with what it sees now, so its plan is a whole one again.
        plan = policy.plan(0)
        assert plan is not None
        assert len(plan) == policy.config.n_action_steps
        first, second = (step["state"] for step in policy._slots[0].seen)
        assert torch.equal(first, second)
        for bad in (np.array([np.nan, 0.0]), np.zeros(3)):
            with pytest.raises(ValueError, match="2 finite numbers"):
                live.step(bad)
        assert live.steps == 3
    with pytest.raises(ValueError, match="negative"):
        LiveEpisode(policy, spec, -1)


def test_recorded_episodes_are_those_of_an_evaluation(tmp_path: Path) -> None:
    policy, spec, seeds = Policy(line_policy(), "cpu"), line_spec(), range(12)  # type: ignore[arg-type]
    found = evaluate(policy, spec, seeds)
    told = []
    with Recorder(tmp_path / "all", spec.fps) as recorder:
        on_episode = lambda episode, kept: told.append(episode)  # noqa: E731
        assert record_episodes(policy, spec, seeds, recorder, on_episode=on_episode) == 12
        episodes = recorder.episodes()
    assert told == list(found.episodes)
    assert episodes.lengths.tolist() == [STEPS] * 12
    first = episodes.episode(3)
    # x' = x + a/2, and the reward is −|x'|.
    np.testing.assert_allclose(first["state"][1:], (first["state"] + first["action"] / 2)[:-1], atol=1e-6)
    np.testing.assert_allclose(
        first["reward"], -np.abs(first["state"] + first["action"] / 2)[:, 0], atol=1e-6
    )
    assert not episodes.arrays["done"].any(), "the limit of time is no end of its own"
    with Recorder(tmp_path / "good", spec.fps) as recorder:
        kept = record_episodes(policy, spec, seeds, recorder, only_success=True)
        assert 0 < kept == sum(found.successes or ()) < 12
        assert len(recorder) == kept


@pytest.mark.parametrize("seeds", [[], [-1], [5, 100_000]])
def test_seeds_of_tests_are_not_recorded(seeds: list[int], tmp_path: Path) -> None:
    with Recorder(tmp_path, 10) as recorder, pytest.raises(ValueError, match=r"0\.\.99999"):
        record_episodes(Policy(line_policy(), "cpu"), line_spec(), seeds, recorder)  # type: ignore[arg-type]
