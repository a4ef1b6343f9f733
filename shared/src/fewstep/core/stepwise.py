"""Running a solver whose steps depend on the data, with what `run` offers to plans."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fewstep.core.noise import NoiseSource
from fewstep.core.paths import Path
from fewstep.core.solvers.base import StepwiseSolver
from fewstep.core.step_info import OnStep, StepInfo


def run_stepwise(
    solver: StepwiseSolver,
    denoise: Callable[[Tensor, float | Tensor], Tensor],
    path: Path,
    grid: Sequence[float],
    x: Tensor,
    y: Tensor | None,
    noise: NoiseSource,
    on_step: OnStep | None = None,
    grad: bool = False,
) -> Tensor:
    """Run a data-dependent solver in the frame z = x − b(t)·y.

    Args:
        solver: the solver.
        denoise: x0 from (x, t).
        path: the path.
        grid: strictly decreasing times.
        x: start at grid[0], shape (batch, ...).
        y: degraded input, if the path uses it.
        noise: where draws come from.
        on_step: called after every step; returning False asks the solver to stop.
        grad: let gradients flow.

    Returns:
        The state at the time at which the solver ended.
    """
    if path.uses_y and y is None:
        raise ValueError(f"y is missing: {type(path).__name__} uses the degraded input")
    calls = count = 0
    end: float | Tensor = grid[-1]

    def offset(t: float | Tensor) -> Tensor | float:
        if y is None or not path.uses_y:
            return 0.0
        if isinstance(t, Tensor) and t.ndim:
            b = path.evaluate(t)[1].to(x.dtype)
            return b.view(-1, *[1] * (x.ndim - 1)) * y
        return path.coefficients(float(t))[1] * y

    def ask(z: Tensor, t: float | Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return denoise(z + offset(t), t).to(x.dtype)

    def draw(like: Tensor) -> Tensor:
        out = torch.empty_like(like)
        noise.fill(out)
        return out

    def report(z: Tensor, t: float | Tensor, x0: Tensor) -> bool:
        nonlocal count, end
        count += 1
        if on_step is None:
            return True
        shift = offset(t)
        state = z + shift
        untouched = state._version if not state.is_inference() else None
        stopped = on_step(StepInfo(count, max(count, len(grid) - 1), t, calls, state, lambda: x0)) is False
        if state.is_inference() or state._version != untouched:  # the caller may edit the state in place
            z.copy_(state - shift)
        if stopped:
            end = t
        return not stopped

    with torch.set_grad_enabled(grad):
        z = solver.integrate(ask, path, grid, x - offset(grid[0]), draw, report)
        return z + offset(end)
