"""Inversion: the plan that runs a sampler backwards, from its result to its start."""

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from fewstep.core.builder import PlanBuilder, Vector
from fewstep.core.paths import Path
from fewstep.core.plan import Plan, Row, Term
from fewstep.core.solvers.base import levels
from fewstep.core.solvers.first_order import first_order_step

ROUNDING_TOLERANCE = 1e-5
"""Relative rounding error that an exact inverse may have, and above which it is refused."""


def invert(plan: Plan, iterations: int = 1) -> Plan:
    """Run a deterministic plan backwards.

    Two kinds of plans have an inverse:

    One-step maps (DDIM), in z = x − b·y: z_k+1 = alpha·z_k + beta·eps(z_k, t_k) is solved for z_k by the
    fixed-point iteration z_k ← (z_k+1 − beta·eps(z_k, t_k))/alpha from the guess z_k+1. One iteration is the
    DDIM inversion of the literature; more iterations converge to the exact inverse.

    Two-state maps (BDIA): z_k+1 = gamma·z_k−1 + alpha·z_k + c·eps(z_k, t_k) gives z_k−1 exactly from the last
    two states. The inverse starts from (last, last but one); see `Plan.keeping(2)` and `run_states`. Rounding
    errors grow by 1/gamma a step, so it is refused where gamma^−n is too much for float64.

    Args:
        plan: an unfolded plan without noise draws.
        iterations: fixed-point iterations a step, and network calls a step, of a one-step map.

    Returns:
        The inverse plan; its times increase.

    Raises:
        ValueError: if the plan is folded, draws noise or is of neither kind, or its inverse would drown in
            rounding errors.

    Reference: Song, Meng and Ermon 2021 (DDIM), section 4.3; Pan et al. 2023, fixed-point inversion;
        Zhang et al. 2023 (BDIA), equation 15.
    """
    if iterations < 1:
        raise ValueError(f"iterations must be at least 1, not {iterations}")
    if plan.prediction is not None or plan.batch is not None:
        raise ValueError("invert the plan before it is folded or stacked")
    if plan.draws:
        raise ValueError(
            f"{plan.solver} draws noise and has no inverse; use a deterministic solver such as 'ddim'"
        )
    rows = plan.rows
    moving = range(plan.starts, len(rows))
    if plan.starts == 1 and all(_uses(rows[k]) <= {("x", k - 1), ("m", k - 1)} for k in moving):
        return _invert_one_step(plan, iterations)
    if is_two_state(plan):
        _check_growth(plan)
        return _invert_two_states(plan)
    raise ValueError(
        f"{plan.solver} has no inverse: its rows are neither one-step maps (such as 'ddim') "
        "nor two-state maps (such as BDIA)"
    )


def is_two_state(plan: Plan) -> bool:
    """Whether each state after the second depends on the two before it and the call at the last one."""
    rows = plan.rows
    return (
        len(rows) > 2
        and all(row.ask for row in rows[1:-1])
        and all(
            {("x", k - 2)} <= _uses(rows[k]) <= {("x", k - 2), ("x", k - 1), ("m", k - 1)}
            for k in range(2, len(rows))
        )
    )


def inverse_growth(plan: Plan) -> float:
    """Factor by which a round trip with a two-state plan can enlarge a rounding error, for data of unit size.

    The map has a second, alternating solution. Backwards it grows by 1/gamma a step. Forwards it grows as
    fast as the true one shrinks, from sigma to 1, on top of the size of the noisy state: sigma²/a in all.
    """
    shares = (
        term.coefficient
        for k, row in enumerate(plan.rows)
        for term in row.terms
        if term.kind == "x" and term.index == k - 2
    )
    backwards = math.prod(max(1.0, 1.0 / abs(share)) for share in shares if isinstance(share, float))
    sigma, a = plan.path.coefficients(_time(plan.rows[0]))[2], plan.path.coefficients(_time(plan.rows[-1]))[0]
    return max(backwards, sigma * sigma / a)


def resumed(plan: Plan) -> Plan:
    """The two-state plan without its first step: it starts from its first two states.

    Raises:
        ValueError: if the plan is not such a map.
    """
    if plan.starts != 1 or not is_two_state(plan):
        raise ValueError(f"{plan.solver} is not a two-state map such as 'bdia'")

    def later(term: Term) -> Term:
        return term._replace(index=term.index - 1) if term.kind in ("d", "e") else term

    first, second, *rest = plan.rows
    rows = [replace(first, ask=False), replace(second, terms=()), *rest]
    rows[2:] = [replace(row, terms=tuple(map(later, row.terms))) for row in rest]
    return replace(plan, rows=tuple(rows), starts=2)


