"""Momentum samplers: heavy ball, Nesterov and generalised heavy ball on equal-step Adams weights."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from fewstep.core.builder import PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, check_choice, levels
from fewstep.core.solvers.dpm_step import FORMS, value
from fewstep.core.solvers.exponential import lagrange_weights
from fewstep.core.solvers.first_order import first_order_step
from fewstep.core.solvers.noise_multistep import check_clean_step

KINDS = ("hb", "nt", "ghvb")


@dataclass(frozen=True)
class Momentum(Solver):
    """Adams–Bashforth with momentum, from time t to s, U a mean of the noise estimates e or the x0 estimates:

        noise form  z_s = a_s/a_t·z_t + a_s·(kappa_s − kappa_t)·U,     kappa = sigma/a,
        data form   z_s = sigma_s/sigma_t·z_t + (a_s − sigma_s·a_t/sigma_t)·U.

    With q = ceil(solver_order), beta its fraction (1 if it is whole) and AB_q the Adams–Bashforth mean of the
    newest q values for equal steps,

        "hb"     v ← (1 − beta)·v + beta·AB_q(e),   U = v                               heavy ball
        "nt"     the same v,                        U = (1 − beta)·v + beta·AB_q(e)     Nesterov
        "ghvb"   v ← (1 − beta)·v + beta·e,         U = sum_k w_k(beta)·v_k             generalised heavy ball

    and v starts as the first estimate. The weights of "ghvb" make up for the lag of v (`velocity_weights`);
    those of "hb" and "nt" do not, so that with beta < 1 they have order 1. A whole order is Adams–Bashforth
    for all three. Smaller beta damps more, against artefacts of strong guidance. A step from a = 0 is a DDIM
    step and its estimate is not used again.

    Args:
        kind: "hb", "nt" or "ghvb".
        solver_order: in (0, 5], such as 2.5 for q = 3 and beta = 0.5, or 1.8 for q = 2 and beta = 0.8.
        form: "noise", as published, or "data".
        clean_step: a step to sigma = 0, "ddim" returns the denoised estimate; "full" is as any other.

    Raises:
        ValueError: if an option is out of range.

    Reference: Wizadwongsa et al. 2024 (Diffusion Sampling with Momentum), heavy ball and its generalisation.
    """

    kind: str = "ghvb"
    solver_order: float = 2.5
    form: str = "noise"
    clean_step: str = "ddim"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        if not 0.0 < self.solver_order <= 5.0:
            raise ValueError(f"solver_order must be above 0 and at most 5, not {self.solver_order}")
        check_choice("form", self.form, FORMS)
        check_clean_step(self.clean_step)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.solver_order:g}"

    @property
    def order(self) -> int:
        lags = self.beta < 1.0 and (self.kind != "ghvb" or self.values == 1)
        return 1 if lags else min(self.values, 2)

    @property
    def values(self) -> int:
        """q, how many values a step uses when there are enough."""
        return math.ceil(self.solver_order)

    @property
    def beta(self) -> float:
        """Weight of the newest value in the velocity; 1 means no momentum."""
        return self.solver_order - self.values + 1.0

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        history: list[Vector] = []  # newest first: the velocities of "ghvb", the estimates of the others
        velocity: Vector | None = None
        for t, s in itertools.pairwise(points):
            call = build.ask(x)
            if t.a == 0.0 or (s.sigma == 0.0 and self.clean_step == "ddim"):
                x = first_order_step(build, x, call, t, s)
                continue
            newest = value(self.form, call)
            if self.kind == "ghvb" and history and self.beta < 1.0:
                newest = blend(build, history[0], {newest: 1.0}, self.beta)
            history = [newest, *history][: self.values]
            mean = dict(zip(history, self._mean_weights(len(history)), strict=True))
            if self.kind != "ghvb" and self.beta < 1.0:
                before, velocity = velocity, blend(build, velocity, mean, self.beta)
                mean = self._heavy_ball(before, velocity)
            keep, gain = advance(self.form, t, s)
            x = build.step(s.t, {x: keep} | {vector: gain * w for vector, w in mean.items()})
        return build.build()

    def _mean_weights(self, count: int) -> tuple[float, ...]:
        return velocity_weights(count, self.beta if self.kind == "ghvb" else 1.0)

    def _heavy_ball(self, before: Vector | None, after: Vector) -> dict[Vector, float]:
        """U from the old and the new velocity; the mean is (after − (1 − beta)·before)/beta."""
        if self.kind == "hb" or before is None:
            return {after: 1.0}
        return {after: 2.0 - self.beta, before: self.beta - 1.0}


def blend(
    build: PlanBuilder, velocity: Vector | None, mean: Mapping[Vector, float], beta: float, fade: float = 1.0
) -> Vector:
    """Add (1 − beta)·fade·velocity + beta·mean as a vector; without a velocity yet it is the mean itself."""
    if velocity is None:
        return next(iter(mean)) if list(mean.values()) == [1.0] else build.vector(mean)
    terms = {velocity: (1.0 - beta) * fade}
    for vector, weight in mean.items():  # the velocity may be one of them: it starts as the first estimate
        terms[vector] = terms.get(vector, 0.0) + beta * weight
    return build.vector(terms)


@lru_cache(maxsize=64)
def velocity_weights(count: int, beta: float) -> tuple[float, ...]:
    """The weights of velocities v_k = (1 − beta)·v_{k−1} + beta·e_k that integrate e over an equal step.

    In backward differences e = v + (1 − beta)/beta·∇v, so that the Adams–Bashforth sum_j g_j·∇^j e becomes
    sum_j (g_j + g_{j−1}·(1 − beta)/beta)·∇^j v, of which the first `count` terms are kept.

    Args:
        count: how many velocities, newest first.
        beta: in (0, 1]; 1 gives the Adams–Bashforth weights themselves.

    Returns:
        The weights; their sum is 1.

    Example:
        >>> [round(w, 9) for w in velocity_weights(2, 0.5)]
        [2.5, -1.5]

    Reference: Wizadwongsa et al. 2024, the generalised heavy ball methods of order 1 to 5.
    """
    lag = (1.0 - beta) / beta
    differences = [_adams(j) + lag * (_adams(j - 1) if j else 0.0) for j in range(count)]
    return tuple(
        sum((-1) ** k * math.comb(j, k) * differences[j] for j in range(k, count)) for k in range(count)
    )


def _adams(j: int) -> float:
    """g_j of the Adams–Bashforth sum over backward differences: 1, 1/2, 5/12, 3/8, 251/720 …"""
    oldest = lagrange_weights([-float(k) for k in range(j + 1)], 0.0)[-1]
    return (-1) ** j * oldest


def advance(form: str, t: Level, s: Level) -> tuple[float, float]:
    """(coefficient of z_t, coefficient of the mean) of a first-order step; finite at sigma = 0."""
    if form == "noise":
        keep = s.a / t.a
        return keep, s.sigma - keep * t.sigma
    keep = s.sigma / t.sigma
    return keep, s.a - keep * t.a


_PAPER = "Wizadwongsa et al. 2024"
SOLVERS = {
    "hb": Listed(
        partial(Momentum, kind="hb", solver_order=1.8),
        f"{_PAPER}, heavy ball",
        "n",
        "strong guidance, much damping",
    ),
    "nt": Listed(
        partial(Momentum, kind="nt", solver_order=1.8),
        f"{_PAPER}, Nesterov",
        "n",
        "strong guidance, less damping",
    ),
    "ghvb": Listed(
        partial(Momentum, kind="ghvb"), f"{_PAPER}, generalised heavy ball", "n", "8 to 20 calls, also guided"
    ),
}
