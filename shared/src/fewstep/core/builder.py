"""PlanBuilder: how a solver writes a plan, thinking only in z = x − b·y."""

from collections.abc import Mapping
from typing import NamedTuple

from fewstep.core.paths import Path
from fewstep.core.plan import Kind, Plan, Row, Term


class Vector(NamedTuple):
    """A vector that a later row may use: a state, an estimate of a network call or a noise draw."""

    kind: Kind
    index: int
    t: float | None = None


class Call(NamedTuple):
    """A network call: `d` is its denoised sample (x0), `e` its noise (eps)."""

    d: Vector
    e: Vector


class PlanBuilder:
    """Collects the rows of a plan.

    A solver works with z = x − b(t)·y, in which every path is z = a·x0 + sigma·eps, and never sees y:
    for a state at time s made from states at times t_k with coefficients c_k the builder adds the term
    (b(s) − sum_k c_k·b(t_k))·y.

    Example:
        >>> from fewstep.core import paths
        >>> build = PlanBuilder(paths.EDM(), "euler")
        >>> x = build.start(80.0)
        >>> call = build.ask(x)
        >>> x = build.step(0.0, {call.d: 1.0})
        >>> build.build().nfe
        1

    Args:
        path: the path on which the times live.
        solver: name of the method, kept in the plan.
    """

    def __init__(self, path: Path, solver: str = "custom") -> None:
        self.path = path
        self.solver = solver
        self._rows: list[Row] = []
        self._starts = 0
        self._calls = 0
        self._draws = 0
        self._offsets: dict[float | None, float] = {None: 0.0}

    def start(self, t: float) -> Vector:
        """A given state at time t; a two-state map has two of them."""
        if self._starts < len(self._rows):
            raise ValueError("start must come before the first step")
        self._starts += 1
        return self._add(Row((), float(t)))

    def ask(self, state: Vector) -> Call:
        """Ask the network at the newest state."""
        if state.kind != "x" or state.index != len(self._rows) - 1 or state.t is None:
            raise ValueError(
                "ask takes the newest state with a time; copy an older one with step(t, {old: 1.0})"
            )
        row = self._rows[-1]
        if row.ask:
            raise ValueError("the network has been asked at this state already")
        self._rows[-1] = Row(row.terms, row.t, True, row.step)
        self._calls += 1
        return Call(Vector("d", self._calls - 1), Vector("e", self._calls - 1))

    def noise(self) -> Vector:
        """A fresh standard normal draw; use the same one in several rows to couple them."""
        self._draws += 1
        return Vector("n", self._draws - 1)

    def step(
        self, t: float, terms: Mapping[Vector, float], noise: float = 0.0, inner: bool = False
    ) -> Vector:
        """The state at time t as a linear combination.

        Args:
            t: its time.
            terms: coefficient of each vector; zeros are dropped.
            noise: coefficient of a fresh draw.
            inner: True for a stage inside a step, which `on_step` does not report.
        """
        return self._combine(float(t), terms, noise, not inner)

    def vector(self, terms: Mapping[Vector, float]) -> Vector:
        """An auxiliary vector without a time (a velocity, a stored difference), free of y."""
        return self._combine(None, terms, 0.0, False)

    def build(self, results: tuple[Vector, ...] = ()) -> Plan:
        """The plan; `results` are the states to return, the newest one by default."""
        if len(self._rows) == self._starts:
            raise ValueError("a plan needs at least one step")
        indices = tuple(state.index for state in results)
        return Plan(tuple(self._rows), self.path, self.solver, self._starts, indices)

    def _combine(self, t: float | None, terms: Mapping[Vector, float], noise: float, step: bool) -> Vector:
        offset = self._offset(t)
        size = abs(offset)
        summands = []
        for (kind, index, time), coefficient in terms.items():
            if coefficient == 0.0:
                continue
            summands.append(Term(kind, index, float(coefficient)))
            if kind == "x":
                offset -= coefficient * self._offset(time)
                size += abs(coefficient * self._offset(time))
        if noise != 0.0:
            summands.append(Term("n", self.noise().index, float(noise)))
        if (
            abs(offset) > 1e-13 * size
        ):  # below it is the rounding of a y that cancels, as in ResShift's posterior
            summands.append(Term("y", 0, offset))
        if not summands:  # a state that is exactly 0, as a clean start of a zero image would be
            raise ValueError(f"the step to t = {t} has no term with a coefficient other than 0")
        return self._add(Row(tuple(summands), t, False, step))

    def _offset(self, t: float | None) -> float:
        known = self._offsets.get(t)
        if known is None:
            known = self._offsets[t] = self.path.coefficients(float(t))[1] if self.path.uses_y else 0.0  # type: ignore[arg-type]
        return known

    def _add(self, row: Row) -> Vector:
        self._rows.append(row)
        return Vector("x", len(self._rows) - 1, row.t)  # type: ignore[arg-type]
