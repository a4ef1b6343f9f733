"""Plan: a sampling method on a fixed grid, written as a table of linear combinations."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction

Kind = Literal["x", "d", "e", "out", "n", "y"]
Number = float | tuple[float, ...]
_KINDS: tuple[str, ...] = get_args(Kind)


class Term(NamedTuple):
    """One summand of a row: coefficient times an earlier vector.

    Attributes:
        kind: "x" an earlier state, "d" / "e" the denoised sample / the noise estimated by a network call,
            "out" the raw network value of a call (folded plans), "n" a noise draw, "y" the degraded input.
        index: which state, call or draw (0 for "y").
        coefficient: a float, or one float per sample of the batch.
        head: which of several outputs of the network ("out" only).
    """

    kind: Kind
    index: int
    coefficient: Number
    head: int = 0


@dataclass(frozen=True)
class Row:
    """One state: the sum of `terms`, standing at time `t`.

    Attributes:
        terms: summands; empty for a state that is given.
        t: time of the state, one per sample in a stacked plan; None for an auxiliary vector (velocity).
        ask: the network is asked at this state and time; the answers are numbered in the order of the rows.
        step: the row ends a step (it is reported to `on_step`); False for inner stages.
    """

    terms: tuple[Term, ...]
    t: Number | None
    ask: bool = False
    step: bool = True


@dataclass(frozen=True)
class Plan:
    """A compiled sampler: rows x_k = sum_j c_kj·v_j over earlier states, network values, noise draws and y.

    Plans are data: they print as a table, plot, save as JSON, run backwards and compare equal by value.
    `Solver.compile` or `PlanBuilder` makes them, `fewstep.core.run.run` executes them.

    Attributes:
        rows: the table; the first `starts` rows are given.
        path: the path whose times and coefficients the rows use.
        solver: name of the method, for people.
        starts: number of given states.
        results: indices of the rows that are returned; the last row by default.
        prediction: what "out" means; None as long as the plan is written in "d" and "e".

    Raises:
        ValueError: if a row uses what does not exist yet, or has a coefficient that is not finite.

    Example:
        >>> from fewstep.core import paths, solvers
        >>> print(solvers.get("ddim").compile(paths.EDM(), (80.0, 1.0, 0.0)))
        ddim on EDM: 2 steps, 2 network calls
        row   t   sigma/a  asks  state
        x[0]  80  80       [0]   given
        x[1]  1   1        [1]   0.0125 x[0] + 0.9875 D[0]
        x[2]  0   0              1 D[1]
    """

    rows: tuple[Row, ...]
    path: Path
    solver: str = "custom"
    starts: int = 1
    results: tuple[int, ...] = ()
    prediction: Prediction | None = None

    def __post_init__(self) -> None:
        if not self.results:
            object.__setattr__(self, "results", (len(self.rows) - 1,))
        _check(self)

    @cached_property
    def _hash(self) -> int:
        return hash((self.rows, self.path, self.solver, self.starts, self.results, self.prediction))

    def __hash__(self) -> int:  # made once: plans are looked up on every call of `sample`
        return self._hash

    @property
    def nfe(self) -> int:
        """Number of network calls."""
        return sum(row.ask for row in self.rows)

    @cached_property
    def steps(self) -> int:
        """Number of rows that end a step."""
        return sum(row.step for row in self.rows[self.starts :])

    @cached_property
    def _kinds(self) -> frozenset[str]:
        return frozenset(term.kind for row in self.rows for term in row.terms)

    def uses(self, kind: Kind) -> bool:
        """Whether some row has a term of this kind."""
        return kind in self._kinds

    @property
    def draws(self) -> int:
        """Number of noise draws."""
        return len({term.index for row in self.rows for term in row.terms if term.kind == "n"})

    @property
    def start_time(self) -> Number | None:
        """Time of the (first) given state."""
        return self.rows[0].t

    @cached_property
    def batch(self) -> int | None:
        """Number of samples of a stacked plan; None if one grid serves every sample."""
        return next((len(row.t) for row in self.rows if isinstance(row.t, tuple)), None)

    def folded(self, prediction: Prediction) -> "Plan":
        """Return the same plan in terms of raw network values; see `fewstep.core.folding.fold`."""
        from fewstep.core.folding import fold

        return fold(self, prediction)

    def inverse(self, iterations: int = 1) -> "Plan":
        """Return the plan that leads from the result to the start; see `fewstep.core.inversion.invert`."""
        from fewstep.core.inversion import invert

        return invert(self, iterations)

    def keeping(self, count: int) -> "Plan":
        """Return the same plan with its last `count` step states as results (oldest first).

        Raises:
            ValueError: if there are not so many.
        """
        ends = [k for k, row in enumerate(self.rows) if row.step]
        if not 1 <= count <= len(ends):
            raise ValueError(f"count must be between 1 and {len(ends)} for this plan, got {count}")
        return replace(self, results=tuple(ends[-count:]))

    @staticmethod
    def stack(plans: Sequence["Plan"]) -> "Plan":
        """Return one plan for a batch in which sample i follows plans[i]: own grid, shared network calls.

        Raises:
            ValueError: if the plans differ in path, number of rows, calls or results.
        """
        if not plans:
            raise ValueError("plans must hold at least one plan, got none")
        first = plans[0]
        for i, other in enumerate(plans):
            if _skeleton(other) != _skeleton(first):
                raise ValueError(
                    "plans must share the path, the prediction and the pattern of rows and network calls, "
                    f"but plan {i} ({other.solver}, {len(other.rows)} rows) differs from plan 0 "
                    f"({first.solver}, {len(first.rows)} rows)"
                )
        rows = [_stack_rows(group) for group in zip(*(plan.rows for plan in plans), strict=True)]
        return replace(first, rows=tuple(rows))

    def unstack(self, sample: int) -> "Plan":
        """Return the plan that one sample of a stacked plan follows.

        Raises:
            ValueError: if the plan is not stacked or has no such sample.
        """
        size = self.batch or 0
        if not 0 <= sample < size:
            raise ValueError(f"sample must lie in [0, {size}) for this plan, got {sample}")

        def pick(value: Number | None) -> Any:
            return value[sample] if isinstance(value, tuple) else value

        def terms(row: Row) -> tuple[Term, ...]:
            picked = (term._replace(coefficient=pick(term.coefficient)) for term in row.terms)
            return tuple(term for term in picked if term.coefficient != 0.0)

        return replace(self, rows=tuple(replace(row, t=pick(row.t), terms=terms(row)) for row in self.rows))

    def plot(self, ax: Any = None) -> Any:
        """Draw noise level against step, network calls marked; see `fewstep.core.plotting.plot_plan`."""
        from fewstep.core.plotting import plot_plan

        return plot_plan(self, ax)

    def to_json(self) -> str:
        """Return JSON text from which `from_json` makes an equal plan, bit for bit.

        Raises:
            ValueError: if the plan is folded: it belongs to one network then.
        """
        from fewstep.core.plan_text import to_json

        return to_json(self)

    @staticmethod
    def from_json(text: str) -> "Plan":
        """Return the plan that `to_json` wrote.

        Raises:
            ValueError: if the text is not such a plan.
        """
        from fewstep.core.plan_text import from_json

        return from_json(text)

    def __str__(self) -> str:
        from fewstep.core.plan_text import table

        return table(self)


def _check(plan: Plan) -> None:
    """Refuse a table that the runner could not execute."""
    size = len(plan.rows)
    if not 1 <= plan.starts <= size:
        raise ValueError(f"starts must be between 1 and the number of rows {size}, got {plan.starts}")
    if any(not 0 <= k < size for k in plan.results):
        raise ValueError(f"results must name rows 0 to {size - 1}, got {plan.results}")
    asked = 0
    for k, row in enumerate(plan.rows):
        if (k < plan.starts) != (not row.terms):
            raise ValueError(f"row {k} must {'be given, without terms' if k < plan.starts else 'have terms'}")
        if row.ask and row.t is None:
            raise ValueError(f"row {k} asks the network but has no time")
        limits = {"x": k, "d": asked, "e": asked, "out": asked, "y": 1}
        for kind, index, coefficient, _ in row.terms:
            if kind not in _KINDS:
                raise ValueError(f"row {k} has a term of kind {kind!r}; allowed: {', '.join(_KINDS)}")
            if not 0 <= index < limits.get(kind, index + 1):
                raise ValueError(f"row {k} uses {kind}[{index}] before it exists")
            values = coefficient if isinstance(coefficient, tuple) else (coefficient,)
            if not all(map(math.isfinite, values)):
                raise ValueError(f"row {k} needs a finite coefficient on {kind}[{index}], got {coefficient}")
        asked += row.ask


def _skeleton(plan: Plan) -> tuple[object, ...]:
    pattern = tuple((row.ask, row.step, row.t is None) for row in plan.rows)
    return plan.path, plan.prediction, plan.starts, plan.results, pattern


def _stack_rows(rows: Sequence[Row]) -> Row:
    """One row whose coefficients hold one float per sample; a term that a sample lacks counts 0 there."""
    columns: list[dict[tuple[Kind, int, int], Number]] = [
        {(term.kind, term.index, term.head): term.coefficient for term in row.terms} for row in rows
    ]
    keys = dict.fromkeys(key for column in columns for key in column)
    terms = tuple(
        Term(kind, index, tuple(_single(column.get((kind, index, head), 0.0)) for column in columns), head)
        for kind, index, head in keys
    )
    times = None if rows[0].t is None else tuple(_single(row.t) for row in rows)
    return replace(rows[0], terms=terms, t=times)


def _single(value: Number | None) -> float:
    if not isinstance(value, float):
        raise ValueError("plans must not be stacked already")
    return value
