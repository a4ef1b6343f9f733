"""Degradations: how clean photographs become what a model is trained, tried and measured on."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

from .base import Degradation, Degraded, Nothing, OneOf
from .compression import Jpeg
from .low_light import LowLight
from .masks import Masked
from .mosaic import Bayer, Mosaic
from .noise import GaussianNoise
from .rain import Rain
from .real_esrgan import RealEsrgan

DEGRADATIONS: dict[str, type] = {
    "nothing": Nothing,
    "noise": GaussianNoise,
    "rain": Rain,
    "low_light": LowLight,
    "jpeg": Jpeg,
    "mask": Masked,
    "mosaic": Mosaic,
    "bayer": Bayer,
    "real_esrgan": RealEsrgan,
}

__all__ = [
    "DEGRADATIONS",
    "Bayer",
    "Degradation",
    "Degraded",
    "GaussianNoise",
    "Jpeg",
    "LowLight",
    "Masked",
    "Mosaic",
    "Nothing",
    "OneOf",
    "Rain",
    "RealEsrgan",
    "degradation",
]


def degradation(name: str, **given: Any) -> Degradation:
    """Make a degradation by name, as a recipe file names it.

    Args:
        name: a key of `DEGRADATIONS`.
        **given: fields of its dataclass in place of their defaults, as JSON has them: lists count as tuples,
            and a dictionary replaces fields of a nested dataclass.

    Returns:
        The degradation.

    Raises:
        ValueError: an unknown name or field, or a field out of its limits.

    Example:
        >>> degradation("noise", low=5, high=50)
        GaussianNoise(low=5, high=50)
        >>> degradation("rain", gain=[4, 7]).gain
        (4, 7)
    """
    if name not in DEGRADATIONS:
        raise ValueError(f"name must be one of {', '.join(map(repr, DEGRADATIONS))}, got {name!r}")
    return _filled(DEGRADATIONS[name](), name, given)


def _filled(defaults: Any, name: str, given: dict[str, Any]) -> Any:
    """Replace fields of a dataclass; a dictionary replaces fields of the dataclass that a field holds."""
    allowed = [field.name for field in fields(defaults)]
    made = {}
    for field, value in given.items():
        if field not in allowed:
            raise ValueError(f"{field!r} is no field of {name!r}, which has {', '.join(allowed) or 'none'}")
        default = getattr(defaults, field)
        if is_dataclass(default) and not isinstance(value, type(default)):
            if not isinstance(value, dict):
                raise ValueError(f"{field} must be a dictionary of fields, got {value!r}")
            value = _filled(default, field, value)
        made[field] = _tuples(value)
    return replace(defaults, **made)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
