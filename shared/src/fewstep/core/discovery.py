"""Tables that the modules of a package fill: one file more is one entry more, and no other file changes."""

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any


def collect(package: str, folder: Iterable[str], attribute: str) -> dict[str, Any]:
    """Return the union of the dictionaries called `attribute` in the modules of a package.

    Args:
        package: its dotted name.
        folder: its `__path__`.
        attribute: name of the dictionary; a module without it adds nothing.

    Raises:
        ValueError: if two modules have the same key.
    """
    found: dict[str, Any] = {}
    for info in sorted(pkgutil.iter_modules(folder), key=lambda info: info.name):
        entries = getattr(importlib.import_module(f"{package}.{info.name}"), attribute, {})
        twice = sorted(found.keys() & entries.keys())
        if twice:
            raise ValueError(f"{package} has {twice[0]!r} twice: in {info.name} and before it")
        found |= entries
    return found
