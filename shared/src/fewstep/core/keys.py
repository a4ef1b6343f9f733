"""Renaming the keys of a state dictionary: from an official checkpoint's names to ours."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Value = TypeVar("Value")

WRAPPER_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "diffusion_model.", "ema_model.")


@dataclass(frozen=True)
class Renamed(Generic[Value]):
    """What a renaming made, and what to look at when it does not fit.

    Args:
        state: the values under their new names.
        dropped: old names that a rule dropped.
        idle_rules: patterns that matched nothing.
        missing: names of the target that no value has.
        unexpected: new names that the target has not.
    """

    state: dict[str, Value]
    dropped: tuple[str, ...] = ()
    idle_rules: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether names and target agree."""
        return not self.missing and not self.unexpected


def strip_prefixes(
    state: Mapping[str, Value], prefixes: Sequence[str] = WRAPPER_PREFIXES, target: Iterable[str] = ()
) -> dict[str, Value]:
    """Remove what training wrappers put before every key, as often as it is there.

    A prefix goes only when all keys have it, and only while it is not a part of the target's own names.

    Args:
        state: values by name.
        prefixes: that may be removed.
        target: names that are wanted, if known.

    Returns:
        The values under the shortened names.

    Example:
        >>> strip_prefixes({"module._orig_mod.head.weight": 1, "module._orig_mod.head.bias": 2})
        {'head.weight': 1, 'head.bias': 2}
    """
    wanted = set(target)
    stripped = dict(state)
    while stripped and not (wanted and wanted >= set(stripped)):
        shared = next(
            (prefix for prefix in prefixes if all(key.startswith(prefix) for key in stripped)), None
        )
        if shared is None or any(key == shared for key in stripped):
            break
        stripped = {key[len(shared) :]: value for key, value in stripped.items()}
    return stripped


def rename(
    state: Mapping[str, Value],
    rules: Sequence[tuple[str, str | None]],
    target: Iterable[str] | None = None,
) -> Renamed[Value]:
    """Apply a table of regular expressions to every key, each rule to what the rules before it have made.

    Args:
        state: values by name.
        rules: (pattern, replacement) as `re.sub` takes them; the replacement None drops the keys that match.
        target: names that the result should have (None: not compared).

    Returns:
        The renamed values and a report.

    Raises:
        ValueError: two keys get the same name.

    Example:
        >>> made = rename({"down.w": 1, "step": 2}, [(r"\\.w$", ".weight"), ("^step$", None)], ["head"])
        >>> made.state, made.dropped, made.missing, made.unexpected
        ({'down.weight': 1}, ('step',), ('head',), ('down.weight',))
    """
    compiled = [(re.compile(pattern), replacement) for pattern, replacement in rules]
    used: set[int] = set()
    renamed: dict[str, Value] = {}
    origins: dict[str, str] = {}
    dropped: list[str] = []
    for key, value in state.items():
        name = _apply(key, compiled, used)
        if name is None:
            dropped.append(key)
        elif name in renamed:
            raise ValueError(f"keys {origins[name]!r} and {key!r} would both be named {name!r}")
        else:
            renamed[name], origins[name] = value, key
    idle = tuple(pattern for number, (pattern, _) in enumerate(rules) if number not in used)
    wanted = set(renamed) if target is None else set(target)
    return Renamed(
        state=renamed,
        dropped=tuple(dropped),
        idle_rules=idle,
        missing=tuple(sorted(wanted - set(renamed))),
        unexpected=tuple(sorted(set(renamed) - wanted)),
    )


def _apply(key: str, rules: Sequence[tuple[re.Pattern[str], str | None]], used: set[int]) -> str | None:
    for number, (pattern, replacement) in enumerate(rules):
        if not pattern.search(key):
            continue
        used.add(number)
        if replacement is None:
            return None
        key = pattern.sub(replacement, key)
    return key
