"""Keeping the actions of a policy within what a robot may be sent."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float


class UnsafeActionError(RuntimeError):
    """A policy gave so many unusable actions in a row that it must be stopped."""


@dataclass(frozen=True)
class SafetyConfig:
    """Limits of the actions that are passed on.

    Args:
        low: lowest action, (Da,).
        high: highest action, (Da,).
        fps: actions per second; the time between two is dt = 1/fps.
        v_max: how far each entry of the action may move per second, (Da,) or one number; None: any distance.
        max_bad_actions: consecutive actions with NaN or infinity after which `filter` raises.
        deadline: seconds that the computation of a chunk may take; None: any time.

    Raises:
        ValueError: a limit does not fit.
    """

    low: Sequence[float]
    high: Sequence[float]
    fps: float
    v_max: Sequence[float] | float | None = None
    max_bad_actions: int = 10
    deadline: float | None = None

    def __post_init__(self) -> None:
        low, high = np.asarray(self.low, np.float64), np.asarray(self.high, np.float64)
        if low.ndim != 1 or low.shape != high.shape or not low.size:
            raise ValueError(f"low and high must be (Da,) and alike, got {low.shape} and {high.shape}")
        # A robot's limits may be infinite on one side, but an order they must have.
        if not (low < high).all():
            raise ValueError(f"low must be below high everywhere, got {low.tolist()} and {high.tolist()}")
        _check_positive("fps", self.fps)
        if self.v_max is not None:
            speeds = np.asarray(self.v_max, np.float64)
            if speeds.shape not in ((), low.shape) or not (speeds > 0).all():
                raise ValueError(f"v_max must be positive, one number or {low.shape}, got {self.v_max!r}")
        if isinstance(self.max_bad_actions, bool) or not isinstance(self.max_bad_actions, int):
            raise TypeError(f"max_bad_actions must be an integer, got {self.max_bad_actions!r}")
        if self.max_bad_actions < 1:
            raise ValueError(f"max_bad_actions must be at least 1, got {self.max_bad_actions}")
        if self.deadline is not None:
            _check_positive("deadline", self.deadline)


@dataclass
class SafetyCounters:
    """How often each guard stepped in, over all environments since the filter was made.

    Attributes:
        actions: that were passed on.
        bad: with NaN or infinity, replaced by the last safe one.
        clipped: brought back between the lowest and the highest.
        slowed: shortened to what v_max allows.
        late: chunks that missed their deadline.
        held: actions repeated because no chunk was there.
    """

    actions: int = 0
    bad: int = 0
    clipped: int = 0
    slowed: int = 0
    late: int = 0
    held: int = 0


class SafetyFilter:
    """Passes actions on, one environment or several, after making them safe.

    In this order:
        NaN guard    an action that is not finite is replaced by the last safe one, or before that by the
                     rest position; after `max_bad_actions` in a row, or with nothing to hold, an error
        clip         low ≤ a ≤ high
        rate limit   |a_t − a_{t−1}| ≤ v_max·dt per entry
    `ChunkWatchdog` adds the deadline. The first action after a reset is limited in its distance from the rest
    position, and not at all without one.

    Args:
        config: the limits.
        n_envs: robots or environments that are served at once.
        rest: action that is safe at the start, (Da,); None: there is none.

    Raises:
        ValueError: n_envs is below 1, or the rest position lies outside the limits.

    Example:
        >>> safety = SafetyFilter(SafetyConfig(low=[-1.0], high=[1.0], fps=10, v_max=2.0), rest=[0.0])
        >>> safety.filter(np.array([5.0])).round(3), safety.filter(np.array([np.nan])).round(3)
        (array([0.2]), array([0.2]))
        >>> safety.counters.bad, safety.counters.clipped, safety.counters.slowed
        (1, 1, 1)
    """

    def __init__(self, config: SafetyConfig, n_envs: int = 1, rest: Sequence[float] | None = None) -> None:
        if isinstance(n_envs, bool) or not isinstance(n_envs, int) or n_envs < 1:
            raise ValueError(f"n_envs must be an integer of at least 1, got {n_envs!r}")
        self.config, self.n_envs = config, n_envs
        self.counters = SafetyCounters()
        self._low, self._high = np.asarray(config.low, np.float64), np.asarray(config.high, np.float64)
        self._reach = None if config.v_max is None else np.asarray(config.v_max, np.float64) / config.fps
        self._rest = None if rest is None else self._rest_position(rest)
        self._last = np.full((n_envs, self.action_dim), np.nan)
        self._bad_in_row = np.zeros(n_envs, np.int64)
        self.reset()

    @property
    def action_dim(self) -> int:
        """Da, the width of an action."""
        return len(self._low)

    def filter(self, action: np.ndarray) -> np.ndarray:
        """Make actions safe.

        Args:
            action: (Da,) of a single environment, or (n_envs, Da).

        Returns:
            Safe actions of the same shape and dtype; integers are cut to whole numbers.

        Raises:
            ValueError: another shape.
            TypeError: no numbers.
            UnsafeActionError: an environment's action was not finite `max_bad_actions` times in a row.
        """
        wanted = self._checked(action)
        finite = np.all(np.isfinite(wanted), axis=1)
        self.counters.bad += int((~finite).sum())
        self._bad_in_row = np.where(finite, 0, self._bad_in_row + 1)
        self._raise_if_hopeless(finite)
        safe = np.where(finite[:, None], wanted, self._last)
        clipped = np.clip(safe, self._low, self._high)
        self.counters.clipped += int((clipped != safe).any(axis=1).sum())
        self._last = self._limited(clipped)
        self.counters.actions += self.n_envs
        return self._last.reshape(np.shape(action)).astype(np.asarray(action).dtype)

    def hold(self) -> Float[np.ndarray, "n_envs action_dim"]:
        """Repeat the last safe actions because there are no new ones in time.

        Raises:
            UnsafeActionError: there is neither a last action nor a rest position.
        """
        empty = np.isnan(self._last).any(axis=1)
        if empty.any():
            numbers = np.flatnonzero(empty).tolist()
            raise UnsafeActionError(f"environments {numbers} have no safe action to hold; give `rest`")
        self.counters.held += self.n_envs
        self.counters.actions += self.n_envs
        return self._last.copy()

    def reset(self, indices: Sequence[int] | None = None) -> None:
        """Forget the last actions of these environments (None: of all) when their episodes begin anew."""
        chosen = np.arange(self.n_envs) if indices is None else np.asarray(indices, np.int64).reshape(-1)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self.n_envs):
            raise ValueError(f"indices must lie in 0..{self.n_envs - 1}, got {chosen.tolist()}")
        self._last[chosen] = np.nan if self._rest is None else self._rest
        self._bad_in_row[chosen] = 0

    def _checked(self, action: np.ndarray) -> Float[np.ndarray, "n_envs action_dim"]:
        array = np.asarray(action)
        if array.dtype.kind not in "fiu":
            raise TypeError(f"action must be numbers, got {array.dtype}")
        allowed = [(self.n_envs, self.action_dim)] + [(self.action_dim,)] * (self.n_envs == 1)
        if array.shape not in allowed:
            raise ValueError(
                f"action must have the shape {' or '.join(map(str, allowed))}, got {array.shape}"
            )
        return array.reshape(self.n_envs, self.action_dim).astype(np.float64)

    def _limited(
        self, wanted: Float[np.ndarray, "n_envs action_dim"]
    ) -> Float[np.ndarray, "n_envs action_dim"]:
        if self._reach is None:
            return wanted
        start = np.where(np.isnan(self._last), wanted, self._last)
        limited = start + np.clip(wanted - start, -self._reach, self._reach)
        slowed = np.abs(wanted - start) > self._reach
        self.counters.slowed += int(slowed.any(axis=1).sum())
        # start + (wanted − start) may miss `wanted` by rounding.
        return np.where(slowed, limited, wanted)

    def _raise_if_hopeless(self, finite: Bool[np.ndarray, " n_envs"]) -> None:
        without = ~finite & np.isnan(self._last).any(axis=1)
        if without.any():
            raise UnsafeActionError(
                f"the first action of environments {np.flatnonzero(without).tolist()} is not finite "
                "and there is no safe action to hold; give `rest`"
            )
        most = self.config.max_bad_actions
        hopeless = np.flatnonzero(self._bad_in_row >= most)
        if len(hopeless):
            raise UnsafeActionError(
                f"{most} actions in a row were not finite in environments {hopeless.tolist()}"
            )

    def _rest_position(self, rest: Sequence[float]) -> Float[np.ndarray, " action_dim"]:
        position = np.asarray(rest, np.float64)
        if position.shape != self._low.shape:
            raise ValueError(f"rest must have the shape {self._low.shape}, got {position.shape}")
        if not ((position >= self._low) & (position <= self._high) & np.isfinite(position)).all():
            raise ValueError(f"rest must lie between low and high, got {position.tolist()}")
        return position


def _check_positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
