"""Dormand–Prince 5(4) with step control: every sample has its own clock and its own step size."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fewstep.core.solvers.base import check_choice

Slope = Callable[[Float64[Tensor, " batch"], Float[Tensor, "batch n"]], Float[Tensor, "batch n"]]
Watch = Callable[[Float64[Tensor, " batch"], Float[Tensor, "batch n"], Float[Tensor, "batch n"]], bool]

_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
_SAFETY, _SLOWEST, _FASTEST = 0.9, 0.2, 10.0


@dataclass(frozen=True)
class Tolerance:
    """A step is accepted where the RMS of error/(atol + rtol·|state|) is at most 1.

    Args:
        rtol: relative tolerance.
        atol: absolute tolerance, in units of the state.
        norm: "sample" takes the RMS over a sample, so that batch mates do not matter; "batch" over the whole
            batch, with one step size for all, as published code does.

    Raises:
        ValueError: if a tolerance is not positive or the norm unknown.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    norm: str = "sample"

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not 0.0 < value < float("inf"):
                raise ValueError(f"{name} must be a finite number above 0, not {value}")
        check_choice("norm", self.norm, ("sample", "batch"))

    def size(self, error: Tensor, *states: Tensor) -> Float64[Tensor, " batch"]:
        """RMS of error/(atol + rtol·max|state|) for each sample."""
        reach = torch.stack([state.abs() for state in states]).amax(0)
        square = (error / (self.atol + self.rtol * reach)).double().square()
        mean = square.mean(1) if self.norm == "sample" else square.mean().expand(len(square))
        return mean.sqrt()


def dormand_prince(
    slope: Slope,
    start: Float64[Tensor, " batch"],
    end: Float64[Tensor, " batch"],
    state: Float[Tensor, "batch n"],
    tolerance: Tolerance,
    watch: Watch | None = None,
) -> tuple[Float64[Tensor, " batch"], Float[Tensor, "batch n"], Float[Tensor, "batch n"]]:
    """Integrate d(state)/dv = slope(v, state) from `start` to `end`, fifth order with local extrapolation.

    The step after an accepted one is 0.9·err^(−1/5) times as long, between 0.2 and 10; the first step and
    this rule are those of Hairer, Nørsett and Wanner, and with norm = "batch" those of SciPy's RK45. The last
    slope of an accepted step is the first of the next, so a step takes 6 calls, and the first one 2 more.

    Args:
        slope: the right-hand side; gets one clock value per sample.
        start: clock values at which the samples stand.
        end: where they go; before or after the start.
        state: shape (batch, n).
        tolerance: error control.
        watch: called as watch(v, state, slope) after every step; False stops.

    Returns:
        Clock values, states and slopes that were reached: those of `end` unless `watch` stopped.

    Raises:
        RuntimeError: if a step becomes too small to advance the clock: a slope is not finite, or the
            tolerance is below what the precision of the state allows.

    Reference: Dormand and Prince 1980; Hairer, Nørsett and Wanner 1993, section II.4.
    """
    way = torch.sign(end - start)
    v, first = start, slope(start, state)
    h = _first_step(slope, start, end, state, first, tolerance)
    rejected = torch.zeros_like(way, dtype=torch.bool)
    while True:
        active = v != end
        least = 10.0 * (torch.nextafter(v, end) - v).abs()
        going, stuck = torch.stack([active.any(), (active & ~(h >= least)).any()]).tolist()
        if stuck:
            raise RuntimeError(
                "the step size of the integrator fell below the resolution of its clock: the slope is not "
                f"finite or the tolerance rtol = {tolerance.rtol:g}, atol = {tolerance.atol:g} is too small"
            )
        if not going:
            return v, state, first
        target = torch.where(h >= (end - v).abs(), end, v + way * h)
        new, last, error = _step(slope, v, target, state, first)
        size = tolerance.size(error, state, new)
        passed = active & (size <= 1.0)
        grow = (_SAFETY * size ** (-0.2)).clamp(_SLOWEST, _FASTEST)
        grow = torch.where(size.isfinite(), grow, _SLOWEST)
        grow = torch.where(rejected & passed, grow.clamp(max=1.0), grow)
        h = torch.where(active, (target - v).abs() * grow, h)
        rejected = active & ~passed
        v = torch.where(passed, target, v)
        state, first = (torch.where(passed[:, None], *pair) for pair in ((new, state), (last, first)))
        if watch is not None and not watch(v, state, first):
            return v, state, first


def _step(
    slope: Slope, v: Tensor, target: Tensor, state: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(new state, slope there, error estimate) of one step."""
    length = target - v
    width = length.to(state.dtype)[:, None]
    slopes, new = [first], state
    for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
        new = state + width * sum(w * k for w, k in zip(weights, slopes, strict=True) if w)
        slopes.append(slope(target if node == 1.0 else v + node * length, new))
    error = width * sum(w * k for w, k in zip(_ERROR, slopes, strict=True) if w)
    return new, slopes[-1], error


def _first_step(
    slope: Slope, start: Tensor, end: Tensor, state: Tensor, first: Tensor, tolerance: Tolerance
) -> Tensor:
    """A step whose error should be well below the tolerance, from the size of the second derivative."""
    whole = (end - start).abs()
    d0, d1 = tolerance.size(state, state), tolerance.size(first, state)
    tiny = (d0 < 1e-5) | (d1 < 1e-5)
    h0 = torch.minimum(torch.where(tiny, 1e-6, 0.01 * d0 / d1), whole)
    step = torch.sign(end - start) * h0
    probe = slope(start + step, state + step.to(state.dtype)[:, None] * first)
    d2 = tolerance.size(probe - first, state) / h0
    steepest = torch.maximum(d1, d2)
    h1 = torch.where(steepest <= 1e-15, (1e-3 * h0).clamp(min=1e-6), (0.01 / steepest) ** 0.2)
    return torch.minimum(torch.minimum(100.0 * h0, h1), whole)
