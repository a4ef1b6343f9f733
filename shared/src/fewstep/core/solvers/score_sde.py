"""Score-SDE: Euler–Maruyama, reverse diffusion and their probability-flow forms, as plans."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from fewstep.core.builder import PlanBuilder
from fewstep.core.paths import VE, LinearVP, Path, SubVP
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Solver, check_choice, levels
from fewstep.core.solvers.exponential import phi

RULES = ("euler-maruyama", "reverse-diffusion", "ancestral")
STEPS = ("integrated", "local", "published")


class Increment(NamedTuple):
    """What the forward SDE dz = f·z·dt + g·dw does between s and the noisier time t.

    Attributes:
        drift: −int f dt.
        diffusion: int g² dt.
        keep: r of the discretised forward chain z_t = r·z_s + sqrt(fresh)·w.
        fresh: variance that the chain adds.
        spread: standard deviation of the draw of ancestral sampling.
    """

    drift: float
    diffusion: float
    keep: float
    fresh: float
    spread: float


class Update(NamedTuple):
    """z_s = x·z_t + x0·D(z_t) + noise·w."""

    x: float
    x0: float
    noise: float


@dataclass(frozen=True)
class ScoreSDE(Solver):
    """A predictor of Score-SDE: one step of the reverse SDE dz = (f·z − g²·score)·dt + g·dw from t to s.

    score = (a·D − z)/sigma². With A = −int f dt and B = int g² dt over the step, and the forward chain
    z_t = r·z_s + G·w, r = a_t/a_s, G² = sigma_t² − r²·sigma_s²:

        euler-maruyama      z_s = (1 + A)·z + B·score + sqrt(B)·w,
        reverse-diffusion   z_s = (2 − r)·z + G²·score + G·w,
        ancestral           z_s = (z + G²·score)/r + delta·w, delta = G·sigma_s/sigma_t.

    The probability-flow forms (equation = "ode") have half the score term and no draw. These rules follow
    the clock of the SDE, not sigma/a, so they are not the same on VP and VE forms of one path, and they want
    many small steps. A step from a = 0 is drawn from the posterior, a step to sigma = 0 is a_s·D.

    Args:
        rule: one of the three above.
        equation: "sde" or "ode" (not for ancestral sampling, which is an SDE).
        steps_as: "integrated": A = −log r and B = −2·log(r)·G²/(1 − r²), the integrals of the
            Ornstein–Uhlenbeck process that joins the two times; independent of how time runs, and right on
            tables. "local": A and B (and 1 − r, G²) are f and g² at t times (t − s), as in textbooks; tables
            are integrated. "published": the tables of N noise levels of the published code, whose step 1/N
            does not look at the grid; VP linear, sub-VP and VE only. Then a last step to sigma = 0 is the
            mean of the rule and the draw of ancestral sampling on VP is G, as published.
        count: N of "published"; 0 takes the number of steps of the grid.

    Raises:
        ValueError: if an option is unknown, or (when compiled) the path has no published table.

    Reference: Song, Sohl-Dickstein, Kingma, Kumar, Ermon and Poole 2021, equations 6 and 13, appendix D to F.
    """

    rule: str = "reverse-diffusion"
    equation: str = "sde"
    steps_as: str = "integrated"
    count: int = 0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule must be one of {', '.join(RULES)}; not {self.rule!r}")
        check_choice("equation", self.equation, ("sde", "ode"))
        if self.rule == "ancestral" and self.equation == "ode":
            raise ValueError("equation must be 'sde' for rule 'ancestral', not 'ode'")
        if self.steps_as not in STEPS:
            raise ValueError(f"steps_as must be one of {', '.join(STEPS)}; not {self.steps_as!r}")
        if self.count < 0:
            raise ValueError(f"count must not be negative, it is {self.count}")

    @property
    def name(self) -> str:
        return self.rule if self.equation == "sde" else f"{self.rule} ode"

    @property
    def order(self) -> int:
        return 1

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        for t, s in itertools.pairwise(points):
            call = build.ask(x)
            step = self.update(path, t, s, len(points) - 1)
            x = build.step(s.t, {x: step.x, call.d: step.x0}, noise=step.noise)
        return build.build()

    def update(self, path: Path, t: Level, s: Level, steps: int) -> Update:
        """The coefficients of the step from t to s on a grid of `steps` steps."""
        if self.steps_as != "published":
            if t.a <= 0.0:
                keep, noise = (s.sigma / t.sigma, 0.0) if self.equation == "ode" else (0.0, s.sigma)
                return Update(keep, s.a - keep * t.a, noise)
            if s.sigma == 0.0:
                return Update(0.0, s.a, 0.0)
        return self.combine(self.increment(path, t, s, steps), t, s.sigma == 0.0)

    def increment(self, path: Path, t: Level, s: Level, steps: int) -> Increment:
        """What the forward SDE does over the step, as `steps_as` says."""
        if self.steps_as == "published":
            return published_increment(path, t, self.count or steps)
        if self.steps_as == "local" and not path.is_discrete:
            return local_increment(path, t, s)
        return increment(t, s)

    def combine(self, step: Increment, t: Level, last: bool) -> Update:
        """The rule itself; the last step draws nothing."""
        if self.rule == "euler-maruyama":
            keep, score, spread = 1.0 + step.drift, step.diffusion, math.sqrt(step.diffusion)
        elif self.rule == "reverse-diffusion":
            keep, score, spread = 2.0 - step.keep, step.fresh, math.sqrt(step.fresh)
        else:
            keep, score, spread = 1.0 / step.keep, step.fresh / step.keep, step.spread
        if self.equation == "ode":
            score, spread = 0.5 * score, 0.0
        return with_score(keep, score, 0.0 if last else spread, t)


def with_score(keep: float, score: float, noise: float, t: Level) -> Update:
    """keep·z + score·(a·D − z)/sigma² + noise·w, in terms of z and D."""
    pull = score / t.sigma**2
    return Update(keep - pull, pull * t.a, noise)


def increment(t: Level, s: Level) -> Increment:
    """The exact forward chain from s to t, and A, B of the Ornstein–Uhlenbeck process with its r and G."""
    keep = t.a / s.a
    fresh = max(t.sigma**2 - (keep * s.sigma) ** 2, 0.0)
    drift = -math.log(keep)
    return Increment(drift, fresh / phi(1, -2.0 * drift), keep, fresh, math.sqrt(fresh) * s.sigma / t.sigma)


def local_increment(path: Path, t: Level, s: Level) -> Increment:
    """f and g² at t times the length of the step: f = a'/a, g² = 2·sigma·(sigma' − f·sigma)."""
    da, _, dsigma = path.derivatives(t.t)
    f, length = da / t.a, t.t - s.t
    drift, diffusion = -f * length, 2.0 * t.sigma * (dsigma - f * t.sigma) * length
    return Increment(drift, diffusion, 1.0 - drift, diffusion, math.sqrt(diffusion) * s.sigma / t.sigma)


def published_increment(path: Path, t: Level, count: int) -> Increment:
    """The discretised forward SDE of the published code at time t, with its `count` noise levels.

    VP takes beta from a table of `count` values, VE its two neighbouring levels; the index is rounded down.
    """
    index, dt = math.floor(t.t * (count - 1) + 1e-12), 1.0 / count
    place = index / max(count - 1, 1)
    if isinstance(path, VE):
        rate = math.log(path.sigma_max / path.sigma_min)
        level = path.sigma_min * math.exp(rate * place)
        below = path.sigma_min * math.exp(rate * (index - 1) / max(count - 1, 1)) if index else 0.0
        fresh = level**2 - below**2
        return Increment(0.0, 2.0 * rate * t.sigma**2 * dt, 1.0, fresh, below * math.sqrt(fresh) / level)
    if not isinstance(path, LinearVP | SubVP):
        raise ValueError(f"steps_as 'published' knows VP linear, sub-VP and VE, not {type(path).__name__}")
    slope = path.beta_max - path.beta_min
    beta = (path.beta_min + slope * t.t) * dt
    if isinstance(path, SubVP):  # has no table: its chain is the Euler–Maruyama step
        fresh = -beta * math.expm1(-2.0 * path.beta_min * t.t - slope * t.t**2)
        return Increment(0.5 * beta, fresh, 1.0 - 0.5 * beta, fresh, math.sqrt(fresh))
    fresh = (path.beta_min + slope * place) * dt
    if fresh >= 1.0:
        raise ValueError(
            f"count {count} is too small for the published table: its beta is {fresh:.3g} at t = {t.t:g}, "
            "and the chain needs it below 1"
        )
    return Increment(0.5 * beta, beta, math.sqrt(1.0 - fresh), fresh, math.sqrt(fresh))


SOLVERS = {
    "euler-maruyama": Listed(
        partial(ScoreSDE, rule="euler-maruyama"), "Song et al. 2021, Score-SDE", "n", "hundreds of steps"
    ),
    "reverse-diffusion": Listed(
        ScoreSDE, "Song et al. 2021, Score-SDE", "n", "hundreds of steps; predictor of pc"
    ),
}
