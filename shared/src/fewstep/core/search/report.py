"""Tuned: what a search found, beside the untuned plans; saved with a checkpoint and read back."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep.core.files import atomic_path
from fewstep.core.plan import Plan


@dataclass(frozen=True)
class Measured:
    """One plan and what it reaches on start noises that no search has seen.

    Args:
        solver: name of the solver.
        grid: name of the grid.
        calls: network calls.
        score: the objective, smaller is better.
        same: other names of the same plan.
    """

    solver: str
    grid: str
    calls: int
    score: float
    same: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tuned:
    """The result of `tune`.

    Args:
        plan: the best plan; an untuned one if the search found nothing better.
        budget: network calls that were allowed.
        measured: the best plan on held-out start noises.
        untuned: the untuned plans on the same start noises, best first.
        objective: what was minimised, in words.
        reference_error: how exact the reference is, in the units of the scores; None without one.
        history: the best score of the search after every generation, on the start noises of the search.
        tried: plans that were measured in the search.
        ranked: untuned plans in all; `untuned` holds the best of them by a quarter of the search's noises.
        finished: there was time for all of it.
        seconds: that all of it took.
    """

    plan: Plan
    budget: int
    measured: Measured
    untuned: tuple[Measured, ...]
    objective: str
    reference_error: float | None
    history: tuple[float, ...]
    tried: int
    ranked: int
    finished: bool
    seconds: float

    @property
    def gain(self) -> float:
        """How many times smaller the score is than that of the best untuned plan."""
        best = self.untuned[0].score if self.untuned else float("nan")
        return best / self.measured.score if self.measured.score else float("inf")

    def report(self) -> dict[str, Any]:
        """Everything but the plan, of JSON types."""
        kept = {name: value for name, value in asdict(self).items() if name != "plan"}
        return {**kept, "gain": self.gain}

    def save(self, folder: str | Path) -> Path:
        """Write `plan-<budget>.json` and `plan-<budget>.report.json` into a folder, each at one stroke.

        Returns:
            The file of the plan.

        Raises:
            OSError: if nothing can be written there.
        """
        target = plan_file(folder, self.budget)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.report(), indent=2, default=str) + "\n"
        for file, content in ((target, self.plan.to_json() + "\n"), (report_file(target), text)):
            with atomic_path(file) as temporary:
                temporary.write_text(content, encoding="utf-8")
        return target

    def table(self, rows: int = 10) -> str:
        """The tuned plan and the best untuned ones, as text."""
        lines = [_line("plan", "grid", "calls", self.objective), _show(self.measured)]
        lines += [_show(one) for one in self.untuned[:rows]]
        if self.ranked > rows:
            lines.append(f"… and {self.ranked - rows} more untuned plans")
        return "\n".join(lines)


def plan_file(folder: str | Path, budget: int) -> Path:
    """Return where the plan for a number of network calls lies."""
    return Path(folder) / f"plan-{budget}.json"


def report_file(plan: Path) -> Path:
    """Return where the report on a saved plan lies."""
    return plan.with_suffix(".report.json")


def saved_budgets(folder: str | Path) -> tuple[int, ...]:
    """Return the numbers of network calls for which a folder has a tuned plan."""
    names = (file.stem.removeprefix("plan-") for file in Path(folder).glob("plan-*.json"))
    return tuple(sorted(int(name) for name in names if name.isdecimal()))


def load_plan(folder: str | Path, budget: int) -> Plan:
    """Return the tuned plan that was saved beside a checkpoint.

    Args:
        folder: the checkpoint's.
        budget: network calls.

    Raises:
        ValueError: if there is none for this number of calls, or the file holds no plan.
    """
    file = plan_file(folder, budget)
    if not file.is_file():
        known = ", ".join(map(str, saved_budgets(folder))) or "none"
        raise ValueError(f"{folder} has no tuned plan for budget {budget}; it has: {known}")
    return Plan.from_json(file.read_text(encoding="utf-8"))


def best_first(measured: list[Measured]) -> tuple[Measured, ...]:
    """Return the measurements in the order of their scores."""
    key: Callable[[Measured], float] = lambda one: one.score  # noqa: E731
    return tuple(sorted(measured, key=key))


def _show(one: Measured) -> str:
    return _line(one.solver, one.grid, str(one.calls), f"{one.score:.4g}")


def _line(solver: str, grid: str, calls: str, score: str) -> str:
    return f"{solver:<28}{grid:<28}{calls:>5}  {score}"
