"""Time-Shift sampler: each sample is given the time whose noise variance fits its own variance."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fewstep.core.paths import Path
from fewstep.core.solvers.base import Ask, Listed, Report, StepwiseSolver, check_choice, levels
from fewstep.core.solvers.ipndm import equal_step_weights

METHODS = {"ddim": 1, "s-pndm": 2, "f-pndm": 4}
Time = float | Tensor


@dataclass(frozen=True)
class TimeShift(StepwiseSolver):
    """DDIM or PNDM with times shifted, per sample, to

    t* = argmin over tau in [t − window/2, t + window/2] of (var(z) − a_tau²·data_variance − sigma_tau²)²,

    var(z) the variance of a sample's elements. A network fed with its own errors sees states whose level is
    not the nominal one; t* is the time that they look like.

    "paper": the state after a step to t is taken for one at t*: the network is told t*, and the next step
    starts from there. "official": as published in code, the state before a step from t to s chooses s*, the
    step ends there, and the network is still told the nominal times; on a table only the map rounds times
    down, the network is told the middle of two entries.

    No step to a time of `cutoff` or less is shifted, nor the last one; in "official" mode nor the first.
    Times, and so the samples, depend on the path's clock, and with a window above 0 they do not converge to
    the solution of the ODE when the grid gets finer.

    Args:
        method: "ddim", "s-pndm" or "f-pndm", with the starts of `PNDM`.
        mode: "paper" or "official".
        window: width of the search, in table entries, or thousandths of a continuous path.
        cutoff: in the same unit, counted from the first table entry (a continuous path: from its clean end).
        data_variance: variance of the clean data's elements; the published sampler takes 0.

    Raises:
        ValueError: if an option is out of range, or a sample has a single element.

    Reference: Li, Qu, Yao, Sun and Moens 2024 (Time-Shift sampler), equation 14, algorithms 2 and 3.
    """

    method: str = "ddim"
    mode: str = "paper"
    window: float = 20.0
    cutoff: float = 200.0
    data_variance: float = 0.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; not {self.method!r}")
        check_choice("mode", self.mode, ("paper", "official"))
        if not (math.isfinite(self.window) and self.window >= 0.0):
            raise ValueError(f"window must be a finite number of at least 0, not {self.window}")
        if math.isnan(self.cutoff):
            raise ValueError(f"cutoff must be a number, not {self.cutoff}")
        if not (math.isfinite(self.data_variance) and self.data_variance >= 0.0):
            raise ValueError(f"data_variance must be a finite number of at least 0, not {self.data_variance}")

    @property
    def name(self) -> str:
        return f"ts-{self.method}"

    @property
    def order(self) -> int:
        return min(METHODS[self.method], 2)

    def integrate(
        self,
        ask: Ask,
        path: Path,
        grid: Sequence[float],
        z: Tensor,
        noise: Callable[[Tensor], Tensor],
        on_step: Report,
    ) -> Tensor:
        if self.window and z[0].numel() < 2:
            raise ValueError("a sample needs two elements at least, its variance is what is matched")
        points = levels(path, grid)
        run = _Run(self, ask, path, z)
        start: Time = points[0].t
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            last = i == len(points) - 2
            target: Time = s.t
            if self.mode == "official":
                start = t.t
                target = s.t if i == 0 or last else run.shifted(z, s.t)
            x0 = ask(z, start)
            if self.method == "ddim" or t.a == 0.0 or s.sigma == 0.0:
                z = run.ddim(z, x0, start, target, keep=t.a > 0.0)
            else:
                z = run.combined(z, x0, start, target)
            if not on_step(z, s.t, x0):
                break
            if self.mode == "paper" and not last:
                start = run.shifted(z, s.t)
        return z


class _Run:
    """One run: the noise estimates so far, and steps with one time per sample."""

    def __init__(self, solver: TimeShift, ask: Ask, path: Path, like: Tensor) -> None:
        self.solver, self.ask, self.path = solver, ask, path
        self.batch, self.device, self.dtype, self.ndim = len(like), like.device, like.dtype, like.ndim
        self.unit = 1.0 if path.is_discrete else (path.t_max - path.t_clean) / 1000.0
        self.origin = path.t_min if path.is_discrete else path.t_clean
        self.terms = METHODS[solver.method]
        self.history: list[Tensor] = []

    def shifted(self, z: Tensor, t: float) -> Time:
        """The time after a step to t, one per sample if it is shifted."""
        half = int(self.solver.window / 2)
        if half == 0 or (t - self.origin) / self.unit <= self.solver.cutoff:
            return t
        near = [t + k * self.unit for k in range(-half, half + 1)]
        return matching_times(self.path, z, near, self.solver.data_variance)

    def ddim(self, z: Tensor, x0: Tensor, t: Time, s: Time, keep: bool) -> Tensor:
        """a_s·x0 + sigma_s·eps, exact at a = 0 and at sigma = 0; `keep` the estimate for later steps."""
        if keep:
            self._remember(z, x0, t)
        (a, sigma), (a_s, sigma_s) = self._level(t), self._level(s)
        ratio = sigma_s / sigma
        return ratio * z + (a_s - ratio * a) * x0

    def combined(self, z: Tensor, x0: Tensor, t: Time, s: Time) -> Tensor:
        """A PNDM step: Adams-Bashforth weights, or the start while there are too few estimates."""
        started = len(self.history) >= (1 if self.terms == 2 else 3)
        self._remember(z, x0, t)
        first = self.history[0]
        if started:
            weights = equal_step_weights(len(self.history))
            estimate = sum((w * e for w, e in zip(weights, self.history, strict=True)), torch.zeros_like(z))
        elif self.terms == 2:
            estimate = 0.5 * (first + self._noise(self._transfer(z, first, t, s), s))
        else:
            middle = self._middle(t, s)
            second = self._noise(self._transfer(z, first, t, middle), middle)
            third = self._noise(self._transfer(z, second, t, middle), middle)
            fourth = self._noise(self._transfer(z, third, t, s), s)
            estimate = (first + 2.0 * second + 2.0 * third + fourth) / 6.0
        return self._transfer(z, estimate, t, s)

    def _middle(self, t: Time, s: Time) -> Time:
        """The middle of a step; on a table rounded down, but not as published."""
        middle = 0.5 * (t + s)
        if not self.path.is_discrete or self.solver.mode == "official":
            return middle
        return middle.floor() if isinstance(middle, Tensor) else float(math.floor(middle))

    def _remember(self, z: Tensor, x0: Tensor, t: Time) -> None:
        a, sigma = self._level(t, inner=True)
        self.history = [(z - a * x0) / sigma, *self.history][: self.terms]

    def _noise(self, z: Tensor, t: Time) -> Tensor:
        """The noise estimate of a new network call."""
        a, sigma = self._level(t, inner=True)
        return (z - a * self.ask(z, t)) / sigma

    def _transfer(self, z: Tensor, e: Tensor, t: Time, s: Time) -> Tensor:
        (a, sigma), (a_s, sigma_s) = self._level(t), self._level(s)
        return a_s / a * z + (sigma_s - a_s * sigma / a) * e

    def _level(self, t: Time, inner: bool = False) -> tuple[Tensor, Tensor]:
        """(a, sigma) at each sample's time; the published map knows only the integer times of a table."""
        times = t if isinstance(t, Tensor) else torch.full((self.batch,), t, dtype=torch.float64)
        if self.path.is_discrete and self.solver.mode == "official" and not inner:
            times = times.floor()
        a, _, sigma = self.path.evaluate(times.to(self.device))
        shape = (-1,) + (1,) * (self.ndim - 1)
        return a.to(self.dtype).view(shape), sigma.to(self.dtype).view(shape)


def matching_times(
    path: Path, z: Float[Tensor, "batch *rest"], near: Sequence[float], data_variance: float = 0.0
) -> Float64[Tensor, "batch"]:
    """For each sample the time of `near` whose variance a²·data_variance + sigma² fits the sample's best.

    Times outside [t_min, t_max] are left out. Nothing is read back from the device.
    """
    times = torch.tensor([t for t in near if path.t_min <= t <= path.t_max], dtype=torch.float64)
    a, _, sigma = path.evaluate(times)
    wanted = (a.square() * data_variance + sigma.square()).to(z.device)
    found = z.flatten(1).double().var(dim=1)
    return times.to(z.device)[(found[:, None] - wanted).square().argmin(1)]


_PAPER = "Li et al. 2024, Time-Shift sampler"

SOLVERS = {
    "ts-ddim": Listed(TimeShift, _PAPER, "n", "exposure bias, ten calls"),
    "ts-s-pndm": Listed(partial(TimeShift, method="s-pndm"), _PAPER, "n + 1", "exposure bias"),
    "ts-f-pndm": Listed(partial(TimeShift, method="f-pndm"), _PAPER, "n + 9", "exposure bias"),
}
