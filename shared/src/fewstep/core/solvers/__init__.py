"""Solvers: rules that turn a path and a grid into a plan. Each module lists its own in `SOLVERS`."""

from typing import Any

from fewstep.core.discovery import collect
from fewstep.core.solvers.base import Level, Listed, Node, Solver, StepwiseSolver, levels
from fewstep.core.solvers.dpmpp import DPMSolverPP
from fewstep.core.solvers.exponential import phi
from fewstep.core.solvers.first_order import FirstOrder, first_order_step
from fewstep.core.solvers.heun import Heun

_SOLVERS: dict[str, Listed] = collect(__name__, __path__, "SOLVERS")


def names() -> tuple[str, ...]:
    """The names that `get` knows."""
    return tuple(_SOLVERS)


def listed() -> dict[str, Listed]:
    """Everything that `get` knows: how it is made, paper, network calls, what it is good for."""
    return dict(_SOLVERS)


def get(name: str, **options: Any) -> Solver:
    """A solver by name.

    Args:
        name: one of `names()`.
        options: fields of the solver, such as eta=0.5 or correction="taylor".

    Raises:
        ValueError: if the name or an option's value is unknown.
        TypeError: if the solver has no such option.

    Example:
        >>> get("dpmpp-2m", correction="taylor").name
        'dpmpp-2m'
    """
    if name not in _SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(_SOLVERS)}; not {name!r}")
    return _SOLVERS[name].make(**options)


__all__ = [
    "DPMSolverPP",
    "FirstOrder",
    "Heun",
    "Level",
    "Listed",
    "Node",
    "Solver",
    "StepwiseSolver",
    "first_order_step",
    "get",
    "levels",
    "listed",
    "names",
    "phi",
]
