"""The options of a method: which there are, and whether values for them fit."""

import inspect
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fewstep.core.objectives.methods.base import Method

_WORDS = {"true": True, "false": False}


@dataclass(frozen=True)
class Option:
    """A keyword argument of a method's `make`.

    Args:
        name: of the argument.
        hint: its type.
        default: its value when it is not given.
    """

    name: str
    hint: Any
    default: Any

    @property
    def kind(self) -> str:
        """The type in words, such as "float" or "one of l1, l2"."""
        return _in_words(self.hint)


def options_of(method: Method) -> dict[str, Option]:
    """The options of a method by name, with types (where they are not annotated, those of the defaults)."""
    found = {}
    hints = get_type_hints(method.make)
    for name, parameter in list(inspect.signature(method.make).parameters.items())[1:]:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        default = None if parameter.default is parameter.empty else parameter.default
        hint = hints.get(name, Any if default is None else type(default))
        found[name] = Option(name, hint, default)
    return found


def checked_options(method: Method, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the method's `make` takes them: lists become tuples, whole numbers become floats.

    Raises:
        ValueError: the method has no such option, or a value is of another type.
    """
    known = options_of(method)
    return {name: _fitting(_known(known, name), value, from_text=False) for name, value in values.items()}


def parsed_options(method: Method, texts: Iterable[str]) -> dict[str, Any]:
    """The same from texts such as "target=0.95"; sequences are separated by commas.

    Raises:
        ValueError: a text is not name=value, the method has no such option, or the value does not fit.

    Example:
        >>> from fewstep.core.sampling import Sampling
        >>> def make(material, rate: float = 0.5, norm: Literal["l1", "l2"] = "l2"): ...
        >>> parsed_options(Method("A", "b", make, (), Sampling()), ["rate=2", "norm=l1"])
        {'rate': 2.0, 'norm': 'l1'}
    """
    known = options_of(method)
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"an option must be name=value, got {text!r}")
        found[name.strip()] = _fitting(_known(known, name.strip()), value.strip(), from_text=True)
    return found


def _known(known: Mapping[str, Option], name: str) -> Option:
    if name not in known:
        listed = ", ".join(f"{option.name} ({option.kind})" for option in known.values()) or "none"
        raise ValueError(f"the method has no option {name!r}; its options: {listed}")
    return known[name]


def _fitting(option: Option, value: Any, from_text: bool) -> Any:
    try:
        return _converted(option.hint, value, from_text)
    except (TypeError, ValueError):
        raise ValueError(f"option {option.name} must be {option.kind}, got {value!r}") from None


def _converted(hint: Any, value: Any, from_text: bool) -> Any:
    origin = get_origin(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_that_fits(get_args(hint), value, from_text)
    if origin is Literal:
        return next(one for one in _checked_in(get_args(hint), value) if str(one) == str(value))
    if hint is None or hint is type(None):
        return _checked(None, value is None or (from_text and value.lower() == "none"))
    if hint is bool:
        return _WORDS[value.lower()] if from_text and value.lower() in _WORDS else _of(bool, value)
    if hint in (int, float):
        plain = hint(value) if from_text else value
        allowed = (int, float) if hint is float else int
        return hint(_of(allowed, _checked(plain, not isinstance(plain, bool))))
    if hint is str:
        return _of(str, value)
    if (origin or hint) in (tuple, list) or str(origin).endswith("Sequence'>"):
        return _sequence(get_args(hint), value, from_text)
    raise TypeError(f"{hint} cannot be given as a value")


def _sequence(inner: tuple[Any, ...], value: Any, from_text: bool) -> tuple[Any, ...]:
    parts = (
        [part.strip() for part in value.split(",") if part.strip()]
        if from_text
        else _of((list, tuple), value)
    )
    fixed = len(inner) > 0 and inner[-1] is not Ellipsis and len(inner) > 1
    if fixed and len(parts) != len(inner):
        raise ValueError(f"{len(inner)} values are wanted")
    each = inner if fixed else (inner[0] if inner else Any,) * len(parts)
    return tuple(_converted(hint, part, from_text) for hint, part in zip(each, parts, strict=True))


def _first_that_fits(hints: tuple[Any, ...], value: Any, from_text: bool) -> Any:
    # Text fits a str always, so that comes last.
    for hint in sorted(hints, key=lambda hint: hint is str):
        try:
            return _converted(hint, value, from_text)
        except (TypeError, ValueError):
            continue
    raise ValueError(value)


def _checked_in(allowed: tuple[Any, ...], value: Any) -> tuple[Any, ...]:
    return _checked(allowed, str(value) in map(str, allowed))


def _of(kind: Any, value: Any) -> Any:
    return _checked(value, isinstance(value, kind))


def _checked(value: Any, fits: bool) -> Any:
    if not fits:
        raise ValueError(value)
    return value


def _in_words(hint: Any) -> str:
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_in_words(one) for one in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if hint is type(None):
        return "none"
    if (origin or hint) in (tuple, list) or str(origin).endswith("Sequence'>"):
        count = "" if not inner or inner[-1] is Ellipsis or len(inner) == 1 else f"{len(inner)} "
        return f"{count}{_in_words(inner[0]) if inner else 'value'}s separated by commas"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
