"""One picture of a plan: noise level against step, network calls marked."""

from typing import Any

from fewstep.core.plan import Plan, Row


def plot_plan(plan: Plan, ax: Any = None) -> Any:
    """Draw the noise level sigma/(a + sigma) of every state against its step, with the network calls marked.

    The level runs from 1 (pure noise) to 0 (clean), so both ends are finite on every path. Stages inside a
    step are drawn between the steps. A stacked plan shows its first sample.

    Args:
        plan: any plan.
        ax: matplotlib Axes to draw in; those of a new figure by default.

    Returns:
        The axes.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    if ax is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("plotting a plan needs matplotlib: pip install 'fewstep-core[plot]'") from error
        ax = pyplot.subplots(figsize=(6.0, 3.6), layout="constrained")[1]
    plan = plan if plan.batch is None else plan.unstack(0)
    points = [(at, _level(plan, row), row) for at, row in _positions(plan) if row.t is not None]
    ends = [(at, level) for at, level, row in points if row.step]
    asked = [(at, level) for at, level, row in points if row.ask]
    noisy = [(at, level) for at, level, row in points if any(term.kind == "n" for term in row.terms)]
    ax.plot(*zip(*ends, strict=True), color="0.6", marker="o", markersize=3, zorder=1, label="state")
    ax.scatter(
        *zip(*asked, strict=True), s=36, color="tab:blue", zorder=2, label=f"network call ({plan.nfe})"
    )
    if noisy:
        ax.scatter(
            *zip(*noisy, strict=True), s=90, facecolors="none", edgecolors="tab:orange", label="fresh noise"
        )
    ax.set(xlabel="step", ylabel="noise level σ/(a+σ)", title=f"{plan.solver} on {type(plan.path).__name__}")
    ax.set_ylim(-0.03, 1.03)
    ax.legend(frameon=False)
    return ax


def _positions(plan: Plan) -> list[tuple[float, Row]]:
    """Step number of every row; the stages of a step are spread evenly before its end."""
    found: list[tuple[float, Row]] = []
    waiting: list[Row] = []
    step = -1.0
    for row in plan.rows:
        waiting.append(row)
        if row.step:
            found += [(step + (i + 1) / len(waiting), inner) for i, inner in enumerate(waiting)]
            waiting, step = [], step + 1.0
    return found


def _level(plan: Plan, row: Row) -> float:
    assert isinstance(row.t, float)
    a, _, sigma = plan.path.coefficients(row.t)
    return sigma / (abs(a) + sigma)
