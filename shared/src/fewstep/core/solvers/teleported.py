"""Teleported: any solver after an exact jump over the part of the path that a Gaussian decides."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from fewstep.core import grids, predictions
from fewstep.core.grids.remaining import Below
from fewstep.core.noise import GivenNoise
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.run import run
from fewstep.core.solvers.base import Ask, Report, Solver, StepwiseSolver, levels
from fewstep.core.starts.teleport import GaussianModel
from fewstep.core.step_info import StepInfo

# Grid times come from log-SNRs through a root search; this much below `until` still counts as reached.
_SLACK = 1e-6


@dataclass(frozen=True)
class Teleported(StepwiseSolver):
    """Jump from the start of the grid to a later time without a network call, then go on with a solver.

    The jump is the exact probability-flow map of a Gaussian with the data's mean and covariance. With b ≠ 0
    too this is the Gaussian of x0; where its mean depends on y, use `gaussian.around(mean)`.

    The grid times that are jumped over cost nothing. To spend a whole budget after the jump pass
    `grid=teleported.grid("logsnr")`.

    Args:
        solver: a solver; called only with the times after the jump.
        gaussian: mean and covariance of the data.
        until: half log-SNR, log(a/sigma), that ends the jump: at the first grid time that reaches it. By
            default the jump ends at the second grid time.

    Raises:
        TypeError: if solver is not a Solver or gaussian not a GaussianModel.

    Reference: Wang and Vastola 2023, "The Hidden Linear Structure in Score-Based Models and its Application".
    """

    solver: Solver
    gaussian: GaussianModel
    until: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.solver, Solver):
            raise TypeError(
                f"solver must be a Solver such as solvers.get('dpmpp-2m'), not {type(self.solver).__name__}"
            )
        if not isinstance(self.gaussian, GaussianModel):
            raise TypeError(f"gaussian must be a GaussianModel, not {type(self.gaussian).__name__}")
        if self.until is not None and self.until != self.until:
            raise ValueError("until must be a number, not nan")

    @property
    def name(self) -> str:
        return f"teleported {self.solver.name}"

    @property
    def order(self) -> int:
        return self.solver.order

    def remaining(self, path: Path, grid: Sequence[float]) -> tuple[float, ...]:
        """The grid times after the jump, its end first.

        Raises:
            ValueError: if fewer than two are left.
        """
        times = tuple(float(t) for t in grid)
        first = 1
        if self.until is not None:
            first = next(
                (
                    k
                    for k, level in enumerate(levels(path, times))
                    if level.half_log_snr >= self.until - _SLACK
                ),
                len(times),
            )
        if len(times) - first < 2:
            raise ValueError(
                f"until = {self.until} leaves {len(times) - first} of the {len(times)} grid times after the "
                "jump; at least two are needed"
            )
        return times[first:]

    def grid(self, grid: str | grids.Grid) -> Below:
        """The start of the path, then all steps of a grid on what lies below `until`.

        Args:
            grid: a name of `grids.names()` or a function of (path, steps).

        Raises:
            ValueError: if `until` is not set or the name is unknown.
        """
        if self.until is None:
            raise ValueError("until must be set: the grid begins there")
        return Below(self.until, grids.get(grid))

    def integrate(
        self,
        ask: Ask,
        path: Path,
        grid: Sequence[float],
        z: Tensor,
        noise: Callable[[Tensor], Tensor],
        on_step: Report,
    ) -> Tensor:
        times = self.remaining(path, grid)
        if times[0] != grid[0]:
            (a_s, _, sigma_s), (a_t, _, sigma_t) = path.coefficients_at((float(grid[0]), times[0]))
            z = self.gaussian.carried(z, (a_s, sigma_s), (a_t, sigma_t))
        if isinstance(self.solver, StepwiseSolver):
            return self.solver.integrate(ask, path, times, z, noise, on_step)

        def report(info: StepInfo) -> bool:
            return on_step(info.x, info.t, info.x0)

        plan = _compiled(self.solver, path, times)
        return run(plan, ask, z, None, GivenNoise(noise), report, torch.is_grad_enabled())


@lru_cache(maxsize=256)
def _compiled(solver: Solver, path: Path, grid: tuple[float, ...]) -> Plan:
    """The solver's plan in the y-free frame: there its terms in y are zero."""
    plan = solver.compile(path, grid).folded(predictions.get("x0"))
    rows = [replace(row, terms=tuple(t for t in row.terms if t.kind != "y")) for row in plan.rows]
    return replace(plan, rows=tuple(rows))
