"""Ending a run from outside without losing work."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Whether the user (Ctrl-C) or the system (SIGTERM) asked the run to end.

    A second Ctrl-C ends it at once.

    As a context manager it takes the place of the signal handlers for as long as the block runs. In a thread
    other than the main one Python allows no handlers, and the run is then only ended from inside.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
