"""Q-Sched: two factors that adapt a plan to a quantised network, and their grid search."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from fewstep.core.plan import Plan, Row, Term
from fewstep.core.predictions import Prediction, get


def ramp(factor: float, count: int) -> tuple[float, ...]:
    """`count` factors in equal steps from `factor` to 1, one for every network call.

    Example:
        >>> ramp(0.8, 3)
        (0.8, 0.9, 1.0)
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    return tuple(factor + (1.0 - factor) * i / max(count - 1, 1) for i in range(count))


def scaled(
    plan: Plan,
    prediction: str | Prediction,
    model: float | Sequence[float] = 1.0,
    sample: float | Sequence[float] = 1.0,
) -> Plan:
    """A plan whose every call j sees its answer times model[j] and its state times sample[j] in all updates.

    x_next = c_x·sample_j·x_j + c·model_j·out_j + …; the network itself still gets the unscaled state. One
    number stands for a linear ramp from it to 1 (`ramp`), as published.

    Args:
        plan: an unfolded plan without per-sample grids.
        prediction: what the network predicts: its raw output is what is scaled.
        model: factors on the network's output.
        sample: factors on the states at which it is asked.

    Returns:
        A plan in the denoised sample and the noise, to be used like the one that was given.

    Raises:
        ValueError: if the plan is folded or stacked, or the number of factors is not that of the calls.

    Reference: Frumkin and Marculescu 2025, "Q-Sched".
    """
    prediction = get(prediction) if isinstance(prediction, str) else prediction
    if plan.batch is not None:
        raise ValueError("scale the plan before it is stacked")
    factors = _factors("model", model, plan.nfe), _factors("sample", sample, plan.nfe)
    folded = plan.folded(prediction)
    asked = [k for k, row in enumerate(folded.rows) if row.ask]
    call_of = {k: j for j, k in enumerate(asked)}

    def terms(row: Row) -> tuple[Term, ...]:
        total: dict[tuple[str, int], float] = {}

        def add(kind: str, index: int, value: float) -> None:
            total[kind, index] = total.get((kind, index), 0.0) + value

        for kind, index, c, head in row.terms:
            assert isinstance(c, float)
            if kind == "x":
                add(kind, index, c * (factors[1][call_of[index]] if index in call_of else 1.0))
            elif kind != "out":
                add(kind, index, c)
            else:
                time = folded.rows[asked[index]].t
                assert isinstance(time, float)
                target = prediction.target_weights(plan.path, time)[head]
                for name, weight in (("d", target.x0), ("e", target.eps)):
                    add(name, index, c * factors[0][index] * weight)
                add("y", 0, c * factors[0][index] * target.y)
        return tuple(Term(kind, index, c) for (kind, index), c in total.items() if c != 0.0)  # type: ignore[arg-type]

    rows = tuple(replace(row, terms=terms(row)) for row in folded.rows)
    return replace(folded, rows=rows, solver=f"{plan.solver} scaled", prediction=None)


@dataclass(frozen=True)
class Calibration:
    """What a search found.

    Attributes:
        plan: the best scaled plan.
        model: its factor on the network's first output.
        sample: its factor on the first state.
        score: its score.
        scores: every (model, sample, score) tried.
    """

    plan: Plan
    model: float
    sample: float
    score: float
    scores: tuple[tuple[float, float, float], ...]


def calibrate(
    plan: Plan,
    prediction: str | Prediction,
    score: Callable[[Plan], float],
    *,
    low: float = 0.8,
    high: float = 1.2,
    points: int = 10,
) -> Calibration:
    """Try a square grid of the two factors and keep the plan with the highest score.

    The published score (JAQ) is text alignment + k·no-reference image quality on some 20 calibration prompts;
    any function of a plan serves. The unscaled plan is tried as well, so the result is never worse than it.

    Args:
        plan: an unfolded plan.
        prediction: what the network predicts.
        score: plan -> number, higher is better.
        low: least factor.
        high: largest factor.
        points: factors per axis; points² + 1 evaluations.

    Raises:
        ValueError: if the range or the number of points makes no grid, or no score is finite.

    Reference: Frumkin and Marculescu 2025, "Q-Sched" (the search of its code).
    """
    if not 0.0 < low < high:
        raise ValueError(f"low and high must satisfy 0 < low < high; they are {low} and {high}")
    if points < 2:
        raise ValueError(f"points must be at least 2, not {points}")
    axis = [low + (high - low) * i / (points - 1) for i in range(points)]
    pairs = [(1.0, 1.0), *((m, s) for s in axis for m in axis)]
    found = tuple((m, s, float(score(scaled(plan, prediction, m, s)))) for m, s in pairs)
    finite = [entry for entry in found if math.isfinite(entry[2])]
    if not finite:
        raise ValueError("score returned no finite number for any of the factors")
    model, sample, value = max(finite, key=lambda entry: entry[2])
    return Calibration(scaled(plan, prediction, model, sample), model, sample, value, found)


def _factors(name: str, value: float | Sequence[float], count: int) -> tuple[float, ...]:
    factors = ramp(float(value), count) if isinstance(value, int | float) else tuple(map(float, value))
    if len(factors) != count:
        raise ValueError(
            f"{name} must hold one factor for each of the {count} calls, it holds {len(factors)}"
        )
    if not all(math.isfinite(factor) for factor in factors):
        raise ValueError(f"{name} must be finite, got {factors}")
    return factors
