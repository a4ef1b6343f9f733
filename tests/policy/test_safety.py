"""The safety filter and the watchdog: every guard, alone and in order."""

import numpy as np
import pytest

from fewstep.policy.safety import SafetyConfig, SafetyFilter, UnsafeActionError
from fewstep.policy.watchdog import ChunkWatchdog

BOX = {"low": [-1.0, 0.0], "high": [1.0, 4.0], "fps": 10}


def test_bad_actions_repeat_the_last_safe_one_and_then_raise():
    safety = SafetyFilter(SafetyConfig(**BOX, max_bad_actions=3))
    good = safety.filter(np.array([0.5, 2.0]))
    for bad in ([np.nan, 1.0], [0.1, np.inf]):
        assert np.array_equal(safety.filter(np.array(bad)), good)
    assert safety.counters.bad == 2
    with pytest.raises(UnsafeActionError, match="3 actions in a row"):
        safety.filter(np.array([np.nan, np.nan]))


def test_a_good_action_starts_the_count_anew():
    safety = SafetyFilter(SafetyConfig(**BOX, max_bad_actions=2), rest=[0.0, 1.0])
    for _ in range(5):
        assert safety.filter(np.array([np.nan, 0.0])).tolist() == safety._last[0].tolist()
        safety.filter(np.array([0.2, 0.5]))
    assert safety.counters.bad == 5


def test_nothing_is_invented_when_the_first_action_is_bad():
    with pytest.raises(UnsafeActionError, match="no safe action to hold"):
        SafetyFilter(SafetyConfig(**BOX)).filter(np.array([np.nan, 0.0]))
    with pytest.raises(UnsafeActionError, match="no safe action to hold"):
        SafetyFilter(SafetyConfig(**BOX)).hold()
    at_rest = SafetyFilter(SafetyConfig(**BOX), rest=[0.0, 1.0])
    assert at_rest.filter(np.array([np.nan, 0.0])).tolist() == [0.0, 1.0]


def test_clipping_keeps_what_is_inside():
    safety = SafetyFilter(SafetyConfig(**BOX))
    assert safety.filter(np.array([9.0, -9.0])).tolist() == [1.0, 0.0]
    assert safety.filter(np.array([0.1, 3.9])).tolist() == [0.1, 3.9]
    assert safety.counters.clipped == 1
    one_sided = SafetyFilter(SafetyConfig(low=[-np.inf], high=[1.0], fps=10))
    assert one_sided.filter(np.array([-1e9])).tolist() == [-1e9]


def test_the_rate_limit_holds_for_every_entry_and_step():
    speeds = [2.0, 50.0]
    safety = SafetyFilter(SafetyConfig(**BOX, v_max=speeds), rest=[0.0, 0.0])
    rng = np.random.default_rng(0)
    path = [np.zeros(2)]
    for _ in range(200):
        path.append(safety.filter(rng.normal(0, 5, 2)))
    moved = np.abs(np.diff(path, axis=0))
    assert (moved <= np.array(speeds) / 10 + 1e-12).all()
    assert (moved[:, 0] > 0.2 - 1e-9).any()
    assert safety.counters.slowed > 0
    assert np.array_equal(path, np.clip(path, BOX["low"], BOX["high"]))


def test_clipping_comes_before_the_rate_limit():
    """The other way round a wish far outside would turn a small step into the largest allowed one."""
    safety = SafetyFilter(SafetyConfig(low=[0.0], high=[1.0], fps=10, v_max=5.0), rest=[0.9])
    assert safety.filter(np.array([100.0]))[0] == 1.0
    assert (safety.counters.clipped, safety.counters.slowed) == (1, 0)


def test_without_a_rest_position_the_first_action_is_free_and_reset_frees_it_again():
    safety = SafetyFilter(SafetyConfig(**BOX, v_max=1.0))
    assert safety.filter(np.array([1.0, 4.0])).tolist() == [1.0, 4.0]
    assert safety.filter(np.array([-1.0, 0.0])).tolist() == pytest.approx([0.9, 3.9])
    safety.reset()
    assert safety.filter(np.array([-1.0, 0.0])).tolist() == [-1.0, 0.0]