def ddim_ascent(path: Path, grid: Sequence[float]) -> Plan:
    """DDIM up the grid, from its last time s to its first: z_t = a_t·D(z_s, s) + sigma_t·eps(z_s, s).

    This is Euler's method on the reversed ODE, the plain DDIM inversion: its round trip with DDIM has an
    error of first order. At a clean end with sigma = 0, where the network cannot be asked, it is asked at the
    next time instead.

    Args:
        path: the path.
        grid: strictly decreasing times, as for sampling.

    Reference: Song, Meng and Ermon 2021 (DDIM), section 4.3 and appendix F.
    """
    points = levels(path, grid)[::-1]
    build = PlanBuilder(path, "ddim ascent")
    x = build.start(points[0].t)
    for s, t in itertools.pairwise(points):
        if s.sigma > 0.0:
            x = first_order_step(build, x, build.ask(x), s, t)
            continue
        call = build.ask(build.step(t.t, {x: 1.0}, inner=True))
        x = build.step(t.t, {x: t.a / s.a, call.e: t.sigma})
    return build.build()


def _check_growth(plan: Plan) -> None:
    growth = inverse_growth(plan)
    if growth * torch.finfo(torch.float64).eps > ROUNDING_TOLERANCE:
        raise ValueError(
            f"the inverse of {plan.solver} in {plan.steps} steps would enlarge rounding errors {growth:.1e} "
            "times, too much for float64; take gamma closer to 1 or fewer steps"
        )


def _uses(row: Row) -> set[tuple[str, int]]:
    """States and calls of a row; calls get the number of their state if every state but the last asks."""
    return {("x" if term.kind == "x" else "m", term.index) for term in row.terms if term.kind != "y"}


def _in_noise_form(plan: Plan, k: int, asked: int) -> dict[tuple[str, int], float]:
    """Coefficients of row k with D = (z − sigma·E)/a put in, so that only states and E remain."""
    total: dict[tuple[str, int], float] = {}
    a, _, sigma = plan.path.coefficients(_time(plan.rows[asked]))
    for term in plan.rows[k].terms:
        c = term.coefficient
        assert isinstance(c, float)
        if term.kind == "d":
            if a == 0.0:
                raise ValueError(
                    f"{plan.solver} has no inverse: a = 0 at t = {plan.rows[asked].t} forgets the start"
                )
            parts: Iterable[tuple[tuple[str, int], float]] = [
                (("x", asked), c / a),
                (("e", term.index), -c * sigma / a),
            ]
        else:
            parts = [((term.kind, term.index), c)] if term.kind != "y" else []
        for key, value in parts:
            total[key] = total.get(key, 0.0) + value
    return total


def _invert_one_step(plan: Plan, iterations: int) -> Plan:
    build = PlanBuilder(plan.path, f"{plan.solver} inverse")
    x = build.start(_time(plan.rows[-1]))
    for k in range(len(plan.rows) - 1, 0, -1):
        t = _time(plan.rows[k - 1])
        pure_noise = plan.path.coefficients(t)[0] == 0.0  # there D depends little on z, and eps is z/sigma
        form = _as_written(plan.rows[k]) if pure_noise else _in_noise_form(plan, k, k - 1)
        alpha, beta = form.get(("x", k - 1), 0.0), form.get(("d" if pure_noise else "e", k - 1), 0.0)
        if alpha == 0.0:
            raise ValueError(f"{plan.solver} has no inverse: row {k} does not depend on the state before it")
        guess = build.step(t, {x: 1.0}, inner=True)
        for count in range(iterations):
            call = build.ask(guess)
            asked = call.d if pure_noise else call.e
            guess = build.step(t, {x: 1.0 / alpha, asked: -beta / alpha}, inner=count < iterations - 1)
        x = guess
    return build.build()


def _as_written(row: Row) -> dict[tuple[str, int], float]:
    """Coefficients of a row without its y."""
    return {term[:2]: term.coefficient for term in row.terms if isinstance(term.coefficient, float)}


def _invert_two_states(plan: Plan) -> Plan:
    build = PlanBuilder(plan.path, f"{plan.solver} inverse")
    rows = plan.rows
    first_call = int(rows[0].ask)
    newer: Vector = build.start(_time(rows[-1]))
    older: Vector = build.start(_time(rows[-2]))
    for k in range(len(rows) - 1, 1, -1):
        form = _in_noise_form(plan, k, k - 1)
        call = build.ask(older)
        gamma = form[("x", k - 2)]
        terms = {
            newer: 1.0 / gamma,
            older: -form.get(("x", k - 1), 0.0) / gamma,
            call.e: -form.get(("e", k - 2 + first_call), 0.0) / gamma,
        }
        newer, older = older, build.step(_time(rows[k - 2]), terms)
    return build.build()


def _time(row: Row) -> float:
    if not isinstance(row.t, float):
        raise ValueError("a plan with auxiliary vectors has no inverse")
    return row.t
