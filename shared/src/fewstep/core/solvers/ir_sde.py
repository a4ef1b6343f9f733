"""IR-SDE's own samplers: its reverse SDE, its ODE and its posterior, for any path."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from fewstep.core.builder import PlanBuilder
from fewstep.core.paths import MeanReverting, Path
from fewstep.core.plan import Plan, Row, Term
from fewstep.core.solvers.base import Listed, Solver, check_choice, levels
from fewstep.core.solvers.score_sde import ScoreSDE, increment

EQUATIONS = {
    "sde": ("euler-maruyama", "sde"),
    "ode": ("euler-maruyama", "ode"),
    "posterior": ("ancestral", "sde"),
}


@dataclass(frozen=True)
class IRSDE(Solver):
    """The samplers of the mean-reverting SDE dx = theta·(y − x)·dt + lambda·sqrt(2·theta)·dw, z = x − b·y.

    With A = int theta dt = log(a_s/a_t) and r = e^(−A) over a step from t to s,

        sde         z_s = (1 + A)·z + 2·lambda²·A·score + lambda·sqrt(2·A)·w,
        ode         z_s = (1 + A)·z + lambda²·A·score,
        posterior   z_s = r·(sigma_s/sigma_t)²·z + a_s·(1 − r²)·(lambda/sigma_t)²·D + delta·w,
                    delta² = (sigma_s/sigma_t)²·lambda²·(1 − r²).

    On other paths lambda² = (sigma_t² − r²·sigma_s²)/(1 − r²) is that of the mean-reverting process which
    joins the two times. "sde" and "ode" are Euler's rule and want the whole table of 100 times; "posterior"
    is ancestral sampling.

    Args:
        equation: "sde", "ode" or "posterior".
        variant: "exact" ends at sigma = 0 with a_s·D; "official" makes a last step like the others, with its
            draw, and on `MeanReverting` takes Euler's step in x − y instead of z, as the published code
            does: its y has the weight a_s − (1 + A)·a_t more, of the order of Euler's own error.

    Raises:
        ValueError: if an option is unknown.

    Reference: Luo et al. 2023 (IR-SDE), equations 7 and 8; Luo et al. 2023 (Refusion), the ODE; the posterior
        is equation 13 of the former.
    """

    equation: str = "sde"
    variant: str = "exact"

    def __post_init__(self) -> None:
        if self.equation not in EQUATIONS:
            raise ValueError(f"equation must be one of {', '.join(EQUATIONS)}; not {self.equation!r}")
        check_choice("variant", self.variant, ("exact", "official"))

    @property
    def name(self) -> str:
        return f"ir-{self.equation}"

    @property
    def order(self) -> int:
        return 1

    def compile(self, path: Path, grid: Sequence[float]) -> Plan:
        points = levels(path, grid)
        predictor = ScoreSDE(*EQUATIONS[self.equation])
        build = PlanBuilder(path, self.name)
        x = build.start(points[0].t)
        extra: dict[int, float] = {}
        for t, s in itertools.pairwise(points):
            call = build.ask(x)
            if self.variant == "exact" or t.a <= 0.0:
                step = predictor.update(path, t, s, len(points) - 1)
                x = build.step(s.t, {x: step.x, call.d: step.x0}, noise=step.noise)
                continue
            change = increment(t, s)
            step = predictor.combine(change, t, last=False)
            x = build.step(s.t, {x: step.x, call.d: step.x0}, noise=step.noise)
            if predictor.rule == "euler-maruyama" and isinstance(path, MeanReverting):
                extra[x.index] = s.a - (1.0 + change.drift) * t.a
        return with_more_y(build.build(), extra)


def with_more_y(plan: Plan, extra: dict[int, float]) -> Plan:
    """The plan with more y in some rows than the frame z = x − b·y gives; row number -> what is added."""

    def row(k: int) -> Row:
        terms, y = list(plan.rows[k].terms), extra[k]
        for term in [term for term in terms if term.kind == "y"]:
            assert isinstance(term.coefficient, float)
            terms.remove(term)
            y += term.coefficient
        return replace(plan.rows[k], terms=(*terms, Term("y", 0, y)))

    return replace(plan, rows=tuple(row(k) if k in extra else old for k, old in enumerate(plan.rows)))


SOLVERS = {
    "ir-sde": Listed(IRSDE, "Luo et al. 2023, IR-SDE", "n", "its published restorers at 100 steps"),
    "ir-ode": Listed(
        partial(IRSDE, equation="ode"), "Luo et al. 2023, Refusion", "n", "deterministic IR-SDE, 100 steps"
    ),
    "ir-posterior": Listed(
        partial(IRSDE, equation="posterior"), "Luo et al. 2023, IR-SDE", "n", "IR-SDE in fewer steps"
    ),
}
