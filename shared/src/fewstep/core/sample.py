"""sample: from noise (and a degraded input) to a sample, with any denoiser, path, solver and grid."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import grids, predictions, solvers
from fewstep.core.noise import GivenNoise, NoiseSource, SampleNoise
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.predictions import Prediction
from fewstep.core.run import Predict, run
from fewstep.core.solvers import Solver, StepwiseSolver
from fewstep.core.step_info import OnStep
from fewstep.core.stepwise import run_stepwise

Grid = str | Sequence[float] | Callable[[Path, int], Sequence[float]]


def sample(
    denoise: Callable[..., Tensor],
    path: Path | None = None,
    solver: str | Solver | Plan = "dpmpp-2m",
    steps: int = 10,
    grid: Grid = "logsnr",
    x: Float[Tensor, "batch *rest"] | None = None,
    shape: Sequence[int] | None = None,
    seed: int | Sequence[int] = 0,
    y: Float[Tensor, "batch *rest"] | None = None,
    noise: Callable[[Tensor], Tensor] | None = None,
    on_step: OnStep | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    grad: bool = False,
) -> Float[Tensor, "batch *rest"]:
    """Draw samples.

    The state is kept in float32 or better, and the scalars of the method were computed in float64. A sample
    depends on its own seed only, not on its batch mates. Compiled plans are remembered.

    Args:
        denoise: a Denoiser, or any callable (x, t) -> x0.
        path: how data becomes noise; the denoiser's own by default.
        solver: a name of `solvers.names()`, a solver, or a compiled Plan (`steps` and `grid` are its own).
        steps: number of steps.
        grid: a name of `grids.names()`, a function (path, steps) -> times, or strictly decreasing times.
        x: start state, shape (batch, ...). By default it is drawn.
        shape: of the drawn start, (batch, ...); y's by default.
        seed: sample i draws from a generator seeded with seed + i; or one seed per sample.
        y: degraded input or prior mean of a path that has one, shaped like x.
        noise: `noise(like)` returns a normal draw and replaces the generators.
        on_step: called with a StepInfo after every step; returning False stops and returns the state reached.
        dtype: of the result; by default that of x, else of y, else float32. A half-precision result comes
            from a float32 state.
        device: where the state lives; by default that of x, else of y, else the CPU.
        grad: let gradients flow through the whole run (memory grows with the steps).

    Returns:
        The samples, shaped like x.

    Raises:
        ValueError: if an argument is missing, unknown or inconsistent.
        TypeError: if an argument is of the wrong kind.

    Example:
        >>> import torch
        >>> from fewstep.core import paths
        >>> ball = lambda x, t: x / (1 + t * t)  # the denoiser of unit normal data
        >>> sample(ball, paths.EDM(), "heun", steps=8, grid="karras", shape=(2, 3, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """
    path = path_of(denoise, path, solver)
    y = getattr(denoise, "y", None) if y is None else y
    state_dtype, result_dtype, device = _kinds(x, y, dtype, device)
    x = None if x is None else x.to(device=device, dtype=state_dtype)
    y = None if y is None else y.to(device=device, dtype=state_dtype)
    shape = _shape(x, y, shape)
    y = y if y is None else y.expand(shape)
    source = SampleNoise(seed, shape[0], device) if noise is None else GivenNoise(noise)
    ask = Asked(denoise, path, y, result_dtype)
    method = solvers.get(solver) if isinstance(solver, str) else solver

    if isinstance(method, StepwiseSolver):
        times = times_of(path, grid, steps)
        x = _start(path, times[0], source, shape, y, state_dtype, device) if x is None else x
        return run_stepwise(method, ask.x0, path, times, x, y, source, on_step, grad).to(result_dtype)

    plan = (
        _folded(method, ask.prediction)
        if isinstance(method, Plan)
        else _compiled(
            method,
            path,
            grid if isinstance(grid, str) or callable(grid) else tuple(grid),
            steps,
            ask.prediction,
        )
    )
    if x is None:
        x = _start(path, plan.start_time, source, shape, y, state_dtype, device)
    return run(plan, ask.predict, x, y, source, on_step, grad).to(result_dtype)


class Asked:
    """What the runner asks: the raw prediction of a denoiser, or x0 of any callable."""

    def __init__(
        self, denoise: Callable[..., Tensor], path: Path, y: Tensor | None, dtype: torch.dtype
    ) -> None:
        self.prediction: Prediction = predictions.get("x0")
        self.predict: Predict = denoise
        self.x0: Predict = denoise
        if hasattr(denoise, "predict"):
            bound: Any = denoise
            self.prediction = bound.prediction
            if (
                y is not None
                and getattr(bound, "y", None) is None
                and (path.uses_y or bound.prediction.needs_y)
            ):
                bound = bound.given(y=y)
            self.predict, self.x0 = bound.predict, bound
        elif dtype in (torch.float16, torch.bfloat16):
            self.predict = self.x0 = lambda x, t: denoise(x.to(dtype), t)


def path_of(denoise: Callable[..., Tensor], path: Path | None, solver: object) -> Path:
    """The path of a run: the one given, the denoiser's or the plan's, which must agree."""
    if not callable(denoise):
        raise TypeError(
            f"denoise must be a Denoiser or a callable (x, t) -> x0, not {type(denoise).__name__}"
        )
    known: dict[str, Path] = {}
    if path is not None:
        known["path"] = path
    if getattr(denoise, "path", None) is not None:
        known["denoise.path"] = denoise.path  # type: ignore[attr-defined]
    if isinstance(solver, Plan):
        known["the plan's path"] = solver.path
    if not known:
        raise ValueError("path is missing, and denoise is a plain callable without one")
    name, found = next(iter(known.items()))
    for other, value in known.items():
        if value != found:
            raise ValueError(f"{name} and {other} differ: {found} and {value}")
    return found


def _kinds(
    x: Tensor | None, y: Tensor | None, dtype: torch.dtype | None, device: torch.device | str | None
) -> tuple[torch.dtype, torch.dtype, torch.device]:
    """(dtype of the state, dtype of the result, device)."""
    like = x if x is not None else y
    result = dtype or (torch.float32 if like is None else like.dtype)
    if not result.is_floating_point:
        name = "dtype" if dtype else "x" if x is not None else "y"
        raise TypeError(f"{name} must be a floating-point dtype such as torch.float32, not {result}")
    where = (
        torch.device(device) if device is not None else torch.device("cpu") if like is None else like.device
    )
    return torch.promote_types(result, torch.float32), result, where


def _shape(x: Tensor | None, y: Tensor | None, shape: Sequence[int] | None) -> tuple[int, ...]:
    if x is not None:
        wanted = tuple(x.shape)
        if shape is not None and tuple(shape) != wanted:
            raise ValueError(f"shape {tuple(shape)} does not match x of shape {wanted}; give one of them")
    elif shape is not None:
        wanted = tuple(shape)
    elif y is not None:
        wanted = tuple(y.shape)
    else:
        raise ValueError("shape is missing: give x, shape=(batch, channels, ...) or y")
    if len(wanted) < 2 or min(wanted) < 1:
        raise ValueError(f"shape must be (batch, channels, ...) with positive sizes, not {wanted}")
    if y is not None and tuple(y.shape) != wanted and tuple(y.shape) != (1, *wanted[1:]):
        raise ValueError(f"y has shape {tuple(y.shape)}, but the samples have shape {wanted}")
    return wanted


def times_of(path: Path, grid: Grid, steps: int) -> tuple[float, ...]:
    """The grid's times; an explicit sequence brings its own number of steps."""
    if isinstance(grid, str):
        return grids.get(grid)(path, steps)
    if isinstance(grid, grids.Explicit):
        return grid.times
    return tuple(grid(path, steps)) if callable(grid) else grids.explicit(grid).times


@lru_cache(maxsize=256)
def _compiled(method: Solver, path: Path, grid: Grid, steps: int, prediction: Prediction) -> Plan:
    return method.compile(path, times_of(path, grid, steps)).folded(prediction)


@lru_cache(maxsize=256)
def _folded(plan: Plan, prediction: Prediction) -> Plan:
    return plan.folded(prediction)


def _start(
    path: Path,
    t: float | tuple[float, ...] | None,
    source: NoiseSource,
    shape: tuple[int, ...],
    y: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The path's published start, or b·y + sigma·noise for a plan that starts elsewhere."""
    noise = torch.empty(shape, dtype=dtype, device=device)
    source.fill(noise)
    if path.uses_y and y is None:
        raise ValueError(f"y is missing: {type(path).__name__} starts from the degraded input")
    if t == path.t_max:
        return path.start(noise, y)
    times = torch.tensor(t, dtype=torch.float64, device=device).expand(shape[0])
    _, b, sigma = (value.to(dtype).view(-1, *[1] * (len(shape) - 1)) for value in path.evaluate(times))
    return sigma * noise if y is None or not path.uses_y else b * y + sigma * noise
