"""How a plan is written: a table for people, JSON for files."""

import json
import math
from typing import Any

from fewstep.core import paths
from fewstep.core.paths import Path
from fewstep.core.plan import Number, Plan, Row, Term

FORMAT = "fewstep-plan-1"
_SYMBOLS = {"x": "x", "d": "D", "e": "E", "out": "out", "n": "n"}


def to_json(plan: Plan) -> str:
    """Return the plan as JSON text; floats keep every bit.

    Raises:
        ValueError: if the plan is folded.
    """
    if plan.prediction is not None:
        raise ValueError("save the plan before it is folded: a folded plan belongs to one network")
    rows = [
        {"t": row.t, "ask": row.ask, "step": row.step, "terms": [list(term[:3]) for term in row.terms]}
        for row in plan.rows
    ]
    content = {
        "format": FORMAT,
        "solver": plan.solver,
        "path": plan.path.to_config(),
        "starts": plan.starts,
        "results": plan.results,
        "rows": rows,
    }
    return json.dumps(content, allow_nan=False)


def from_json(text: str) -> Plan:
    """Return the plan that `to_json` wrote.

    Raises:
        ValueError: if the text is not such a plan.
    """
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
        rows = tuple(_row(row) for row in content["rows"])
        path = paths.from_config(content["path"])
        return Plan(rows, path, content["solver"], content["starts"], tuple(content["results"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"text is not a saved plan: {type(error).__name__}: {error}") from error


def _row(saved: dict[str, Any]) -> Row:
    terms = tuple(Term(kind, index, _number(value)) for kind, index, value in saved["terms"])
    return Row(terms, None if saved["t"] is None else _number(saved["t"]), saved["ask"], saved["step"])


def _number(value: float | list[float]) -> Number:
    return tuple(map(float, value)) if isinstance(value, list) else float(value)


def table(plan: Plan) -> str:
    """Return the plan as a table: one line a row with its time, noise level, call number and formula."""
    lines = [("row", "t", "sigma/a", "asks", "state")]
    calls = 0
    for k, row in enumerate(plan.rows):
        asks = f"[{calls}]" if row.ask else ""
        calls += row.ask
        formula = " ".join(map(_summand, row.terms)).removeprefix("+ ") or "given"
        lines.append((f"x[{k}]", _brief(row.t), _brief(_noise_level(plan.path, row.t)), asks, formula))
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    cells = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    head = f"{plan.solver} on {type(plan.path).__name__}: {plan.steps} steps, {plan.nfe} network calls"
    return "\n".join([head, *(line.rstrip() for line in cells)])


def _brief(value: Number | None) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(f"{v:.4g}" for v in value) + ")"
    return "" if value is None else f"{value:.4g}"


def _noise_level(path: Path, t: Number | None) -> Number | None:
    if isinstance(t, tuple):
        return tuple(noise_level(path, time) for time in t)
    return None if t is None else noise_level(path, t)


def noise_level(path: Path, t: float) -> float:
    """Return sigma/a at t, infinite where a = 0."""
    a, _, sigma = path.coefficients(t)
    return sigma / a if a else math.inf


def _summand(term: Term) -> str:
    name = (
        "y"
        if term.kind == "y"
        else f"{_SYMBOLS[term.kind]}[{term.index}]" + (f".{term.head}" if term.head else "")
    )
    if isinstance(term.coefficient, tuple):
        return f"+ {_brief(term.coefficient)} {name}"
    return f"{'-' if term.coefficient < 0 else '+'} {abs(term.coefficient):.4g} {name}"
