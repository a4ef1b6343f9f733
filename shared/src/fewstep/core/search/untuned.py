"""The untuned plans: every listed deterministic solver on every grid, at one number of network calls."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from fewstep.core import grids, solvers
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers import Solver, StepwiseSolver

FIRST_SOLVERS = ("dpmpp-2m", "unipc-2", "unipc-3", "ipndm-3", "ddim")
FIRST_GRIDS = ("logsnr", "karras", "uniform", "quadratic", "trailing")
"""What a search short of time looks at first."""


@dataclass(frozen=True)
class Untuned:
    """A solver with its defaults on a grid with its defaults.

    Args:
        solver: its name.
        grid: its name; with " to t_min" where the grid ends there instead of at the clean end.
        plan: the compiled plan.
        same: other names under which the same plan was found.
    """

    solver: str
    grid: str
    plan: Plan
    same: tuple[str, ...] = ()


def untuned_plans(
    path: Path,
    budget: int,
    solver_names: Iterable[str] | None = None,
    grid_names: Iterable[str] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[Untuned]:
    """Return the different plans that a user could pick by name, with exactly `budget` network calls.

    A solver that has no such number of calls (Heun an even one) takes the largest one below. Solvers that
    draw noise, have no plan, or cannot follow a grid on this path are left out.

    Args:
        path: the path.
        budget: network calls.
        solver_names: some of `solvers.names()`; None: all.
        grid_names: some of `grids.names()`; None: all, the usual ones first.
        stop: whether to be content with what has been found; asked from the second plan on.

    Raises:
        ValueError: for an unknown name.

    Example:
        >>> from fewstep.core import paths
        >>> found = untuned_plans(paths.EDM(), 6, ["ddim", "heun"], ["karras"])
        >>> [(one.solver, one.grid, one.plan.nfe) for one in found[:2]]
        [('ddim', 'karras', 6), ('heun', 'karras', 5)]
    """
    chosen = tuple(grids.names() if grid_names is None else grid_names)
    ordered = sorted(chosen, key=lambda name: (name not in FIRST_GRIDS, chosen.index(name)))
    wanted = solvers.names() if solver_names is None else solver_names
    methods = {name: solvers.get(name) for name in sorted(wanted, key=lambda name: name not in FIRST_SOLVERS)}
    found: dict[tuple[object, ...], Untuned] = {}
    steps: dict[str, int] = {}  # of each solver, where it was found last: the first guess for the next grid
    for grid in ordered:
        for final in _finals(grid):
            label = grid if final is None else f"{grid} to {final}"
            for name, method in methods.items():
                if found and stop():
                    return list(found.values())
                plan, steps[name] = _plan(path, budget, method, grid, final, steps.get(name, budget))
                if plan is None:
                    continue
                known = found.setdefault(_key(plan), Untuned(name, label, plan))
                if (known.solver, known.grid) != (name, label):
                    found[_key(plan)] = replace(known, same=(*known.same, f"{name}, {label}"))
    return list(found.values())


def _finals(grid: str) -> Iterator[str | None]:
    yield None
    if "final" in inspect.signature(grids.get(grid)).parameters:
        yield "t_min"


def _plan(
    path: Path, budget: int, method: Solver, grid: str, final: str | None, guess: int
) -> tuple[Plan | None, int]:
    """The plan with the most calls within the budget, or None, and its number of steps."""
    if isinstance(method, StepwiseSolver):
        return None, guess
    options = {} if final is None else {"final": final}
    for steps in (guess, *range(budget, 0, -1)):
        try:
            plan = method.compile(path, grids.get(grid)(path, steps, **options))
        except (ValueError, ArithmeticError):  # this solver cannot follow this grid on this path
            continue
        if plan.draws or plan.starts != 1 or len(plan.results) != 1:
            return None, guess
        if plan.nfe == budget or (plan.nfe < budget and steps != guess):
            return plan, steps
    return None, guess


def _key(plan: Plan) -> tuple[object, ...]:
    """Equal for plans that differ by rounding only."""
    return tuple(
        (
            row.t if not isinstance(row.t, float) else float(f"{row.t:.9e}"),
            row.ask,
            tuple(sorted((kind, index, f"{c:.9e}") for kind, index, c, _ in row.terms)),
        )
        for row in plan.rows
    )