def test_environments_are_reset_one_by_one():
    safety = SafetyFilter(SafetyConfig(**BOX, v_max=1.0, max_bad_actions=2), n_envs=3, rest=[0.0, 2.0])
    safety.filter(np.array([[1.0, 2.0], [1.0, 2.0], [np.nan, 2.0]]))
    safety.filter(np.array([[1.0, 2.0], [1.0, 2.0], [0.0, 2.0]]))
    safety.reset([1])
    out = safety.filter(np.array([[1.0, 2.0], [1.0, 2.0], [0.0, np.nan]]))
    assert out[:, 0].tolist() == pytest.approx([0.3, 0.1, 0.0])
    with pytest.raises(UnsafeActionError, match=r"environments \[2\]"):
        safety.filter(np.array([[0.0, 2.0], [0.0, 2.0], [np.nan, 2.0]]))
    with pytest.raises(ValueError, match=r"0\.\.2"):
        safety.reset([3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_shape_and_dtype_are_kept_and_the_input_is_not_touched(dtype):
    safety = SafetyFilter(SafetyConfig(**BOX), n_envs=2)
    action = np.full((2, 2), 9, dtype)
    out = safety.filter(action)
    assert out.dtype == dtype
    assert out.shape == (2, 2)
    assert (action == 9).all()
    out[:] = 77
    assert safety.hold().max() <= 4


@pytest.mark.parametrize("shape", [(3,), (1,), (2, 2), (1, 3), (1, 1, 2), ()])
def test_mismatched_dimensions_are_refused(shape):
    with pytest.raises(ValueError, match=r"action must have the shape \(1, 2\) or \(2,\)"):
        SafetyFilter(SafetyConfig(**BOX)).filter(np.zeros(shape))


def test_a_single_action_does_not_serve_several_environments():
    with pytest.raises(ValueError, match=r"\(3, 2\), got \(2,\)"):
        SafetyFilter(SafetyConfig(**BOX), n_envs=3).filter(np.zeros(2))
    with pytest.raises(TypeError, match="numbers"):
        SafetyFilter(SafetyConfig(**BOX)).filter(np.array(["a", "b"]))


@pytest.mark.parametrize(
    "changes",
    [
        {"low": [0.0, 0.0, 0.0]},
        {"low": [2.0, 0.0]},
        {"low": [np.nan, 0.0]},
        {"fps": 0},
        {"fps": float("nan")},
        {"v_max": -1.0},
        {"v_max": [1.0, 1.0, 1.0]},
        {"v_max": float("nan")},
        {"max_bad_actions": 0},
        {"deadline": 0.0},
    ],
)
def test_limits_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match="|".join(["low", "fps", "v_max", "max_bad_actions", "deadline"])):
        SafetyConfig(**{**BOX, **changes})


@pytest.mark.parametrize("rest", [[0.0], [0.0, 9.0], [np.nan, 0.0]])
def test_rest_must_be_safe(rest):
    with pytest.raises(ValueError, match="rest must"):
        SafetyFilter(SafetyConfig(**BOX), rest=rest)


class Clock:
    """Time that passes when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_watchdog(execute: int = 2) -> tuple[ChunkWatchdog, Clock]:
    clock = Clock()
    safety = SafetyFilter(SafetyConfig(low=[-9.0], high=[9.0], fps=10, deadline=0.1), rest=[0.0])
    return ChunkWatchdog(safety, execute, clock), clock


def give(watchdog: ChunkWatchdog, clock: Clock, seconds: float, *actions: float) -> bool:
    watchdog.start()
    clock.now += seconds
    return watchdog.offer(np.array(actions, float)[:, None])


def test_a_late_chunk_is_dropped_the_old_one_goes_on_and_then_holds():
    watchdog, clock = make_watchdog()
    assert watchdog.wants_chunk
    assert give(watchdog, clock, 0.0999, 1, 2, 3, 4)
    assert not watchdog.wants_chunk
    assert [float(watchdog.next_action()[0]) for _ in range(2)] == [1, 2]
    assert watchdog.wants_chunk
    assert not give(watchdog, clock, 0.1001, 7, 8, 9)
    assert [float(watchdog.next_action()[0]) for _ in range(4)] == [3, 4, 4, 4]
    counters = watchdog.safety.counters
    assert (counters.late, counters.held, counters.actions) == (1, 2, 6)
    assert give(watchdog, clock, 0.05, 5, 6)
    assert float(watchdog.next_action()[0]) == 5


def test_before_the_first_chunk_the_robot_rests_and_reset_forgets():
    watchdog, clock = make_watchdog(execute=1)
    assert float(watchdog.next_action()[0]) == 0
    give(watchdog, clock, 0, 5, 6)
    watchdog.next_action()
    watchdog.reset()
    assert watchdog.wants_chunk
    assert float(watchdog.next_action()[0]) == 0


def test_chunks_that_do_not_fit_are_refused():
    watchdog, _ = make_watchdog()
    with pytest.raises(RuntimeError, match="start"):
        watchdog.offer(np.zeros((2, 1)))
    watchdog.start()
    for shape in [(1, 1), (2, 2), (2,), (2, 1, 1)]:
        with pytest.raises(ValueError, match="at least 2 steps, 1"):
            watchdog.offer(np.zeros(shape))
    with pytest.raises(ValueError, match="one environment"):
        ChunkWatchdog(SafetyFilter(SafetyConfig(**BOX), n_envs=2), 1)
    with pytest.raises(ValueError, match="execute"):
        ChunkWatchdog(SafetyFilter(SafetyConfig(**BOX)), 0)
