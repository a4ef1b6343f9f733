"""Demonstrations by a policy: its episodes taken down as a recorder's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.policy.envs.spec import EnvSpec
from fewstep.policy.evaluation import Acting
from fewstep.policy.recorder import Recorder
from fewstep.policy.results import Episode

if TYPE_CHECKING:
    import gymnasium


def record_episodes(
    policy: Acting,
    env: EnvSpec,
    seeds: Sequence[int],
    recorder: Recorder,
    only_success: bool = False,
    on_episode: Callable[[Episode, bool], object] | None = None,
) -> int:
    """Run one episode per seed and take down what was seen, done and gained.

    An episode that breaks, or that does not solve the task when only those that do are wanted, is left out.
    "done" says of a step that the episode ended by itself there, not by its limit of time.

    Args:
        policy: what acts; slot 0 is used.
        env: the environment.
        seeds: of the episodes, below the environment's `first_test_seed`.
        recorder: of its fps.
        only_success: leave out episodes that do not solve the task.
        on_episode: is told of every episode, and whether it was kept.

    Returns:
        How many episodes were kept.

    Raises:
        ValueError: a seed is negative or belongs to the tests, success is asked of an environment that does
            not say it, or the policy's actions have the wrong shape.
        ImportError: if a package of the extra [envs] is not installed.
    """
    if not seeds or min(seeds) < 0 or max(seeds) >= env.first_test_seed:
        raise ValueError(
            f"seeds must lie in 0..{env.first_test_seed - 1}, as later ones are for tests, got "
            f"{f'{min(seeds)}..{max(seeds)}' if seeds else 'none'}"
        )
    if only_success and not env.has_success:
        raise ValueError(f"{env.name} does not say whether an episode solves its task")
    world, kept = env.make(), 0
    try:
        for seed in seeds:
            episode = _run(policy, env, world, seed, recorder)
            wanted = episode.problem is None and (bool(episode.success) or not only_success)
            if wanted:
                recorder.end_episode(success=episode.success)
            else:
                recorder.discard_episode()
            kept += wanted
            if on_episode is not None:
                on_episode(episode, wanted)
    finally:
        world.close()
    return kept


def _run(
    policy: Acting, env: EnvSpec, world: gymnasium.Env[Any, Any], seed: int, recorder: Recorder
) -> Episode:
    seen, _ = world.reset(seed=seed)
    policy.reset([0], [seed])
    rewards: list[float] = []
    success, problem, over = False, None, False
    while not over and problem is None:
        action = np.asarray(policy.act({name: value[None] for name, value in seen.items()}, [0]), np.float64)
        if action.shape != (1, env.action_dim):
            raise ValueError(
                f"the policy's actions have shape {action.shape}; {env.name} needs (1, {env.action_dim})"
            )
        if not np.isfinite(action).all():
            problem = "the policy's action is not finite"
            break
        after, reward, terminated, truncated, info = world.step(action[0])
        problem = info.get("problem")
        recorder.add(seen, action[0].astype(np.float32), reward=float(reward), done=bool(terminated))
        rewards.append(float(reward))
        success = success or bool(info.get("success", False))
        over = terminated or truncated or len(rewards) >= env.max_steps
        seen = after
    score = {"max reward": max(rewards, default=0.0), "success": float(success)}
    total = float(np.sum(rewards, dtype=np.float64))
    solved = success if env.has_success else None
    return Episode(seed, score.get(env.score, total), total, len(rewards), solved, problem)
