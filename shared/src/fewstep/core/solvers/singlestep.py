"""Singlestep DPM-Solver and DPM-Solver++, orders 1 to 3: each step makes its own calls and forgets them."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from fewstep.core.builder import PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.solvers.base import Level, Listed, Node, Solver, check_choice, levels
from fewstep.core.solvers.dpm_step import (
    CORRECTIONS,
    FORMS,
    denoise_to_zero,
    linear_step,
    value,
)
from fewstep.core.solvers.first_order import first_order_step

RATIOS = {1: (), 2: (1 / 2,), 3: (1 / 3, 2 / 3)}


@dataclass(frozen=True)
class SingleStep(Solver):
    """Singlestep DPM-Solver ("noise") or DPM-Solver++ ("data"): `order` network calls in a step.

    A step of length h in lam = log(a/sigma) asks at lam_t, at lam_t + r1·h after a first-order step and, for
    order 3, at lam_t + r2·h after a second-order "taylor" step. Then, with the phi functions of
    `dpm_step.linear_step`, D1 = (m1 − m0)/r1 and so on, it adds to the first-order step

        order 2    c·D1,  c = phi_1/2 ("midpoint") or phi_2 ("taylor"),
        order 3    phi_2·(m2 − m0)/r2 ("midpoint") or the exact integral of the parabola ("taylor").

    With eta > 0 (ancestral sampling) the step ends lower, at sigma_down² = sigma_s² − delta², and a draw of
    delta = eta·sigma_s·sqrt(1 − kappa_s²/kappa_t²), kappa = sigma/a, fills it up. The step to sigma = 0 and
    one from a = 0 have order 1, and one call.

    Args:
        order: network calls in a step, 1, 2 or 3.
        form: "data" or "noise", what is interpolated.
        correction: "midpoint" (the published "dpmsolver") or "taylor".
        r1: place of the second call; 1/2 for order 2, 1/3 for order 3.
        r2: place of the third call, 2/3; "midpoint" is of order 3 with 2/3 only.
        eta: share of fresh noise, 0 to 1.
        denoise_to_zero: one more call at the end of the grid, whose denoised sample is the result.
        noise_scale: factor on the draws.

    Raises:
        ValueError: if an option is out of range.

    Reference: Lu et al. 2022 (DPM-Solver), algorithms 1, 2, 4 and 5; Lu et al. 2022 (DPM-Solver++),
        algorithm 1; eta: the "ancestral" samplers of k-diffusion.
    """

    order: int = 2
    form: str = "data"
    correction: str = "midpoint"
    r1: float | None = None
    r2: float | None = None
    eta: float = 0.0
    denoise_to_zero: bool = False
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in RATIOS:
            raise ValueError(f"order must be 1, 2 or 3, not {self.order}")
        check_choice("form", self.form, FORMS)
        check_choice("correction", self.correction, CORRECTIONS)
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1], not {self.eta}")
        if not (math.isfinite(self.noise_scale) and self.noise_scale >= 0.0):
            raise ValueError(f"noise_scale must be at least 0, not {self.noise_scale}")
        for number, name in ((2, "r1"), (3, "r2")):
            if getattr(self, name) is not None and self.order < number:
                raise ValueError(f"{name} is not used at order {self.order}")
        ratios = self.ratios
        if not all(0.0 < r < 1.0 for r in ratios) or sorted(set(ratios)) != list(ratios):
            raise ValueError(
                f"r1 and r2 must satisfy 0 < r1 < r2 < 1, they are {', '.join(map(str, ratios))}"
            )

    @property
    def name(self) -> str:
        family = "dpmpp" if self.form == "data" else "dpm"
        return f"{family}-{self.order}{'s' if self.order > 1 else ''}{' ancestral' if self.eta else ''}"

    @property
    def ratios(self) -> tuple[float, ...]:
        """Places of the inner calls."""
        given = (self.r1, self.r2)[: self.order - 1]
        return tuple(d if r is None else r for r, d in zip(given, RATIOS[self.order], strict=True))

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        splits = [ancestral_split(t, s, self.eta) for t, s in itertools.pairwise(points)]
        inner = inner_levels(
            path, [(t, down, self.ratios) for t, (down, _) in zip(points, splits, strict=False)]
        )
        for (t, s), (down, delta), between in zip(itertools.pairwise(points), splits, inner, strict=True):
            spread = self.noise_scale * delta
            if is_finite(t, down):
                x = single_step(build, x, t, down, between, self.form, self.correction, spread=spread)
            else:
                x = first_order_step(build, x, build.ask(x), t, s, delta, spread)
        if self.denoise_to_zero:
            denoise_to_zero(build, x, points[-1])
        return build.build()


def ancestral_split(t: Level, s: Level, eta: float) -> tuple[Level, float]:
    """Where a step should end so that a draw of standard deviation delta completes it; and delta.

    delta² = eta²·sigma_s²·(1 − (kappa_s/kappa_t)²), kappa = sigma/a. The level returned stands at the time s.
    """
    if eta == 0.0:
        return s, 0.0
    falling = s.sigma * t.a / (s.a * t.sigma) if s.a > 0.0 else 0.0
    delta = eta * s.sigma * math.sqrt(max(1.0 - falling**2, 0.0))
    return s._replace(sigma=math.sqrt(max(s.sigma**2 - delta**2, 0.0))), delta


def is_finite(t: Level, s: Level) -> bool:
    """Whether the step from t to s has a finite length in log(a/sigma)."""
    return math.isfinite(s.half_log_snr - t.half_log_snr)


def inner_levels(path: Path, steps: Sequence[tuple[Level, Level, Sequence[float]]]) -> list[Sequence[Level]]:
    """For steps (t, s, ratios) the levels in between in log(a/sigma); none if that is infinite."""
    used = [ratios if is_finite(t, s) else () for t, s, ratios in steps]
    wanted = [
        t.half_log_snr + r * (s.half_log_snr - t.half_log_snr)
        for (t, s, _), ratios in zip(steps, used, strict=True)
        for r in ratios
    ]
    found = iter(levels_at(path, wanted))
    return [[next(found) for _ in ratios] for ratios in used]


def level_at(path: Path, half_log_snr: float) -> Level:
    """The level with this log(a/sigma)."""
    return levels_at(path, [half_log_snr])[0]


def levels_at(path: Path, half_log_snr: Sequence[float]) -> list[Level]:
    """The levels with these values of log(a/sigma), in one evaluation."""
    if not half_log_snr:
        return []
    times = path.time_at(torch.tensor(half_log_snr, dtype=torch.float64)).tolist()
    return [Level(t, a, sigma) for t, (a, _, sigma) in zip(times, path.coefficients_at(times), strict=True)]


def single_step(
    build: PlanBuilder,
    x: Vector,
    t: Level,
    s: Level,
    inner: Sequence[Level],
    form: str,
    correction: str,
    stage: str = "taylor",
    spread: float = 0.0,
) -> Vector:
    """Add one step from t to s with a call at t and one at each inner level, at most two.

    Args:
        build: the plan so far.
        x: the state at t.
        t: start; a > 0.
        s: end, at its time; sigma > 0.
        inner: levels in between.
        form: "data" or "noise".
        correction: "midpoint" or "taylor".
        stage: rule of the second inner stage, "taylor", or "midpoint" as diffusers has it.
        spread: standard deviation of a draw at the end.
    """
    nodes = [Node(build.ask(x), t.half_log_snr)]

    def advance(
        end: Level, used: Sequence[Node], rule: str, noise: float = 0.0, within: bool = False
    ) -> Vector:
        length = end.half_log_snr - t.half_log_snr
        places = [(node.half_log_snr - t.half_log_snr) / length for node in used]
        keep, found = linear_step(form, t, end, length, places, rule)
        terms = {x: keep} | {value(form, node.call): w for node, w in zip(used, found, strict=True)}
        return build.step(end.t, terms, noise=noise, inner=within)

    for level in inner:
        guess = advance(level, nodes, stage, within=True)
        nodes.append(Node(build.ask(guess), level.half_log_snr))
    if len(nodes) == 3 and correction == "midpoint":
        return advance(s, [nodes[0], nodes[2]], "taylor", spread)
    return advance(s, nodes, correction, spread)


_NOISE, _DATA, _K = "Lu et al. 2022, DPM-Solver", "Lu et al. 2022, DPM-Solver++", "k-diffusion"
SOLVERS = {
    "dpm-2s": Listed(partial(SingleStep, order=2, form="noise"), f"{_NOISE}-2", "2n", "unguided"),
    "dpm-3s": Listed(partial(SingleStep, order=3, form="noise"), f"{_NOISE}-3", "3n", "unguided, accurate"),
    "dpmpp-2s": Listed(partial(SingleStep, order=2), f"{_DATA}(2S)", "2n", "strong guidance"),
    "dpmpp-3s": Listed(
        partial(SingleStep, order=3), f"{_DATA}(3S)", "3n", "third order from the first step on"
    ),
    "dpm-2": Listed(
        partial(SingleStep, order=2, form="noise"),
        f"{_K}, DPM2: dpm-2s under its other name",
        "2n − 1",
        "Karras grids",
    ),
    "dpm-2-ancestral": Listed(
        partial(SingleStep, order=2, form="noise", eta=1.0),
        f"{_K}, DPM2 a",
        "2n − 1",
        "20 calls on, draws noise",
    ),
    "dpmpp-2s-ancestral": Listed(
        partial(SingleStep, order=2, eta=1.0), f"{_K}, DPM++ 2S a", "2n − 1", "20 calls on, draws noise"
    ),
}
