"""Inversion: the plan that runs a sampler backwards, from its result to its start."""

from collections.abc import Iterable

from fewstep.core.builder import PlanBuilder, Vector
from fewstep.core.plan import Plan, Row


def invert(plan: Plan, iterations: int = 1) -> Plan:
    """Run a deterministic plan backwards.

    Two kinds of plans have an inverse:

    One-step maps (DDIM), in z = x − b·y: z_k+1 = alpha·z_k + beta·eps(z_k, t_k) is solved for z_k by the
    fixed-point iteration z_k ← (z_k+1 − beta·eps(z_k, t_k))/alpha from the guess z_k+1. One iteration is the
    DDIM inversion of the literature; more iterations converge to the exact inverse.

    Two-state maps (BDIA): z_k+1 = gamma·z_k−1 + alpha·z_k + c·eps(z_k, t_k) gives z_k−1 exactly from the last
    two states. The inverse starts from (last, last but one); see `Plan.keeping(2)` and `run`.

    Args:
        plan: an unfolded plan without noise draws.
        iterations: fixed-point iterations a step, and network calls a step, of a one-step map.

    Returns:
        The inverse plan; its times increase.

    Raises:
        ValueError: if the plan is folded, draws noise or is of neither kind.

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
    two_state = all(
        {("x", k - 2)} <= _uses(rows[k]) <= {("x", k - 2), ("x", k - 1), ("m", k - 1)}
        for k in range(2, len(rows))
    )
    if len(rows) > 2 and two_state and all(row.ask for row in rows[1:-1]):
        return _invert_two_states(plan)
    raise ValueError(
        f"{plan.solver} has no inverse: its rows are neither one-step maps (such as 'ddim') "
        "nor two-state maps (such as BDIA)"
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
        form = _in_noise_form(plan, k, k - 1)
        alpha, beta = form.get(("x", k - 1), 0.0), form.get(("e", k - 1), 0.0)
        if alpha == 0.0:
            raise ValueError(f"{plan.solver} has no inverse: row {k} does not depend on the state before it")
        t = _time(plan.rows[k - 1])
        guess = build.step(t, {x: 1.0}, inner=True)
        for count in range(iterations):
            call = build.ask(guess)
            guess = build.step(t, {x: 1.0 / alpha, call.e: -beta / alpha}, inner=count < iterations - 1)
        x = guess
    return build.build()


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
