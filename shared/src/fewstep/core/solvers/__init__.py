"""Solvers: rules that turn a path and a grid into a plan."""

from collections.abc import Callable
from functools import partial
from typing import Any

from fewstep.core.solvers.base import Level, Solver, StepwiseSolver, levels
from fewstep.core.solvers.dpmpp import DPMSolverPP
from fewstep.core.solvers.exponential import phi
from fewstep.core.solvers.first_order import FirstOrder, first_order_step
from fewstep.core.solvers.heun import Heun

_SOLVERS: dict[str, Callable[..., Solver]] = {
    "ddim": FirstOrder,
    "euler": FirstOrder,
    "ancestral": partial(FirstOrder, eta=1.0),
    "ddpm": partial(FirstOrder, eta=1.0),
    "heun": Heun,
    "dpmpp-1": partial(DPMSolverPP, order=1),
    "dpmpp-2m": partial(DPMSolverPP, order=2),
    "dpmpp-3m": partial(DPMSolverPP, order=3),
}


def names() -> tuple[str, ...]:
    """The names that `get` knows."""
    return tuple(_SOLVERS)


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
    return _SOLVERS[name](**options)


__all__ = [
    "DPMSolverPP",
    "FirstOrder",
    "Heun",
    "Level",
    "Solver",
    "StepwiseSolver",
    "first_order_step",
    "get",
    "levels",
    "names",
    "phi",
]
