"""Push-T with two hands on it: the policy's, and that of whoever holds the mouse."""

import html
import io
import math
from threading import Lock
from uuid import uuid4

import numpy as np
from PIL import Image

from fewstep.policy.live import LiveEpisode, Taken
from fewstep.policy.policy import Policy

from .models import Offered

SIDE = 384


def encoded(frame: np.ndarray) -> bytes:
    """A picture small enough to send many times a second."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=88)
    return file.getvalue()


def position(held: str | None, span: float) -> np.ndarray | None:
    """Where the mouse holds the disc, in the environment's units.

    Args:
        held: "x,y" as shares of the picture's width and height; anything else: it does not.
        span: the picture's side in those units.

    Example:
        >>> position("0.5,0.25", 512.0), position("", 512.0), position("nan,0", 512.0)
        (array([256., 128.]), None, None)
    """
    parts = (held or "").split(",")
    try:
        x, y = (float(part) for part in parts)
    except ValueError:
        return None
    if not (math.isfinite(x) and math.isfinite(y)):
        return None
    return np.clip([x, y], 0.0, 1.0) * span


class Session:
    """One visitor's episode.

    Args:
        offered: the policy, of an environment whose actions are positions.
        policy: with a memory of its own.
        seed: of the episode.

    Attributes:
        taken: all actions so far, each with whether it was by hand.
        own_folder: name of a folder for its files.
    """

    def __init__(self, offered: Offered, policy: Policy, seed: int) -> None:
        self.spec, self.seed = offered.spec, seed
        self._lock = Lock()
        self._live = LiveEpisode(policy, offered.spec, seed, SIDE)
        # Visitors must not overwrite each other's files.
        self.own_folder = f"by-hand-{uuid4().hex}"
        self.by_hand = 0
        self.closed = False
        self.taken: list[tuple[Taken, bool]] = []
        # Kept small: there may be many visitors.
        self.film: list[bytes] = [encoded(self._live.picture())]

    @property
    def running(self) -> bool:
        """Whether there is a next step."""
        return not self.closed and self._live.running

    @property
    def success(self) -> bool:
        """Whether the task is solved."""
        return bool(self._live.episode().success)

    def step(self, held: str | None, policy_goes_on: bool) -> bool:
        """Carry out one action, if there is one.

        Args:
            held: where the mouse is pressed, see `position`.
            policy_goes_on: whether the policy acts while it is not.

        Returns:
            Whether something happened.
        """
        target = position(held, self.spec.picture_span or 1.0)
        with self._lock:
            if not self.running or (target is None and not policy_goes_on):
                return False
            self.film.append(encoded(self._live.step(target)))
            self.by_hand += target is not None
            if self._live.taken is not None:
                self.taken.append((self._live.taken, target is not None))
            if not self._live.running:
                self.film.append(encoded(self._live.picture()))
            return True

    def facts(self) -> str:
        """One line about the episode."""
        now = self._live.episode()
        line = f"step {now.length} of {self.spec.max_steps}, {self.by_hand} by hand, score {now.score:.3f}"
        if now.problem:
            return f"{line}; {html.escape(now.problem)}"
        return line if self.running else f"{line}; {'solved' if now.success else 'over'}"

    def frames(self) -> np.ndarray:
        """All pictures so far."""
        with self._lock:
            return np.stack([np.asarray(Image.open(io.BytesIO(picture))) for picture in self.film])

    def close(self) -> None:
        """End the episode; the environment goes away."""
        with self._lock:
            if not self.closed:
                self.closed = True
                self._live.close()
