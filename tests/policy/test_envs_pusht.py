"""Push-T: what is observed, exact starts, pictures from states, the goal."""

import math

import numpy as np
import pytest

pytest.importorskip("gym_pusht", reason="pip install 'fewstep-policy[envs]'")

from fewstep.policy.envs.pusht import PushT
from fewstep.policy.envs.pusht_geometry import keypoints_of_states, observations_of_states
from fewstep.policy.envs.pusht_pictures import Painter, render_states
from fewstep.policy.envs.registry import env_spec, make

# Clear of the block, so that nothing is in contact at the start.
APART = np.array([60.0, 450.0, 250.0, 200.0, 1.3])


def walk(env, actions):
    """Observations and states along some actions."""
    seen = []
    for action in actions:
        observation, reward, *_ = env.step(action)
        seen.append((observation, env.state, reward))
    return seen


def table(env):
    assert isinstance(env.unwrapped, PushT)
    return env.unwrapped


def targets(count, seed=0):
    return np.random.default_rng(seed).uniform(100, 400, (count, 2))


def test_keypoints_are_those_of_gym_pusht():
    import gym_pusht  # noqa: F401
    import gymnasium

    official = gymnasium.make("gym_pusht/PushT-v0", obs_type="environment_state_agent_pos")
    ours = make("pusht", "keypoints")
    theirs, _ = official.reset(seed=7)
    seen, _ = ours.reset(seed=7)
    for action in targets(40):
        np.testing.assert_allclose(seen["environment_state"], theirs["environment_state"], rtol=1e-6)
        np.testing.assert_allclose(seen["state"], theirs["agent_pos"], rtol=1e-6)
        exact = keypoints_of_states(table(ours).state[None])[0]
        np.testing.assert_allclose(exact, theirs["environment_state"], atol=1e-10)
        theirs, reward, *_ = official.step(action)
        seen, ours_reward, *_ = ours.step(action)
        # The simulator's own sum of areas depends, in its last bits, on memory addresses.
        assert ours_reward == pytest.approx(reward, rel=1e-12)


@pytest.mark.parametrize("obs", ["state", "keypoints", "pixels"])
def test_recorded_states_give_the_observations_of_the_environment(obs):
    env = make("pusht", obs)
    env.reset(seed=3)
    seen = walk(env, targets(5))
    made = observations_of_states(np.stack([state for _, state, _ in seen]), obs)
    assert {name: values.shape[1:] for name, values in made.items()} == dict(
        env_spec("pusht", obs).observation_shapes
    )
    for name, values in made.items():
        for row, (observation, _, _) in zip(values, seen, strict=True):
            assert observation[name].dtype == row.dtype
            np.testing.assert_array_equal(observation[name], row)
    assert env.observation_space.contains(seen[0][0])


def test_keypoints_do_not_jump_where_the_angle_wraps():
    states = np.array([[0, 0, 256, 256, -1e-9], [0, 0, 256, 256, 2 * math.pi + 1e-9]])
    first, second = keypoints_of_states(states)
    np.testing.assert_allclose(first, second, atol=1e-6)


def test_keypoints_keep_float32_and_take_whole_numbers():
    state = np.array([[0, 0, 100, 200, 1]])
    assert keypoints_of_states(state.astype(np.float32)).dtype == np.float32
    np.testing.assert_array_equal(keypoints_of_states(state), keypoints_of_states(state.astype(float)))


def test_an_exact_start_is_exact_and_its_actions_replay():
    env = PushT("state")
    first, _ = env.reset(seed=0, options={"state": APART})
    np.testing.assert_array_equal(first["state"], APART.astype(np.float32))
    recorded = [state for _, state, _ in walk(env, targets(60))]
    env.reset(seed=99, options={"state": APART})
    again = [state for _, state, _ in walk(env, targets(60))]
    np.testing.assert_array_equal(recorded, again)
    assert np.abs(recorded[-1][2:] - APART[2:]).max() > 1  # the block was pushed


def test_the_same_seed_gives_the_same_start_and_another_seed_another():
    env = make("pusht")
    first = env.reset(seed=5)[0]["environment_state"]
    np.testing.assert_array_equal(make("pusht").reset(seed=5)[0]["environment_state"], first)
    assert not np.array_equal(env.reset(seed=6)[0]["environment_state"], first)


def test_the_goal_can_be_elsewhere_and_stays_there():
    env = make("pusht", goal_pose=(356, 356, 0.5))
    on_goal = {"state": [60, 60, 356, 356, 0.5]}
    for _ in range(2):
        _, info = env.reset(seed=1, options=on_goal)
        np.testing.assert_array_equal(info["goal_pose"], [356, 356, 0.5])
        _, reward, terminated, _, info = env.step(np.array([60.0, 60.0]))
        assert terminated
        assert info["success"]
        assert reward == 1.0
        assert info["coverage"] > 0.99
    _, reward, terminated, *_ = _from(make("pusht"), on_goal).step(np.array([60.0, 60.0]))
    assert not terminated
    assert float(reward) < 0.6


