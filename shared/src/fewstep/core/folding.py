"""Folding: a plan in x0 and eps becomes a plan in what the network really returns."""

from dataclasses import replace

from fewstep.core.plan import Kind, Plan, Row, Term
from fewstep.core.predictions import Affine, Prediction

Key = tuple[Kind, int, int]
Call = tuple[Kind, int]
_ESTIMATES: tuple[Kind, Kind] = ("d", "e")


def fold(plan: Plan, prediction: Prediction) -> Plan:
    """Write a plan in terms of raw network values, so that x0 and eps need not be computed.

    At a call at state x and time t both estimates are affine in the output,
        x0 = p·x + sum_h q_h·out_h + r·y   and   eps = p'·x + sum_h q'_h·out_h + r'·y,
    so c·x0 becomes (c·p)·x + sum_h (c·q_h)·out_h + (c·r)·y, and equal terms are added up.

    An estimate that several later rows use (the history of a third-order multistep method, say) would bring
    its old state into each of them. Then one auxiliary row x + sum_h (q_h/p)·out_h + (r/p)·y is cheaper.

    Args:
        plan: an unfolded plan.
        prediction: what the network predicts.

    Returns:
        The plan with "out" terms only.

    Raises:
        ValueError: if the plan is folded already, or the prediction does not determine what a row needs
            (noise prediction at a = 0, say).
    """
    if plan.prediction is not None:
        raise ValueError("plan is folded already; fold the plan that the solver compiled")
    size = plan.batch
    if size is None:
        return _Folder(plan, prediction, share=True).fold()
    singles = [_Folder(plan.unstack(i), prediction, share=False).fold() for i in range(size)]
    return Plan.stack(singles)


class _Folder:
    """State of the folding while the rows are walked through."""

    def __init__(self, plan: Plan, prediction: Prediction, share: bool) -> None:
        self.plan = plan
        self.prediction = prediction
        self.asked = [k for k, row in enumerate(plan.rows) if row.ask]
        users = self._users()
        self.affine = {call: self._weights(call) for call in users}
        self.shared = {call for call in users if share and self._is_cheaper_shared(call, users[call])}
        self.rows: list[Row] = []
        self.moved: dict[int, int] = {}  # old number of a state -> new one
        self.helper: dict[Call, int] = {}  # shared estimate -> number of its auxiliary row

    def fold(self) -> Plan:
        calls = 0
        for k, row in enumerate(self.plan.rows):
            self.moved[k] = len(self.rows)
            self.rows.append(Row(self._terms(row), row.t, row.ask, row.step))
            for kind in _ESTIMATES:
                if row.ask and (kind, calls) in self.shared:
                    self._add_helper((kind, calls))
            calls += row.ask
        results = tuple(self.moved[k] for k in self.plan.results)
        return replace(self.plan, rows=tuple(self.rows), results=results, prediction=self.prediction)

    def _users(self) -> dict[Call, list[Row]]:
        """The rows that use each estimate."""
        users: dict[Call, list[Row]] = {}
        for row in self.plan.rows:
            for term in row.terms:
                if term.kind in ("d", "e"):
                    users.setdefault(term[:2], []).append(row)
        return users

    def _weights(self, call: Call) -> Affine:
        kind, index = call
        t = self.plan.rows[self.asked[index]].t
        assert isinstance(t, float)
        return (self.prediction.x0_weights if kind == "d" else self.prediction.eps_weights)(self.plan.path, t)

    def _is_cheaper_shared(self, call: Call, users: list[Row]) -> bool:
        """Whether the summands that direct folding adds to the rows outnumber those of the auxiliary row."""
        affine = self.affine[call]
        state = ("x", self.asked[call[1]])
        extra = sum(all(term[:2] != state for term in row.terms) for row in users)
        return affine.x != 0.0 and extra > len(affine.out) + (affine.y != 0.0)

    def _add_helper(self, call: Call) -> None:
        state = self.moved[self.asked[call[1]]]
        p, out, r = self.affine[call]
        terms = [Term("x", state, 1.0), *(Term("out", call[1], q / p, head) for head, q in enumerate(out))]
        if r != 0.0:
            terms.append(Term("y", 0, r / p))
        self.helper[call] = len(self.rows)
        self.rows.append(Row(tuple(terms), None, step=False))

    def _terms(self, row: Row) -> tuple[Term, ...]:
        total: dict[Key, float] = {}

        def add(kind: Kind, index: int, head: int, value: float) -> None:
            total[kind, index, head] = total.get((kind, index, head), 0.0) + value

        for kind, index, c, head in row.terms:
            assert isinstance(c, float)
            if kind == "x":
                add("x", self.moved[index], 0, c)
            elif kind not in ("d", "e"):
                add(kind, index, head, c)
            elif (kind, index) in self.helper:
                add("x", self.helper[kind, index], 0, c * self.affine[kind, index].x)
            else:
                affine = self.affine[kind, index]
                add("x", self.moved[self.asked[index]], 0, c * affine.x)
                for number, q in enumerate(affine.out):
                    add("out", index, number, c * q)
                add("y", 0, 0, c * affine.y)
        return tuple(Term(kind, index, c, head) for (kind, index, head), c in total.items() if c != 0.0)
