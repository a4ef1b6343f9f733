"""An episode that is watched while it runs, and in which somebody may take over."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from fewstep.policy.envs.spec import EnvSpec
from fewstep.policy.evaluation import Acting, Slot, ask
from fewstep.policy.results import Episode
from fewstep.policy.rollouts import Planning, draw_chunk


@dataclass(frozen=True)
class Taken:
    """An action that was carried out, as `Recorder.add` takes it.

    Attributes:
        observation: what was seen before it.
        action: in the environment's units.
        reward: that it gave.
        done: whether the episode ended by itself with it, not by its limit of time.
    """

    observation: dict[str, np.ndarray]
    action: np.ndarray
    reward: float
    done: bool


class LiveEpisode:
    """One episode that goes on action by action: the policy's, or somebody else's.

    Where actions are positions in the picture (Push-T), what is planned or wanted is drawn. After a foreign
    action the policy begins anew from what it sees then: its plan was made for another course.

    Args:
        policy: what acts; slot 0 is used.
        env: the environment.
        seed: of the episode.
        picture_side: in pixels.

    Attributes:
        taken: the latest action; None before the first, and where the simulation broke at it.

    Raises:
        ValueError: the seed is negative, or the side is out of its range.
        ImportError: a package of the extra [envs] is not installed.
    """

    def __init__(self, policy: Acting, env: EnvSpec, seed: int, picture_side: int = 384) -> None:
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative")
        self.policy, self.env, self.seed = policy, env, seed
        self._slot = Slot(env, picture_side)
        self._slot.begin(0, seed)
        self._policy_is_in = False
        self._seconds, self._actions = 0.0, 0
        self.taken: Taken | None = None

    def __enter__(self) -> LiveEpisode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def running(self) -> bool:
        """Whether there is a next step."""
        return self._slot.running and self._slot.problem is None

    @property
    def steps(self) -> int:
        """Actions so far."""
        return len(self._slot.rewards)

    @property
    def seconds_per_action(self) -> float:
        """Wall time in the policy, over its actions so far."""
        return self._seconds / max(self._actions, 1)

    def step(self, action: Float[np.ndarray, " numbers"] | None = None) -> UInt8[np.ndarray, "side side 3"]:
        """Carry out one action.

        Args:
            action: somebody's, in the environment's units, kept within its limits; None: the policy's.

        Returns:
            The picture in which it was decided, with what is planned.

        Raises:
            ValueError: the action is not finite or has another shape, or the episode is over.
        """
        if not self.running:
            raise ValueError("the episode is over; begin another one")
        if action is None:
            chosen = self._asked()
            plan = self.policy.plan(0) if isinstance(self.policy, Planning) else None
        else:
            chosen = self._within_limits(action)
            plan, self._policy_is_in = chosen[None], False
        frame = self._drawn(plan)
        slot = self._slot
        # Environments write the next observation into the same memory.
        seen = {name: np.array(value) for name, value in slot.observation.items()}
        slot.advance(chosen)
        self.taken = None
        if slot.problem is None:
            self.taken = Taken(seen, chosen.astype(np.float32), slot.rewards[-1], slot.terminated)
        return frame

    def frames(self, max_steps: int | None = None) -> Iterator[UInt8[np.ndarray, "side side 3"]]:
        """The policy's way to the end of the episode, the last picture included: as `roll_out` keeps them.

        Args:
            max_steps: to look at, if fewer than the episode has.
        """
        while self.running and self.steps != max_steps:
            yield self.step()
        yield self.picture()

    def picture(self) -> UInt8[np.ndarray, "side side 3"]:
        """The environment as it is now."""
        return self._drawn(None)

    def episode(self) -> Episode:
        """The numbers of the episode so far."""
        return self._slot.episode()

    def close(self) -> None:
        """Close the environment."""
        self._slot.env.close()

    def _asked(self) -> np.ndarray:
        before = time.perf_counter()
        if not self._policy_is_in:
            self.policy.reset([0], [self.seed])
            self._policy_is_in = True
        action = ask(self.policy, [self._slot], [0])[0]
        self._seconds += time.perf_counter() - before
        self._actions += 1
        return action

    def _within_limits(self, action: np.ndarray) -> np.ndarray:
        wanted = np.asarray(action, dtype=np.float64)
        if wanted.shape != (self.env.action_dim,) or not np.isfinite(wanted).all():
            raise ValueError(f"action must be {self.env.action_dim} finite numbers, got {action!r}")
        return np.clip(wanted, self.env.action_low, self.env.action_high)

    def _drawn(self, plan: np.ndarray | None) -> np.ndarray:
        frame = np.array(self._slot.env.render(), dtype=np.uint8)
        if plan is None or self.env.picture_span is None:
            return frame
        return draw_chunk(frame, plan, self.env.picture_span)
