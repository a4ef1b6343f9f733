"""Adaptive DPM-Solver and DPM-Solver++: the difference of two singlestep solutions sets the step size."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.core.grids.base import SNR_FLOOR
from fewstep.core.paths import Path
from fewstep.core.solvers.base import Ask, Level, Listed, Report, StepwiseSolver, check_choice, levels
from fewstep.core.solvers.dpm_control import Controller, Integral
from fewstep.core.solvers.dpm_step import CORRECTIONS, FORMS, linear_step
from fewstep.core.solvers.singlestep import level_at

NORMS = ("sample", "batch", "batch-rms")
_RATIOS = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}


class _Levels(NamedTuple):
    """Coefficients of one time per sample, float64."""

    t: Tensor
    a: Tensor
    sigma: Tensor
    lam: Tensor


@dataclass(frozen=True)
class DPMAdaptive(StepwiseSolver):
    """DPM-Solver-12 (order 2) and -23 (order 3) with a step size of its own for every sample.

    A trial makes `order` calls and gives a lower solution x (order 1; 2S at r1 = 1/3) and a higher one x'
    (2S; 3S). Its error is the root mean square over a sample of

        (x' − x)/max(atol, rtol·max(|x|, |x_before|)),

    x_before the lower solution of the last kept step; from it the controller decides whether the step is kept
    and how long the next one is (see `Integral` and `PID`).

    Of the grid it takes the ends only. It starts with h0 in log(a/sigma) at the first time; from a = 0 with a
    first-order step to log(a/sigma) = −5.1. A grid that ends with sigma = 0 is followed down to the path's
    t_min and finished by a first-order step. Trials are reported if some sample moved; `StepInfo.nfe` counts
    the calls. The denoiser is asked with one time per sample, for all samples until the slowest has arrived;
    the device is waited for once a trial, to know whether to go on.

    Args:
        order: 2 or 3, of the higher solution.
        form: "data" or "noise", what is interpolated.
        correction: "midpoint" or "taylor"; see `SingleStep`.
        rtol: relative tolerance.
        atol: absolute tolerance; 0.0078 = 2/256 is the paper's for images in [−1, 1].
        h0: first step in log(a/sigma).
        error_norm: "sample" judges every sample alone; "batch" takes the largest error for all, as the
            published code does; "batch-rms" the root mean square over all values, as k-diffusion does. The
            last two make a sample depend on its batch mates.
        scale: "unit" measures errors in z/sqrt(a² + sigma²), so that the path does not matter; "state" in z.
        controller: from error to step size.
        max_trials: more than these, and the run is given up.

    Raises:
        ValueError: if an option is out of range.
        RuntimeError: (while it runs) if the end is not reached in max_trials, or values are not finite.

    Reference: Lu et al. 2022 (DPM-Solver), appendix C, algorithm 3.
    """

    order: int = 3
    form: str = "data"
    correction: str = "midpoint"
    rtol: float = 0.05
    atol: float = 0.0078
    h0: float = 0.05
    error_norm: str = "sample"
    scale: str = "unit"
    controller: Controller = field(default_factory=Integral)
    max_trials: int = 1000

    def __post_init__(self) -> None:
        if self.order not in _RATIOS:
            raise ValueError(f"order must be 2 or 3, not {self.order}")
        check_choice("form", self.form, FORMS)
        check_choice("correction", self.correction, CORRECTIONS)
        check_choice("error_norm", self.error_norm, NORMS)
        check_choice("scale", self.scale, ("unit", "state"))
        for name in ("rtol", "atol", "h0", "max_trials"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} must be a finite number above 0, not {getattr(self, name)}")

    @property
    def name(self) -> str:
        return f"{'dpmpp' if self.form == 'data' else 'dpm'}-{'12' if self.order == 2 else '23'}"

    def integrate(
        self,
        ask: Ask,
        path: Path,
        grid: Sequence[float],
        z: Tensor,
        noise: Callable[[Tensor], Tensor],
        on_step: Report,
    ) -> Tensor:
        start, *_, end = levels(path, grid)
        last = _last(path, start, end)
        if start.a <= 0.0:
            floor = level_at(path, SNR_FLOOR)
            s = floor if floor.t > last.t else last
            x0 = ask(z, start.t)
            z, start = _first_order(z, x0, start, s), s
            if not on_step(z, start.t, x0):
                return z
        if start.t > last.t:
            z, going = self._adapt(ask, path, start, last, z, on_step)
            if not going:
                return z
        if last.t > end.t:
            x0 = ask(z, last.t)
            z = _first_order(z, x0, last, end)
            on_step(z, end.t, x0)
        return z

    def _adapt(
        self, ask: Ask, path: Path, start: Level, end: Level, z: Tensor, on_step: Report
    ) -> tuple[Tensor, bool]:
        """Go from start to end, both finite; whether the caller let it arrive."""
        at = _per_sample(path, torch.full((len(z),), start.t, dtype=torch.float64, device=z.device))
        final = end.half_log_snr
        h = torch.full_like(at.lam, self.h0)
        before, memory, x0 = z / self._unit(at, z), None, None
        for _ in range(self.max_trials):
            left = final - at.lam
            active = left > 0.0
            if not active.any():
                return z, True
            h = torch.minimum(h, left)
            arrives = h >= left
            x0 = ask(z, at.t) if x0 is None else x0
            to, lower, higher = self._trial(ask, path, at, torch.where(arrives, left, h), z, x0, end, arrives)
            unit = self._unit(to, z)
            lower = lower / unit
            error = self._error(higher / unit - lower, lower, before)
            accepted, factor, memory = self.controller(error, self.order, memory)
            moved = active & accepted
            h = torch.where(active, h * factor, h)
            if not moved.any():
                if not error[active].isfinite().all():
                    raise RuntimeError(f"{self.name} met values that are not finite; is the denoiser finite?")
                continue
            z = torch.where(_column(moved, z), higher, z)
            before = torch.where(_column(moved, z), lower, before)
            at = _Levels(*(torch.where(moved, new, old) for new, old in zip(to, at, strict=True)))
            if not on_step(z, at.t, x0):
                return z, False
            x0 = None
        raise RuntimeError(
            f"{self.name} did not reach t = {end.t:g} in max_trials = {self.max_trials} trials; "
            "give it more, or larger rtol and atol"
        )

    def _trial(
        self,
        ask: Ask,
        path: Path,
        t: _Levels,
        h: Tensor,
        z: Tensor,
        x0: Tensor,
        end: Level,
        arrives: Tensor,
    ) -> tuple[_Levels, Tensor, Tensor]:
        """(levels at the end, lower solution, higher solution)."""
        # a sample that has arrived gets a harmless step, which is thrown away
        h = torch.where(h > 0.0, h, torch.ones_like(h))
        s = _per_sample(path, path.time_at(t.lam + h))
        exact = (end.t, end.a, end.sigma, end.half_log_snr)
        s = _Levels(*(torch.where(arrives, v, new) for v, new in zip(exact, s, strict=True)))
        values = [self._value(z, x0, t)]
        ratios = _RATIOS[self.order]

        def advance(
            to: _Levels, step: Tensor, places: Sequence[float], used: Sequence[Tensor], rule: str
        ) -> Tensor:
            keep, found = linear_step(self.form, t, to, step, places, rule, phi=_phi)
            total = _column(keep, z) * z
            for weight, v in zip(found, used, strict=True):
                total = total + _column(weight, z) * v
            return total

        for k, r in enumerate(ratios):
            inner = _per_sample(path, path.time_at(t.lam + r * h))
            places = [place / r for place in (0.0, *ratios[:k])]
            guess = advance(inner, r * h, places, values, "taylor")
            values.append(self._value(guess, ask(guess, inner.t), inner))
        places = (0.0, *ratios)
        if self.order == 2:
            return (
                s,
                advance(s, h, places[:1], values[:1], ""),
                advance(s, h, places, values, self.correction),
            )
        lower = advance(s, h, places[:2], values[:2], self.correction)
        if self.correction == "midpoint":
            return s, lower, advance(s, h, (0.0, ratios[1]), [values[0], values[2]], "taylor")
        return s, lower, advance(s, h, places, values, "taylor")

    def _value(self, z: Tensor, x0: Tensor, at: _Levels) -> Tensor:
        if self.form == "data":
            return x0
        return (z - _column(at.a, z) * x0) / _column(at.sigma, z)

    def _unit(self, at: _Levels, like: Tensor) -> Tensor:
        """What a state is divided by before errors are measured, one value per sample."""
        size = torch.hypot(at.a, at.sigma) if self.scale == "unit" else torch.ones_like(at.a)
        return _column(size, like)

    def _error(self, gap: Tensor, lower: Tensor, before: Tensor) -> Tensor:
        """The scaled error of every sample, shape (batch,), float64."""
        allowed = (self.rtol * torch.maximum(lower.abs(), before.abs())).clamp_min(self.atol)
        square = ((gap / allowed) ** 2).flatten(1).double().mean(1)
        if self.error_norm == "batch-rms":
            square = square.mean().expand_as(square)
        elif self.error_norm == "batch":
            square = square.max().expand_as(square)
        return square.sqrt()


def _last(path: Path, start: Level, end: Level) -> Level:
    """Where adaptive steps end: the grid's end, or t_min before a clean end."""
    if end.sigma > 0.0:
        return end
    if start.t <= path.t_min:
        return start
    return Level(path.t_min, *path.coefficients(path.t_min)[::2])


def _per_sample(path: Path, t: Tensor) -> _Levels:
    a, _, sigma = path.evaluate(t)
    return _Levels(t, a, sigma, a.log() - sigma.log())


def _first_order(z: Tensor, x0: Tensor, t: Level, s: Level) -> Tensor:
    keep = s.sigma / t.sigma
    return keep * z + (s.a - keep * t.a) * x0


def _column(value: Tensor, like: Tensor) -> Tensor:
    """One value per sample, to be combined with a state."""
    value = value if value.dtype == torch.bool else value.to(like.dtype)
    return value.view(-1, *[1] * (like.ndim - 1))


def _phi(k: int, z: Tensor) -> Tensor:
    """The phi functions of `exponential.phi` for tensors, which cancel at small z without harm.

    An error of 1e-16/z in phi_2 and 1e-16/z² in phi_3 meets differences of values that vanish as z and z².
    """
    found = torch.expm1(z) / z
    for j in range(1, k):
        found = (found - 1.0 / math.factorial(j)) / z
    return found


_ONE, _TWO = "Lu et al. 2022, DPM-Solver", "Lu et al. 2022, DPM-Solver++"
SOLVERS = {
    "dpm-12": Listed(
        partial(DPMAdaptive, order=2, form="noise"), f"{_ONE}-12", "by tolerance", "easy samples"
    ),
    "dpm-23": Listed(
        partial(DPMAdaptive, order=3, form="noise"), f"{_ONE}-23", "by tolerance", "a wanted accuracy"
    ),
    "dpmpp-12": Listed(partial(DPMAdaptive, order=2), f"{_TWO}-12", "by tolerance", "easy samples"),
    "dpmpp-23": Listed(partial(DPMAdaptive, order=3), f"{_TWO}-23", "by tolerance", "a wanted accuracy"),
}
