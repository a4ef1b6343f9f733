"""Evaluations of the same episodes beside each other, and what one saves over another seed by seed."""

from collections.abc import Mapping

import numpy as np

from fewstep.policy.results import Results


def table_of(found: Mapping[str, Results]) -> str:
    """A Markdown table: success, steps, and the steps saved over the first evaluation; ± standard errors.

    Raises:
        ValueError: the evaluations are of different seeds.
    """
    first = next(iter(found.values()))
    lines = ["| policy | success | steps | saved |", "| --- | --- | --- | --- |"]
    for name, results in found.items():
        if results.seeds != first.seeds:
            raise ValueError(f"{name} was evaluated on other seeds than the first")
        steps = np.array(results.lengths)
        saved = np.array(first.lengths) - steps
        success = f"{100 * np.mean(results.successes or [np.nan]):.0f} %"
        lines.append(f"| {name} | {success} | {_with_error(steps)} | {_with_error(saved)} |")
    return "\n".join(lines)


def _with_error(values: np.ndarray) -> str:
    return f"{values.mean():.1f} ± {values.std(ddof=1) / len(values) ** 0.5:.1f}"
