"""Grids: the decreasing sequence of times that is visited.

A grid is a function of (path, steps) that returns steps + 1 decreasing times. The network is asked at the
first ``steps`` of them; the last is the path's clean end, or its ``t_min`` with ``final="t_min"`` (the sample
then keeps the little noise of t_min). A module of this package lists its grids by name in ``GRIDS``.
"""

from collections.abc import Callable, Sequence

from fewstep.core.discovery import collect
from fewstep.core.grids.base import SNR_FLOOR, Explicit, Grid, Times, explicit
from fewstep.core.grids.noise_level import karras, logsnr
from fewstep.core.grids.time import ddim_quadratic, leading, linspace, power, quadratic, trailing, uniform

_GRIDS: dict[str, Callable[..., Times]] = collect(__name__, __path__, "GRIDS")


def names() -> tuple[str, ...]:
    """Return the names that ``get`` knows."""
    return tuple(_GRIDS)


def get(name: str | Grid | Sequence[float]) -> Grid:
    """Return the grid of that name; a grid is returned as it is, a sequence of times becomes ``explicit``.

    Raises:
        ValueError: unknown name; the message lists the known ones.
    """
    if not isinstance(name, str):
        return name if callable(name) else explicit(name)
    if name not in _GRIDS:
        raise ValueError(
            f"grid must be one of {', '.join(map(repr, _GRIDS))} or a sequence of times, got {name!r}"
        )
    return _GRIDS[name]


__all__ = [
    "SNR_FLOOR",
    "Explicit",
    "Grid",
    "Times",
    "ddim_quadratic",
    "explicit",
    "get",
    "karras",
    "leading",
    "linspace",
    "logsnr",
    "names",
    "power",
    "quadratic",
    "trailing",
    "uniform",
]
