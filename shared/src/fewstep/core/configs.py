"""Frozen dataclasses to JSON and back, with a clear word when a file does not fit."""

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Config = TypeVar("Config")


def config_to_dict(config: Any) -> dict[str, Any]:
    """Fields of a dataclass, nested ones included, as JSON types.

    Raises:
        TypeError: config is no dataclass instance.
    """
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        raise TypeError(f"config must be an instance of a dataclass, got {config!r}")
    return dataclasses.asdict(config)


def config_from_dict(cls: type[Config], values: Mapping[str, Any], source: str = "config") -> Config:
    """Make a dataclass from what `config_to_dict` gave, after a trip through JSON.

    Lists become tuples where the field is one, dictionaries become dataclasses where the field is one.

    Args:
        cls: the dataclass.
        values: its fields.
        source: of the values, for the message.

    Raises:
        ValueError: a field is unknown, missing, or its value is refused by the dataclass.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{source} has {', '.join(unknown)}, which {cls.__name__} does not know")
    hints = typing.get_type_hints(cls)
    try:
        return cls(
            **{name: _convert(hints[name], value, f"{source}.{name}") for name, value in values.items()}
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source} does not fit {cls.__name__}: {error}") from error


def _convert(hint: Any, value: Any, source: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        wanted = [option for option in typing.get_args(hint) if option is not type(None)]
        return value if value is None or len(wanted) != 1 else _convert(wanted[0], value, source)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return config_from_dict(hint, value, source)
    if (origin is tuple or hint is tuple) and isinstance(value, Sequence) and not isinstance(value, str):
        items = typing.get_args(hint)
        each = items[0] if items else Any
        return tuple(
            _convert(items[i] if len(items) > i and items[-1] is not Ellipsis else each, item, source)
            for i, item in enumerate(value)
        )
    return value
