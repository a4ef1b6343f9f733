"""Executing chunks of actions when the policy may be late."""

import threading
import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from fewstep.policy.safety import SafetyFilter


class ChunkWatchdog:
    """Hands out safe actions at every control period, whether a new chunk came in time or not.

    A chunk that took longer than the filter's `deadline` is dropped; the rest of the old chunk goes on, and
    when that is used up the last safe action is held. One thread may compute chunks while another one calls
    `next_action`.

    Args:
        safety: through which all actions go; of one environment.
        execute: Ta, actions of a chunk after which a new one is wanted; the further ones are the reserve for
            a late chunk.
        clock: that returns seconds and never goes back.

    Raises:
        ValueError: the filter serves several environments, or `execute` is below 1.

    Example:
        >>> from fewstep.policy.safety import SafetyConfig
        >>> now = iter([0.0, 0.01, 1.0, 1.5])
        >>> safety = SafetyFilter(SafetyConfig(low=[-1.0], high=[1.0], fps=10, deadline=0.1), rest=[0.0])
        >>> robot = ChunkWatchdog(safety, execute=1, clock=lambda: next(now))
        >>> robot.start(); robot.offer(np.array([[0.1], [0.2]]))
        True
        >>> robot.next_action(), robot.wants_chunk
        (array([0.1]), True)
        >>> robot.start(); robot.offer(np.array([[0.9], [0.9]]))  # half a second: late
        False
        >>> robot.next_action(), robot.next_action(), safety.counters.held
        (array([0.2]), array([0.2]), 1)
    """

    def __init__(
        self, safety: SafetyFilter, execute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if safety.n_envs != 1:
            raise ValueError(f"safety must be of one environment, got {safety.n_envs}")
        if isinstance(execute, bool) or not isinstance(execute, int) or execute < 1:
            raise ValueError(f"execute must be an integer of at least 1, got {execute!r}")
        self.safety, self.execute, self._clock = safety, execute, clock
        self._lock = threading.Lock()
        self._chunk = np.zeros((0, safety.action_dim))
        self._used = 0
        self._started: float | None = None

    @property
    def wants_chunk(self) -> bool:
        """Whether it is time to compute the next chunk."""
        with self._lock:
            return self._used >= min(self.execute, len(self._chunk))

    def start(self) -> None:
        """Say that the computation of a chunk begins."""
        with self._lock:
            self._started = self._clock()

    def offer(self, chunk: np.ndarray) -> bool:
        """Hand in the chunk whose computation `start` announced.

        Args:
            chunk: (steps, Da), actions from now on, at least `execute` of them.

        Returns:
            Whether it is used; false when it missed its deadline.

        Raises:
            ValueError: another shape, or fewer actions than are executed.
            RuntimeError: no start was announced.
        """
        chunk = np.asarray(chunk)
        width = self.safety.action_dim
        if chunk.ndim != 2 or chunk.shape[1] != width or len(chunk) < self.execute:
            raise ValueError(f"chunk must be (at least {self.execute} steps, {width}), got {chunk.shape}")
        with self._lock:
            if self._started is None:
                raise RuntimeError("call start() before the chunk is computed")
            deadline = self.safety.config.deadline
            took, self._started = self._clock() - self._started, None
            if deadline is not None and took > deadline:
                self.safety.counters.late += 1
                return False
            self._chunk, self._used = chunk.copy(), 0
            return True

    def next_action(self) -> Float[np.ndarray, " action_dim"]:
        """Return the next safe action: of the newest chunk, else the last one again.

        Raises:
            UnsafeActionError: there is nothing to hold, or too many actions were not finite.
        """
        with self._lock:
            if self._used >= len(self._chunk):
                return self.safety.hold()[0]
            action = self._chunk[self._used]
            self._used += 1
            return self.safety.filter(action)

    def reset(self) -> None:
        """Forget the chunk and the last action, at the start of an episode."""
        with self._lock:
            self._chunk, self._used, self._started = self._chunk[:0], 0, None
            self.safety.reset()
