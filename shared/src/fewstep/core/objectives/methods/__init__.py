"""The papers by name, each a configuration of the objectives; a module lists its own in `METHODS`."""

from fewstep.core.discovery import collect
from fewstep.core.objectives.methods.base import Material, Method

__all__ = ["Material", "Method", "get", "names"]

_METHODS: dict[str, Method] = collect(__name__, __path__, "METHODS")


def names() -> tuple[str, ...]:
    """Return the names that `get` knows."""
    return tuple(sorted(_METHODS))


def get(name: str) -> Method:
    """Return the method of that name.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if name not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(names())}, got {name!r}")
    return _METHODS[name]
