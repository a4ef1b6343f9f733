"""Paths from data to noise: x_t = a(t)·x0 + b(t)·y + sigma(t)·eps."""

from typing import Any

from fewstep.core.paths.base import Path
from fewstep.core.paths.bridge import GmaxBridge, I2SBBridge, SchrodingerBridge, VEBridge, VPBridge
from fewstep.core.paths.flow import RectifiedFlow
from fewstep.core.paths.mean_reverting import OUVE, MeanReverting
from fewstep.core.paths.residual import RDDM, Resfusion
from fewstep.core.paths.resshift import ResShift
from fewstep.core.paths.ve import EDM, VE
from fewstep.core.paths.vp import VP, CosineVP, LinearVP, SubVP, TableVP, zero_terminal_snr

__all__ = [
    "EDM",
    "OUVE",
    "RDDM",
    "VE",
    "VP",
    "CosineVP",
    "GmaxBridge",
    "I2SBBridge",
    "LinearVP",
    "MeanReverting",
    "Path",
    "RectifiedFlow",
    "ResShift",
    "Resfusion",
    "SchrodingerBridge",
    "SubVP",
    "TableVP",
    "VEBridge",
    "VPBridge",
    "from_config",
    "names",
    "zero_terminal_snr",
]

_PATHS: dict[str, type[Path]] = {
    kind.__name__: kind
    for kind in (
        LinearVP,
        CosineVP,
        TableVP,
        SubVP,
        VE,
        EDM,
        RectifiedFlow,
        MeanReverting,
        OUVE,
        VEBridge,
        VPBridge,
        GmaxBridge,
        I2SBBridge,
        ResShift,
        RDDM,
        Resfusion,
    )
}


def names() -> tuple[str, ...]:
    """Return the names of the concrete paths, as ``from_config`` knows them."""
    return tuple(_PATHS)


def from_config(config: dict[str, Any]) -> Path:
    """Return the path that ``Path.to_config`` described.

    Raises:
        ValueError: unknown path or option; the message lists what is allowed.

    Example:
        >>> from_config(ResShift(steps=15).to_config()) == ResShift(steps=15)
        True
    """
    options = dict(config)
    name = options.pop("path", None)
    if name not in _PATHS:
        raise ValueError(f"path must be one of {', '.join(_PATHS)}, got {name!r}")
    kind = _PATHS[name]
    allowed = kind.__dataclass_fields__  # type: ignore[attr-defined]
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ValueError(f"{name} has no option {unknown[0]!r}; allowed: {', '.join(allowed)}")
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})
