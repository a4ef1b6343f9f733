"""Argument checks of the paths: one sentence that names the argument, what was given and what is allowed."""

import math
from collections.abc import Collection
from itertools import pairwise


def positive(**arguments: float) -> None:
    """Raise unless every argument is a finite number above 0."""
    for name, value in arguments.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be a finite number above 0, got {value!r}")


def increasing(**arguments: float) -> None:
    """Raise unless the arguments, in the order given, are finite and strictly increasing."""
    values = list(arguments.values())
    if not all(map(math.isfinite, values)) or any(x >= y for x, y in pairwise(values)):
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise ValueError(f"{' < '.join(arguments)} must hold, got {given}")


def fraction(**arguments: float) -> None:
    """Raise unless every argument lies in (0, 1]."""
    for name, value in arguments.items():
        if not 0 < value <= 1:
            raise ValueError(f"{name} must lie in (0, 1], got {value!r}")


def at_least(minimum: int, **arguments: int) -> None:
    """Raise unless every argument is an integer of at least ``minimum``."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an integer, got {value!r}")
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value!r}")


def one_of(allowed: Collection[str], **arguments: str) -> None:
    """Raise unless every argument is one of the allowed names."""
    for name, value in arguments.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
