"""The probability-flow ODE and its adaptive integration, every sample with its own step sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fewstep.core.paths import Path
from fewstep.core.solvers.base import Ask, Listed, Report, StepwiseSolver, levels
from fewstep.core.solvers.dormand_prince import Tolerance, dormand_prince
from fewstep.core.y_free import over

CLOCKS = ("angle", "time")


class FlowWeights(NamedTuple):
    """du/dv = p·u + q·D(z), z = scale·u, at clock values v: one number per sample each.

    The divergence of the right-hand side by u is n·p + q·scale·trace(dD/dz), n the size of a sample.
    """

    t: Tensor
    scale: Tensor
    p: Tensor
    q: Tensor


@dataclass(frozen=True)
class Flow:
    """The probability-flow ODE of a path on one of two clocks.

    "angle": v = atan(sigma/a) and u = z/sqrt(a² + sigma²), so z/|(a, sigma)| = cos(v)·x0 + sin(v)·eps and
        du/dv = (cos(v)·u − D)/sin(v).
    Nothing of the path but its noise levels is left, u turns straight where D stands still, and v = pi/2
    (a = 0) is as good as any other place.

    "time": v = t and u = z, the equation as published,
        dz/dt = (sigma'/sigma)·z + (a' − a·sigma'/sigma)·D = f·z − g²/2·score.

    Args:
        path: the path.
        clock: "angle" or "time".

    Raises:
        ValueError: if the clock is unknown.

    Reference: Song et al. 2021 (Score-SDE), equation 13; Karras et al. 2022 (EDM), equation 4; the angle is
        that of Salimans and Ho 2022, appendix D.
    """

    path: Path
    clock: str = "angle"

    def __post_init__(self) -> None:
        if self.clock not in CLOCKS:
            raise ValueError(f"clock must be 'angle' or 'time', not {self.clock!r}")

    def at(self, t: float) -> float:
        """The clock value at time t."""
        if self.clock == "time":
            return float(t)
        a, _, sigma = self.path.evaluate(torch.tensor([t], dtype=torch.float64))
        return float(torch.atan2(sigma, a.clamp_min(0.0)))

    def weights(self, v: Float64[Tensor, " batch"]) -> FlowWeights:
        """What the ODE consists of at clock values v."""
        if self.clock == "time":
            a, _, sigma = self.path.evaluate(v)
            da, _, dsigma = self.path.derivatives_at(v)
            return FlowWeights(v, torch.ones_like(v), dsigma / sigma, da - a * dsigma / sigma)
        t = self.path.time_at(-torch.tan(v).log())
        a, _, sigma = self.path.evaluate(t)
        return FlowWeights(t, torch.hypot(a, sigma), 1.0 / torch.tan(v), -1.0 / torch.sin(v))


class Carried(NamedTuple):
    """Where the probability flow carried a batch: the state z, its times and D there."""

    z: Tensor
    t: Tensor
    x0: Tensor


def carry(
    ask: Ask,
    path: Path,
    z: Float[Tensor, "batch *rest"],
    start: float,
    end: float,
    tolerance: Tolerance,
    clock: str = "angle",
    on_step: Callable[[Tensor, Tensor, Tensor], bool] | None = None,
) -> Carried:
    """Follow the probability flow from time `start` to time `end`, in either direction.

    Args:
        ask: x0 from (z, t), t one time per sample.
        path: the path.
        z: y-free states at `start`.
        start: time at which they stand.
        end: where they go; sigma > 0 at both.
        tolerance: error control, in units of u (see `Flow`).
        clock: "angle" or "time".
        on_step: on_step(z, t, x0) after every step; False stops.
    """
    flow = Flow(path, clock)
    ends = [torch.full(z.shape[:1], flow.at(t), dtype=torch.float64, device=z.device) for t in (start, end)]

    def slope(v: Tensor, state: Tensor) -> Tensor:
        w = flow.weights(v)
        u = state.view_as(z)
        # one time for all is told as a number, for which a prediction that says nothing there is refused
        t = start if v is ends[0] else w.t
        return (over(w.p, u) * u + over(w.q, u) * ask(over(w.scale, u) * u, t)).flatten(1)

    def carried(v: Tensor, state: Tensor, rate: Tensor) -> Carried:
        w = flow.weights(v)
        u, du = state.view_as(z), rate.view_as(z)
        return Carried(over(w.scale, u) * u, w.t, (du - over(w.p, u) * u) / over(w.q, u))

    def watch(v: Tensor, state: Tensor, rate: Tensor) -> bool:
        assert on_step is not None
        now = carried(v, state, rate)
        untouched = now.z._version
        going = on_step(now.z, now.t, now.x0)
        if now.z._version != untouched:  # the caller edited the state: go on from there
            state.copy_((now.z / over(flow.weights(v).scale, z)).flatten(1))
            rate.copy_(slope(v, state))
        return going

    u = z / over(flow.weights(ends[0]).scale, z)
    done = dormand_prince(
        slope, ends[0], ends[1], u.flatten(1), tolerance, None if on_step is None else watch
    )
    return carried(*done)


@dataclass(frozen=True)
class RK45(StepwiseSolver):
    """The probability-flow ODE by Dormand–Prince 5(4), its step sizes chosen for every sample by itself.

    Only the ends of the grid count. Where it ends at sigma = 0 the flow is followed to t_min (or to the last
    time asked, if that is cleaner) and the result is D there, which costs no further call.

    Args:
        rtol: relative tolerance of a step.
        atol: absolute tolerance, in units of the unit-variance frame ("angle") or of z ("time").
        clock: "angle", or "time" as published; see `Flow`.
        norm: "sample", or "batch" as published: one step size for a whole batch, whose samples then depend
            on each other.

    Raises:
        ValueError: if an option is unknown or out of range.

    Reference: Song et al. 2021 (Score-SDE), section 4.3 and appendix D.4; Dormand and Prince 1980.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    clock: str = "angle"
    norm: str = "sample"
    name = "ode45"
    order = 5

    def __post_init__(self) -> None:
        _ = self._tolerance
        if self.clock not in CLOCKS:
            raise ValueError(f"clock must be 'angle' or 'time', not {self.clock!r}")

    @property
    def _tolerance(self) -> Tolerance:
        return Tolerance(self.rtol, self.atol, self.norm)

    def integrate(
        self,
        ask: Ask,
        path: Path,
        grid: Sequence[float],
        z: Tensor,
        noise: Callable[[Tensor], Tensor],
        on_step: Report,
    ) -> Tensor:
        points = levels(path, grid)
        last, clean = points[-1], points[-1].sigma == 0.0
        end = min(points[-2].t, path.t_min) if clean else last.t
        if end >= points[0].t:
            return last.a * ask(z, points[0].t)
        going = True

        def report(state: Tensor, t: Tensor, x0: Tensor) -> bool:
            nonlocal going
            going = on_step(state, t, x0)
            return going

        done = carry(ask, path, z, points[0].t, end, self._tolerance, self.clock, report)
        return last.a * done.x0 if clean and going else done.z


SOLVERS = {
    "ode45": Listed(
        RK45, "Song et al. 2021, probability flow by RK45", "6 a step, adaptive", "the exact flow, reference"
    ),
}
