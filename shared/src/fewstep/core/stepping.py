"""PlanStepper: a plan that is advanced from outside, one network value at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.noise import NoiseSource
from fewstep.core.plan import Plan, Term

Key = tuple[str, int, int]


class PlanStepper:
    """Runs a folded plan where the caller owns the loop, as a diffusers pipeline does.

    `state` is where the network is to be asked next; `advance(out)` takes its raw value there and moves on.
    `fewstep.core.run.run` is the faster way where the loop may be ours.

    Args:
        plan: a folded plan for all samples alike, with one given state and one result.
        x: the given state, shape (batch, ...).
        y: the degraded input, if the plan uses it.
        noise: where draws come from, if the plan draws.

    Attributes:
        state: the newest state: the next one to ask at, or the result when `finished`.
        t: its time.
        finished: nothing is left to ask.

    Raises:
        ValueError: if the plan is not of this kind or an input is missing.

    Example:
        >>> from fewstep.core import paths, predictions, solvers
        >>> plan = solvers.get("ddim").compile(paths.EDM(), (2.0, 1.0, 0.0)).folded(predictions.get("x0"))
        >>> stepper = PlanStepper(plan, torch.full((1, 1), 2.0))
        >>> while not stepper.finished:
        ...     stepper.advance(torch.zeros(1, 1))
        >>> stepper.state
        tensor([[0.]])
    """

    def __init__(
        self,
        plan: Plan,
        x: Float[Tensor, "batch *rest"],
        y: Float[Tensor, "batch *rest"] | None = None,
        noise: NoiseSource | None = None,
    ) -> None:
        if plan.prediction is None or plan.batch is not None or plan.starts != 1 or len(plan.results) != 1:
            raise ValueError("plan must be folded, not stacked, with one start and one result")
        if plan.uses("y") and y is None:
            raise ValueError("y is missing: this path or prediction uses the degraded input")
        if plan.uses("n") and noise is None:
            raise ValueError(f"noise is missing: {plan.solver} draws noise")
        self.plan, self.noise, self.heads = plan, noise, plan.prediction.heads
        self._vectors: dict[Key, Tensor] = {("x", 0, 0): x}
        if y is not None:
            self._vectors["y", 0, 0] = y
        self._last_use = _last_uses(plan)
        self._rows = iter(range(1, len(plan.rows)))
        self._calls = 0
        self._row = 0
        self.finished = False
        self._run_until_asked()

    @property
    def state(self) -> Tensor:
        """The newest state."""
        return self._vectors["x", self._row, 0]

    @property
    def t(self) -> float:
        """The time of the newest state."""
        t = self.plan.rows[self._row].t
        assert isinstance(t, float)
        return t

    def advance(self, out: Float[Tensor, "batch ..."], state: Tensor | None = None) -> None:
        """Take the network's raw value at `state` and go to the next state to ask at, or to the end.

        Args:
            out: the raw value; twice the channels where the prediction has two heads.
            state: what the network was really asked at, if the caller has changed `self.state` (masking).

        Raises:
            ValueError: if the plan has ended, or a shape does not fit.
        """
        if self.finished:
            raise ValueError("the plan has ended: there is nothing to ask")
        wanted = list(self.state.shape)
        wanted[1] *= self.heads
        if list(out.shape) != wanted:
            raise ValueError(f"out must have shape {tuple(wanted)}, got {tuple(out.shape)}")
        if state is not None:
            self._vectors["x", self._row, 0] = state.to(self.state.dtype)
        for head, part in enumerate(out.to(self.state.dtype).chunk(self.heads, dim=1)):
            self._vectors["out", self._calls, head] = part
        self._calls += 1
        self._compute_next()
        self._run_until_asked()

    def _run_until_asked(self) -> None:
        while not self.finished and not self.plan.rows[self._row].ask:
            self._compute_next()

    def _compute_next(self) -> None:
        row = next(self._rows, None)
        if row is None:
            self.finished, self._row = True, self.plan.results[0]
            return
        first, *others = self.plan.rows[row].terms
        total = self._vector(first) * first.coefficient
        for term in others:
            total.add_(self._vector(term), alpha=term.coefficient)
        self._vectors["x", row, 0] = total
        self._row = row
        for key in [key for key in self._vectors if self._last_use.get(key, row) < row]:
            del self._vectors[key]

    def _vector(self, term: Term) -> Any:
        key = (term.kind, term.index, term.head)
        if term.kind == "n" and key not in self._vectors:
            assert self.noise is not None
            drawn = torch.empty_like(self._vectors["x", self._row, 0])
            self.noise.fill(drawn)
            self._vectors[key] = drawn
        return self._vectors[key]


def _last_uses(plan: Plan) -> dict[Key, int]:
    """The last row that needs each vector; results are needed for ever."""
    last: dict[Key, int] = {}
    for k, term in _numbered_terms(plan):
        last[term.kind, term.index, term.head] = k
    asked = -1
    for k, row in enumerate(plan.rows):
        asked += row.ask
        # A state must live until it has been asked at.
        last["x", k, 0] = max(last.get(("x", k, 0), k), k)
        if row.ask:
            for head in range(plan.prediction.heads if plan.prediction else 1):
                last.setdefault(("out", asked, head), k)
    for k in plan.results:
        last["x", k, 0] = len(plan.rows)
    return last


def _numbered_terms(plan: Plan) -> Iterator[tuple[int, Term]]:
    for k, row in enumerate(plan.rows):
        for term in row.terms:
            yield k, term
