"""Evaluation: many episodes side by side, each as if it ran alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from fewstep.policy.envs.spec import EnvSpec
from fewstep.policy.results import Episode, Results

if TYPE_CHECKING:
    import gymnasium


@runtime_checkable
class Acting(Protocol):
    """What is evaluated: it keeps its memory (past observations, planned actions) by slot.

    A slot runs one episode after another. For results that do not depend on the number of slots, a row of
    `act` must depend on its own slot's history only, and noise be drawn from `seeding.noise_seed` of the
    slot's episode seed and step.
    """

    def reset(self, indices: Sequence[int], seeds: Sequence[int], /) -> None:
        """Forget everything about some slots: new episodes begin there.

        Args:
            indices: the slots.
            seeds: of their new episodes, one each.
        """
        ...

    def act(self, obs: dict[str, np.ndarray], indices: Sequence[int], /) -> np.ndarray:
        """One action for each of some slots.

        Args:
            obs: by name, (len(indices), …), in the order of `indices`; images uint8 (n, height, width, 3).
            indices: slots whose episodes go on, ascending; finished ones are missing.

        Returns:
            (len(indices), action_dim), in the environment's units.
        """
        ...


def evaluate(
    policy: Acting,
    env: EnvSpec,
    seeds: Sequence[int],
    n_envs: int = 10,
    on_episode: Callable[[Episode], object] | None = None,
) -> Results:
    """Run one episode per seed and measure them.

    Slots hold one environment each; a slot whose episode ends takes the next seed at once. Nothing resets by
    itself, so no plan of actions runs over the end of an episode. Observations, rewards or actions that are
    not finite, and simulations that break, end their episode and are reported as its problem.

    Args:
        policy: what acts.
        env: the environment; `env.test_seeds(50)` are seeds that nothing was trained with.
        seeds: of the episodes, not negative and all different.
        n_envs: episodes side by side; the results are the same for every number.
        on_episode: is told of every finished episode, in the order in which they finish.

    Raises:
        ValueError: if there are no seeds, a seed is negative or there twice, `n_envs` is not positive, or the
            policy's actions have the wrong shape.
        ImportError: if a package of the extra [envs] is not installed.
    """
    waiting = iter(enumerate(_checked_seeds(seeds)))
    if n_envs < 1:
        raise ValueError(f"n_envs is {n_envs}; it must be at least 1")
    started = time.perf_counter()
    slots: list[Slot] = []
    finished: dict[int, Episode] = {}
    clock = _Clock()
    try:
        for _ in range(min(n_envs, len(seeds))):
            slots.append(Slot(env))
        while _begin(policy, slots, waiting):
            for slot in _tick(policy, slots, clock):
                episode = slot.episode()
                finished[slot.number] = episode
                if on_episode is not None:
                    on_episode(episode)
    finally:
        for slot in slots:
            slot.env.close()
    episodes = tuple(finished[number] for number in range(len(seeds)))
    return Results(env.name, episodes, clock.per_action, time.perf_counter() - started)


class Slot:
    """One environment and the episode that runs in it.

    Args:
        spec: of the environment.
        picture_side: of its pictures, in pixels; None when nothing is shown.
    """

    def __init__(self, spec: EnvSpec, picture_side: int | None = None) -> None:
        self.spec = spec
        self.env: gymnasium.Env[Any, Any] = spec.make(picture_side)
        self.running = False
        self.number = self.seed = 0
        self.observation: dict[str, np.ndarray] = {}
        self.rewards: list[float] = []
        self.success = self.terminated = False
        self.problem: str | None = None

    def begin(self, number: int, seed: int) -> None:
        """Start the next episode.

        Args:
            number: its place among the seeds.
            seed: its own.
        """
        self.number, self.seed = number, seed
        self.rewards, self.success, self.terminated = [], False, False
        self.observation, info = self.env.reset(seed=seed)
        self.problem = self._problem(info)
        self.running = True

    def advance(self, action: np.ndarray) -> None:
        """Carry out an action, and notice when the episode is over.

        Args:
            action: (action_dim,).
        """
        if not np.isfinite(action).all():
            self.problem, self.running = f"the policy's action is not finite: {action.tolist()}", False
            return
        self.observation, reward, terminated, truncated, info = self.env.step(action)
        self.problem = self._problem(info, float(reward))
        if self.problem is not None:
            self.running = False
            return
        self.rewards.append(float(reward))
        self.success = self.success or bool(info.get("success", False))
        self.terminated = bool(terminated)
        # An environment without a limit of its own must not run for ever.
        cut_off = truncated or len(self.rewards) >= self.spec.max_steps
        self.running = not (terminated or cut_off)

    def episode(self) -> Episode:
        """The numbers of the episode so far."""
        success = self.success and self.problem is None if self.spec.has_success else None
        total = float(np.sum(self.rewards, dtype=np.float64))
        if self.spec.score == "max reward":
            score = max(self.rewards, default=0.0)
        else:
            score = float(bool(success)) if self.spec.score == "success" else total
        return Episode(self.seed, score, total, len(self.rewards), success, self.problem)

    def _problem(self, info: dict[str, Any], reward: float = 0.0) -> str | None:
        if info.get("problem") is not None:
            return str(info["problem"])
        for name, values in self.observation.items():
            if not np.isfinite(values).all():
                return f"the environment's observation {name!r} is not finite"
        return None if np.isfinite(reward) else f"the environment's reward is {reward}"


@dataclass
class _Clock:
    """Time spent in the policy."""

    seconds: float = 0.0
    actions: int = 0

    @property
    def per_action(self) -> float:
        return self.seconds / max(self.actions, 1)


def ask(policy: Acting, slots: Sequence[Slot], indices: Sequence[int]) -> np.ndarray:
    """The policy's actions for some slots.

    Args:
        policy: what acts.
        slots: all of them.
        indices: those that are asked for.

    Returns:
        (len(indices), action_dim) float64, a copy.

    Raises:
        ValueError: if the policy gives another shape.
    """
    names = slots[indices[0]].observation
    batch = {name: np.stack([slots[i].observation[name] for i in indices]) for name in names}
    actions = np.array(policy.act(batch, indices), dtype=np.float64)
    wanted = (len(indices), slots[0].spec.action_dim)
    if actions.shape != wanted:
        raise ValueError(
            f"the policy's actions have shape {actions.shape}; {slots[0].spec.name} needs {wanted}"
        )
    return actions


def _begin(policy: Acting, slots: Sequence[Slot], waiting: Iterator[tuple[int, int]]) -> bool:
    """Fill free slots with the next episodes; False when nothing is left to run."""
    fresh = []
    for index, slot in enumerate(slots):
        if not slot.running and (following := next(waiting, None)) is not None:
            slot.begin(*following)
            fresh.append(index)
    if fresh:
        policy.reset(fresh, [slots[i].seed for i in fresh])
    return bool(fresh) or any(slot.running for slot in slots)


def _tick(policy: Acting, slots: Sequence[Slot], clock: _Clock) -> Iterator[Slot]:
    """One action in every running slot; gives the slots whose episodes ended."""
    for slot in slots:
        if slot.running and slot.problem is not None:  # broken from its first observation on
            slot.running = False
            yield slot
    indices = [index for index, slot in enumerate(slots) if slot.running]
    if not indices:
        return
    before = time.perf_counter()
    actions = ask(policy, slots, indices)
    clock.seconds += time.perf_counter() - before
    clock.actions += len(indices)
    for index, action in zip(indices, actions, strict=True):
        slots[index].advance(action)
        if not slots[index].running:
            yield slots[index]


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    checked = [int(seed) for seed in seeds]
    if not checked:
        raise ValueError("seeds is empty; there must be at least one episode")
    if min(checked) < 0:
        raise ValueError(f"seed {min(checked)} is negative")
    if len(set(checked)) < len(checked):
        twice = next(seed for seed in checked if checked.count(seed) > 1)
        raise ValueError(f"seed {twice} is there twice, and would count one episode as two")
    return checked
