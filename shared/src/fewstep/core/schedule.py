"""Schedule: which buffer every vector of a plan lives in, found once per plan by liveness analysis."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from fewstep.core.plan import Number, Plan, Term

Vector = tuple[str, int]
_FOREVER = 1 << 60


class Instruction(NamedTuple):
    """What the runner does for one row; vectors are named by slots.

    Coefficients and times are floats or, per sample, tuples; the runner makes tensors of some.

    Attributes:
        draws: slots that receive fresh noise first.
        target: slot of the new state.
        source: slot of the first summand; `target` itself if it is scaled in place or the state is given.
        scale: its coefficient; None means 1.
        adds: the other summands, (slot, coefficient).
        t: time of the state.
        step: call `on_step`.
        release: slots whose network value is no longer needed.
        ask: ask the network at this state.
        value: slot of the first head of its answer; None if no row needs it.
    """

    draws: tuple[int, ...]
    target: int
    source: int
    scale: Any
    adds: tuple[tuple[int, Any], ...]
    t: Any
    step: bool
    release: tuple[int, ...]
    ask: bool
    value: int | None


@dataclass(frozen=True)
class Schedule:
    """Instructions and the layout of the slots: given states, y, state buffers, network values.

    Values are counted from the end, -1, -2, …, head by head.

    Attributes:
        instructions: one per row of the plan.
        slots: number of slots.
        pool: slots that hold a preallocated buffer of the state's size.
        y: slot of y, if used.
        results: slots of the plan's results at the end.
        history: some network value is needed after a later call.
    """

    instructions: tuple[Instruction, ...]
    slots: int
    pool: range
    y: int | None
    results: tuple[int, ...]
    history: bool

    def mapped(self, change: Callable[[Instruction], Instruction]) -> "Schedule":
        """The same schedule with every instruction changed."""
        return replace(self, instructions=tuple(map(change, self.instructions)))


def schedule(plan: Plan, observed: bool) -> Schedule:
    """Assign slots to the vectors of a folded plan.

    A state is written over one of its own summands if that one is needed no more, else into a free buffer.

    Args:
        plan: a folded plan.
        observed: keep the state of the newest call until the next one, so that x0 can be computed on request.
    """
    return _Scheduler(plan, observed).schedule()


def _last_uses(plan: Plan, observed: bool) -> dict[Vector, int]:
    """Moment of the last use of every vector: 2k while row k is summed, 2k+1 while it is reported."""
    last: dict[Vector, int] = {}
    asked: int | None = None
    for k, row in enumerate(plan.rows):
        for term in row.terms:
            last[term.kind, term.index] = 2 * k
        if observed and asked is not None:
            last["x", asked] = 2 * k + 1
        if row.ask:
            asked = k
    for k in plan.results:
        last["x", k] = _FOREVER
    return last


class _Scheduler:
    """State of the assignment while the rows are walked through."""

    def __init__(self, plan: Plan, observed: bool) -> None:
        self.plan = plan
        self.last = _last_uses(plan, observed)
        assert plan.prediction is not None
        self.heads = plan.prediction.heads
        self.where: dict[Vector, int] = {("x", k): k for k in range(plan.starts)}
        self.y = plan.starts if plan.uses("y") else None
        if self.y is not None:
            self.where["y", 0] = self.y
        self.first_buffer = plan.starts + (self.y is not None)
        self.holders: list[Vector | None] = []  # of each buffer: the vector it holds
        self.values: list[Vector | None] = []  # of each group of value slots: the call it holds
        self.drawn: set[int] = set()
        self.calls = 0

    def schedule(self) -> Schedule:
        instructions = tuple(self._row(k) for k in range(len(self.plan.rows)))
        values = self.first_buffer + len(self.holders)
        return Schedule(
            instructions=instructions,
            slots=values + len(self.values) * self.heads,
            pool=range(self.first_buffer, values),
            y=self.y,
            results=tuple(self.where["x", k] for k in self.plan.results),
            history=self._has_history(),
        )

    def _row(self, k: int) -> Instruction:
        row = self.plan.rows[k]
        draws = tuple(
            self._draw(term.index, k)
            for term in row.terms
            if term.kind == "n" and term.index not in self.drawn
        )
        given = k < self.plan.starts
        target, source, scale, adds = (k, k, None, ()) if given else self._sum(k)
        release = tuple(
            -(group * self.heads + head) - 1
            for group, holder in enumerate(self.values)
            if holder is not None and self.last.get(holder, -1) <= 2 * k
            for head in range(self.heads)
        )
        self.values = [h if h is not None and self.last.get(h, -1) > 2 * k else None for h in self.values]
        value = self._value() if row.ask else None
        return Instruction(
            draws, target, source, scale, adds, row.t, row.step and not given, release, row.ask, value
        )

    def _draw(self, index: int, k: int) -> int:
        self.drawn.add(index)
        return self._buffer(("n", index), 2 * k)

    def _sum(self, k: int) -> tuple[int, int, Number | None, tuple[tuple[int, Number], ...]]:
        terms = list(self.plan.rows[k].terms)
        dying = [
            term
            for term in terms
            if term.kind in ("x", "n")
            and self._slot(term) >= self.first_buffer
            and self.last[term.kind, term.index] == 2 * k
        ]
        if dying:
            first = min(dying, key=lambda term: term.kind != "x")
            target = self._slot(first)
            self.holders[target - self.first_buffer] = ("x", k)
        else:
            first = terms[0]
            target = self._buffer(("x", k), 2 * k)
        source = self._slot(first)
        terms.remove(first)
        adds = tuple((self._slot(term), term.coefficient) for term in terms)
        ones = first.coefficient if isinstance(first.coefficient, tuple) else (first.coefficient,)
        plain = all(value == 1.0 for value in ones) and (source == target or adds)
        self.where["x", k] = target
        return target, source, None if plain else first.coefficient, adds

    def _slot(self, term: Term) -> int:
        slot = self.where[term.kind, term.index]
        return slot - term.head if term.kind == "out" else slot

    def _buffer(self, vector: Vector, now: int) -> int:
        """A buffer for a vector: one whose holder is no longer needed, or a new one."""
        free = (i for i, held in enumerate(self.holders) if held is None or self.last.get(held, -1) < now)
        number = next(free, len(self.holders))
        if number == len(self.holders):
            self.holders.append(None)
        self.holders[number] = vector
        self.where[vector] = self.first_buffer + number
        return self.where[vector]

    def _value(self) -> int | None:
        """Slot of the first head of a call's value; None if no row needs it."""
        vector = ("out", self.calls)
        self.calls += 1
        if vector not in self.last:
            return None
        group = next((i for i, held in enumerate(self.values) if held is None), len(self.values))
        if group == len(self.values):
            self.values.append(None)
        self.values[group] = vector
        self.where[vector] = -(group * self.heads) - 1
        return self.where[vector]

    def _has_history(self) -> bool:
        asks = [k for k, row in enumerate(self.plan.rows) if row.ask]
        return any(self.last.get(("out", call), -1) > 2 * later for call, later in enumerate(asks[1:]))
