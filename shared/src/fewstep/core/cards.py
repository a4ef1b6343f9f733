"""Model cards: what a checkpoint was trained on, how, how well it does, and against what."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from huggingface_hub import ModelCard, ModelCardData

# A number, one with its interval as text, or what was not measured.
Figure = float | str | None


@dataclass(frozen=True)
class CardFacts:
    """What a reader of a checkpoint's card wants to know.

    Args:
        title: name of the checkpoint.
        summary: what it does, in a sentence or two.
        data: what it was trained on, and where that comes from.
        licence: of the weights (an SPDX name in lower case).
        data_licence: of the training data.
        command: that trained it.
        steps: optimiser steps of the training.
        minutes: of the training.
        machine: that it was trained on.
        metrics: {test set: {metric: (this model, the baseline)}}; a figure is a number, a text such as
            "0.81 (0.77 to 0.85)", or None where nothing was measured.
        baseline: what the metrics are compared with; "": nothing, and the table has no such column.
        limits: what it does not do.
    """

    title: str
    summary: str
    data: str = "not stated"
    licence: str = "apache-2.0"
    data_licence: str = "not stated"
    command: str = ""
    steps: int | None = None
    minutes: float | None = None
    machine: str = ""
    metrics: Mapping[str, Mapping[str, tuple[Figure, Figure]]] = field(default_factory=dict)
    baseline: str = "baseline"
    limits: str = ""


def make_card(facts: CardFacts, parameters: int) -> ModelCard:
    """Write the model card (README.md) of a checkpoint.

    Args:
        facts: to be stated.
        parameters: number of weights of the network.

    Returns:
        The card, with the metadata that the Hub shows.
    """
    metadata = ModelCardData(license=facts.licence, library_name="fewstep", tags=["fewstep", "diffusion"])
    lines = [f"# {facts.title}", "", facts.summary, "", *_training(facts, parameters)]
    if facts.command:
        lines += ["", "Trained with:", "", "```bash", facts.command, "```"]
    if facts.metrics:
        lines += ["", "## Results", "", *_results(facts)]
    if facts.limits:
        lines += ["", "## Limits", "", facts.limits]
    return ModelCard(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def _training(facts: CardFacts, parameters: int) -> list[str]:
    rows = [
        ("Parameters", f"{parameters:,}"),
        ("Training data", facts.data),
        ("Licence of the data", facts.data_licence),
        ("Licence of the weights", facts.licence),
    ]
    if facts.steps is not None:
        rows.append(("Optimiser steps", f"{facts.steps:,}"))
    if facts.minutes is not None:
        rows.append(("Training time", f"{facts.minutes:.0f} minutes"))
    if facts.machine:
        rows.append(("Machine", facts.machine))
    return ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]


def _results(facts: CardFacts) -> list[str]:
    named = ["This model", facts.baseline] if facts.baseline else ["This model"]
    rows = [f"| Test set | Metric | {' | '.join(named)} |", "| --- " * (2 + len(named)) + "|"]
    for test_set, metrics in facts.metrics.items():
        for name, figures in metrics.items():
            shown = " | ".join(_shown(figure) for figure in figures[: len(named)])
            rows.append(f"| {test_set} | {name} | {shown} |")
    return rows


def _shown(figure: Figure) -> str:
    if figure is None:
        return "–"
    return figure if isinstance(figure, str) else f"{figure:.4g}"
