"""What a solver is: a rule that turns a path and a grid into a plan, or a loop behind the same call."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from fewstep.core.builder import Call
from fewstep.core.paths import Path
from fewstep.core.plan import Plan


class Solver(ABC):
    """A sampling method whose scalars do not depend on the data. Concrete solvers are frozen dataclasses.

    Attributes:
        name: what the method is called.
        order: global order of convergence.
    """

    name: str
    order: int

    @abstractmethod
    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        """Write the plan for one grid.

        Args:
            path: the path to sample.
            grid: strictly decreasing times; the network is asked at all but the last.

        Returns:
            A plan from grid[0] to grid[-1].

        Raises:
            ValueError: if the grid is not strictly decreasing or has fewer than two times.
        """


Ask = Callable[[Tensor, float | Tensor], Tensor]
Report = Callable[[Tensor, float | Tensor, Tensor], bool]


class StepwiseSolver(Solver):
    """A sampling method whose scalars depend on the data (adaptive steps …), behind the same `sample`.

    It works in z = x − b·y like every solver, and never sees y. It has no plan.
    """

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        """Raise: the scalars are known only while it runs.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"{self.name} has no plan, its steps depend on the data; pass it to `sample`")

    @abstractmethod
    def integrate(
        self,
        ask: Ask,
        path: Path,
        grid: Sequence[float],
        z: Tensor,
        noise: Callable[[Tensor], Tensor],
        on_step: Report,
    ) -> Tensor:
        """Integrate from grid[0] to grid[-1].

        Args:
            ask: `ask(z, t)` returns the denoised estimate (x0); t is a float or one time per sample.
            path: gives the coefficients.
            grid: strictly decreasing times, to be followed or only to start and end with.
            z: the start in the y-free frame, shape (batch, ...); not to be written to.
            noise: `noise(like)` returns a fresh standard normal draw.
            on_step: `on_step(z, t, x0)` reports a step; False means that the caller wants to stop.

        Returns:
            z at the time grid[-1] (or where it was stopped).
        """


class Level(NamedTuple):
    """The coefficients of one grid time in the y-free frame, z = a·x0 + sigma·eps."""

    t: float
    a: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """log(a/sigma), infinite at the ends."""
        if self.sigma == 0.0:
            return math.inf
        return -math.inf if self.a <= 0.0 else math.log(self.a / self.sigma)


def levels(path: Path, grid: Sequence[float]) -> list[Level]:
    """The coefficients at all grid times, after a check of the grid.

    Raises:
        ValueError: if the grid is not strictly decreasing, or sigma = 0 where the network would be asked.
    """
    times = [float(t) for t in grid]
    if len(times) < 2:
        raise ValueError(f"grid must hold at least two times, it holds {len(times)}")
    for before, after in itertools.pairwise(times):
        if not after < before:
            raise ValueError(f"grid must be strictly decreasing, but {after} follows {before}")
    found = [Level(t, a, sigma) for t, (a, _, sigma) in zip(times, path.coefficients_at(times), strict=True)]
    for level in found[:-1]:
        if level.sigma <= 0.0:
            raise ValueError(
                f"grid asks the network at t = {level.t}, where sigma = 0; begin below it or above it"
            )
    return found


class Listed(NamedTuple):
    """One line of the table of solvers; a module of this package lists its own in `SOLVERS`.

    Attributes:
        make: the class, or a partial of it.
        paper: authors and year, the name of the method.
        calls: network calls in n steps.
        shines: what it is good for, in one clause.
    """

    make: Callable[..., Solver]
    paper: str
    calls: str
    shines: str


class Node(NamedTuple):
    """A remembered network call and the half log-SNR at which it was made."""

    call: Call
    half_log_snr: float


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise ValueError unless `value` is one of the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")