def _from(env, options):
    env.reset(seed=1, options=options)
    return env


def test_coverage_does_not_depend_on_where_objects_lie_in_memory(monkeypatch):
    pymunk = pytest.importorskip("pymunk", reason="pip install 'fewstep-policy[envs]'")
    found = pymunk.Body.shapes.fget
    poses = np.random.default_rng(0).normal((60, 60, 256, 256, 0.8), (0, 0, 20, 20, 0.4), (40, 5))

    def coverages(first):
        # A body gives its shapes as a set; the order of a set of objects is that of their addresses.
        ordered = property(lambda body: sorted(found(body), key=lambda s: s.get_vertices(), reverse=first))
        monkeypatch.setattr(pymunk.Body, "shapes", ordered)
        env = PushT("state")
        return [_from(env, {"state": pose}).step(pose[:2])[4]["coverage"] for pose in poses]

    one, other = coverages(False), coverages(True)
    assert max(one) > 0.8
    assert one == other


def test_an_episode_is_cut_off_after_300_steps():
    env = make("pusht")
    env.reset(seed=0, options={"state": APART})
    ends = [env.step(APART[:2])[2:4] for _ in range(300)]
    assert ends[:-1] == [(False, False)] * 299
    assert ends[-1] == (False, True)


def test_pictures_are_those_of_the_simulator_and_show_no_action():
    env = PushT("pixels")
    env.reset(seed=2)
    different = 0.0
    for action in targets(12):
        observation, *_ = env.step(action)
        env.simulation.obs_type = "pixels"
        own = env.simulation.get_obs()
        env.simulation.obs_type = "state"
        different += np.mean(own != observation["image"])
    # A coordinate that falls on the edge of a pixel may round either way.
    assert different / 12 < 1e-4
    marked = env.simulation.render()
    red = (marked[..., 0] == 255) & (marked[..., 1] == 0)
    assert red.any()
    assert not ((observation["image"][..., 0] == 255) & (observation["image"][..., 1] < 50)).any()


def test_a_picture_depends_on_its_own_state_only():
    states = np.stack([APART, APART + np.array([100, -200, 50, 100, 2])])
    pictures = render_states(states, side=64)
    assert pictures.shape == (2, 64, 64, 3)
    np.testing.assert_array_equal(pictures[::-1], render_states(states[::-1], side=64))
    assert (pictures[0] != pictures[1]).mean() > 0.05


def test_a_picture_shows_the_goal_where_it_is():
    here, there = Painter(96)(APART), Painter(96, (400, 100, 0))(APART)
    assert (here != there).any()
    green = (here == (144, 238, 144)).all(axis=-1)
    rows, columns = np.nonzero(green)
    # The goal's corner of reference is at the picture's middle, its stem points down and left.
    assert abs(rows.mean() - 55) < 6
    assert abs(columns.mean() - 41) < 6


def test_render_needs_a_side():
    with pytest.raises(RuntimeError, match="picture_side=384"):
        make("pusht").unwrapped.render()
    env = make("pusht", picture_side=128)
    env.reset(seed=0)
    picture = env.render()
    assert isinstance(picture, np.ndarray)
    assert picture.shape == (128, 128, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("pusht", "lidar"), "obs is 'lidar'; Push-T has state, keypoints, pixels"),
        (lambda: make("pusht", goal_pose=(1, 2)), "goal_pose is .* three finite numbers"),
        (lambda: make("pusht", goal_pose=(1, 2, math.nan)), "goal_pose"),
        (lambda: make("pusht", picture_side=7), "picture_side is 7; it must lie in 32..1920"),
        (lambda: PushT().reset(options={"pose": 1}), "option 'pose' is unknown; Push-T knows 'state'"),
        (lambda: PushT().reset(options={"state": [1, 2]}), "five finite numbers"),
        (lambda: keypoints_of_states(np.zeros((3, 4))), r"shape \(3, 4\); Push-T's are \(n, 5\)"),
        (lambda: keypoints_of_states(np.full((1, 5), np.nan)), "not finite"),
        (lambda: render_states(np.zeros(5)), r"shape \(5,\)"),
        (lambda: _from(PushT(), {}).step(np.array([np.nan, 1])), "action is .* two finite numbers"),
        (lambda: _from(PushT(), {}).step(np.zeros(3)), "action is .* two finite numbers"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
