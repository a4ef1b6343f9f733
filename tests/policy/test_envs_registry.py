"""Every environment by name: the facts of its specification, the maze's controller, refusals."""

import os
import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box

pytest.importorskip("gymnasium_robotics", reason="pip install 'fewstep-policy[envs]'")

from tests.policy.scripted import Random, Waypoints

from fewstep.policy.envs import spec as spec_module
from fewstep.policy.envs.registry import env_names, env_spec, make
from fewstep.policy.evaluation import evaluate


def bare(env: gymnasium.Env[Any, Any]) -> Any:
    """The environment below its wrappers, with attributes of its own."""
    return env.unwrapped


@pytest.mark.parametrize("name", env_names())
def test_specifications_say_what_the_environments_do(name):
    spec, env = env_spec(name), make(name)
    observation, _ = env.reset(seed=1)
    assert {key: values.shape for key, values in observation.items()} == dict(spec.observation_shapes)
    assert env.observation_space.contains(observation)
    assert isinstance(env.action_space, Box)
    np.testing.assert_array_equal(env.action_space.low, np.asarray(spec.action_low, np.float32))
    np.testing.assert_array_equal(env.action_space.high, np.asarray(spec.action_high, np.float32))
    env.action_space.seed(0)
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert type(reward) is float
    assert {type(terminated), type(truncated)} == {bool}
    assert ("success" in info) == spec.has_success
    registered = env.spec
    assert (registered.max_episode_steps if registered else bare(env).max_steps) == spec.max_steps
    body = getattr(env.unwrapped, "point_env", None) or getattr(env.unwrapped, "ant_env", env.unwrapped)
    step = getattr(body, "dt", None) or 1 / env.metadata["render_fps"]
    assert spec.fps == pytest.approx(1 / step)
    env.close()


@pytest.mark.parametrize(("size", "steps"), [("umaze", 60.0), ("medium", 118.0), ("large", 184.0)])
def test_the_waypoint_controller_solves_the_mazes_in_the_recorded_number_of_steps(size, steps):
    spec = env_spec(f"pointmaze-{size}")
    results = evaluate(Waypoints(bare(make(spec.name)).maze), spec, spec.test_seeds(12), 6)
    assert results.successes == [True] * 12
    # The data's report has the mean of forty episodes; twelve differ by their standard error.
    assert abs(np.mean(results.lengths) - steps) < 3 * np.std(results.lengths) / np.sqrt(11)
    assert results.returns == [1.0] * 12


def test_a_maze_ends_at_its_goal_and_keeps_it():
    spec = env_spec("pointmaze-umaze")
    env, policy = make(spec.name), Waypoints(bare(make(spec.name)).maze)
    observation, _ = env.reset(seed=4)
    goal = observation["state"][4:]
    policy.reset([0], [4])
    terminated = False
    while not terminated:
        rows = {"state": observation["state"][None]}
        observation, reward, terminated, truncated, info = env.step(policy.act(rows, [0])[0])
        np.testing.assert_array_equal(observation["state"][4:], goal)
        assert (reward, terminated) == ((1.0, True) if info["success"] else (0.0, False))
        assert not truncated
    assert np.linalg.norm(observation["state"][:2] - goal) <= 0.45


@pytest.mark.parametrize("name", ["pusht", "pointmaze-medium", "antmaze-umaze", "adroit-pen", "hopper"])
def test_reused_environments_give_the_episodes_of_fresh_ones(name):
    spec = env_spec(name)
    policy = Random(spec.action_low, spec.action_high)
    from dataclasses import replace

    short = replace(spec, max_steps=40)
    reused = evaluate(policy, short, spec.test_seeds(5), 1)
    assert reused.episodes == evaluate(policy, short, spec.test_seeds(5), 5).episodes
    assert len(set(reused.returns)) > (1 if spec.score == "return" else 0)


def test_the_ants_state_knows_where_it_is():
    env = make("antmaze-umaze")
    observation, _ = env.reset(seed=3)
    np.testing.assert_allclose(observation["state"][:2], bare(env).data.qpos[:2], rtol=1e-6)
    np.testing.assert_allclose(observation["state"][-2:], bare(env).goal, rtol=1e-6)


def test_a_simulation_that_breaks_says_so():
    env = make("halfcheetah")
    env.reset(seed=0)
    bare(env).data.qvel[:] = np.inf
    _, _, _, _, info = env.step(np.zeros(6))
    assert info["problem"] == "the simulation became unstable: bad QVEL"
    env.reset(seed=0)
    assert "problem" not in env.step(np.zeros(6))[4]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make("pushtt"), "environment 'pushtt' is unknown; there are pusht, pointmaze-umaze"),
        (lambda: make("FetchReach-v4"), "FetchReach-v4 does not work with MuJoCo 4"),
        (lambda: make("FrankaKitchen-v1"), "need mujoco<4"),
        (lambda: make("hopper", "pixels"), "obs is 'pixels'; hopper has state only"),
        (lambda: make("ant", goal_pose=(1, 2, 3)), "goal_pose is a setting of pusht; ant has none"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "package"),
    [("pusht", "gym_pusht"), ("pointmaze-umaze", "gymnasium_robotics"), ("hopper", "mujoco")],
)
def test_a_missing_package_names_the_command(name, package, monkeypatch):
    import importlib

    real = importlib.import_module

    def missing(module, *rest):
        if module.split(".")[0] == package:
            raise ImportError(f"No module named {package!r}")
        return real(module, *rest)

    monkeypatch.setattr(spec_module.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'fewstep-policy\[envs\]'"):
        make(name)


@pytest.mark.parametrize(("given", "expected"), [(None, "egl"), ("osmesa", "osmesa")])
@pytest.mark.skipif(sys.platform != "linux", reason="EGL is chosen on Linux only")
def test_the_renderer_is_chosen_only_where_nobody_has(given, expected):
    code = (
        "import os; from fewstep.policy.envs.spec import choose_renderer; choose_renderer();"
        "print(os.environ['MUJOCO_GL'])"
    )
    unset = ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY")
    surroundings = {key: value for key, value in os.environ.items() if key not in unset}
    if given is not None:
        surroundings["MUJOCO_GL"] = given
    run = subprocess.run(
        [sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=False
    )
    assert run.stdout.strip() == expected, run.stderr
