"""`fewstep distill`: a model that needs few network calls, from one that needs many."""

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from fewstep.core.bridges.diffusers_folder import DiffusersModel
from fewstep.core.cards import CardFacts
from fewstep.core.cli.dataset import Model, load_model, read_dataset
from fewstep.core.cli.options import resolve_device
from fewstep.core.configs import config_from_dict
from fewstep.core.objectives import methods
from fewstep.core.objectives.distill import Distillation, Distilled
from fewstep.core.objectives.distill_data import Samples, missing_needs
from fewstep.core.objectives.method_options import checked_options, options_of, parsed_options
from fewstep.core.objectives.methods.base import Method
from fewstep.core.objectives.pair_folder import MANIFEST, Pairs
from fewstep.core.objectives.recipe import DistillRecipe, read_fields
from fewstep.core.objectives.student import cannot_take_two_times

NEEDS = {
    "data": "real samples: --data FILE",
    "pairs": "pairs of noise and sample: make them with `fewstep pairs MODEL -o FOLDER`, then --pairs FOLDER",
}


@dataclass(frozen=True)
class Request:
    """What the command line asks for; None leaves a value to the recipe.

    Args:
        model: shipped name, folder or Hub id.
        method: a name of `methods.names()`.
        data: file or folder of real samples.
        pairs: folder of pairs, or a file with x0 and noise.
        recipe: JSON file with fields of DistillRecipe.
        options: of the method, each name=value.
        values: fields of DistillRecipe.
        device: auto, cpu or cuda.
        as_json: print the report as JSON.
        output: folder of the student.
    """

    model: str
    method: str | None
    data: str | None
    pairs: str | None
    recipe: str | None
    options: tuple[str, ...]
    values: dict[str, Any]
    device: str = "auto"
    as_json: bool = False
    output: str | None = None


def run(request: Request) -> int:
    """Train the student, save it and say how good it is.

    Returns:
        The exit code: 0 when the student is saved, 1 when the run was interrupted before.

    Raises:
        typer.BadParameter: the command line cannot be meant (exit code 2).
        ValueError: the distillation cannot be done; the message says why (exit code 1).
    """
    method, recipe = _recipe(request)
    if request.device not in ("auto", "cpu", "cuda"):
        raise typer.BadParameter(f"{request.device!r} is not one of auto, cpu, cuda", param_hint="--device")
    _check_needs(method, recipe, request)
    teacher = load_model(request.model)
    _check_network(method, teacher)
    data = None if request.data is None else read_dataset(request.data, tuple(teacher.shape))
    output = Path(request.output or f"{Path(request.model).name}-{recipe.method}").expanduser()
    done = Distillation(
        teacher,
        method,
        recipe,
        output,
        data,
        _read_pairs(request.pairs, tuple(teacher.shape)),
        device=_trainer_device(request.device),
        facts=_facts(request, recipe, method),
    ).run()
    _show(request, done, output)
    return 0 if done.complete else 1


def list_methods(as_json: bool) -> int:
    """Print every method with what it needs; with JSON its options too.

    Returns:
        The exit code.
    """
    known = {name: methods.get(name) for name in methods.names()}
    if as_json:
        print(json.dumps({name: _described(method) for name, method in known.items()}, indent=2, default=str))
        return 0
    table = Table(box=None, pad_edge=False)
    for name in ("method", "needs", "calls", "paper", "what it does"):
        table.add_column(name, overflow="fold", justify="right" if name == "calls" else "left")
    for name, method in known.items():
        needs = ", ".join(method.needs) + (", a second time" if method.two_times else "")
        table.add_row(name, needs, str(method.sampling.steps), method.paper, method.summary)
    Console(markup=False, highlight=False).print(table)
    return 0


def _described(method: Method) -> dict[str, Any]:
    options = {
        option.name: {"type": option.kind, "default": option.default}
        for option in options_of(method).values()
    }
    return {
        "paper": method.paper,
        "summary": method.summary,
        "needs": list(method.needs),
        "two_times": method.two_times,
        "calls": method.sampling.steps,
        "options": options,
        "settings": dict(method.settings),
    }


def _recipe(request: Request) -> tuple[Method, DistillRecipe]:
    """The method and the recipe: the file's fields in place of the method's, the command line's of both."""
    try:
        fields = {} if request.recipe is None else read_fields(request.recipe)
        config_from_dict(DistillRecipe, fields, str(request.recipe))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--recipe") from error
    name = request.method or fields.get("method")
    if name is None:
        known = ", ".join(methods.names())
        raise typer.BadParameter(f"name one of {known} (--list tells more)", param_hint="--method")
    try:
        method = methods.get(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--method") from error
    given = {key: value for key, value in request.values.items() if value is not None}
    try:
        stored = checked_options(method, fields.get("options", {}))
        options = {**stored, **parsed_options(method, request.options)}
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--option") from error
    try:
        return method, DistillRecipe.of(
            method, name, **{**_without_name(fields), **given, "options": options}
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _without_name(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != "method"}


def _check_needs(method: Method, recipe: DistillRecipe, request: Request) -> None:
    absent = missing_needs(method, request.data, request.pairs)
    if absent:
        reason = "; ".join(NEEDS[need] for need in absent)
        raise typer.BadParameter(f"{recipe.method} needs {reason}", param_hint=f"--{absent[0]}")


def _check_network(method: Method, teacher: Model) -> None:
    if method.two_times and isinstance(teacher, DiffusersModel):
        reason = cannot_take_two_times("a network of diffusers")
        raise typer.BadParameter(reason, param_hint="--method")


def _trainer_device(name: str) -> Literal["auto", "cpu"]:
    """The trainer takes the machine's accelerator itself, in every process its own."""
    return "cpu" if resolve_device(name).type == "cpu" else "auto"


def _read_pairs(name: str | None, shape: tuple[int, ...]) -> Samples | Pairs | None:
    if name is None:
        return None
    folder = Path(name).expanduser()
    if folder.is_dir() and not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder} is no folder of pairs: it has no {MANIFEST}")
    return Pairs(folder) if folder.is_dir() else read_dataset(name, shape)


def _facts(request: Request, recipe: DistillRecipe, method: Method) -> CardFacts:
    sources = [source for source in (request.data, request.pairs) if source is not None]
    calls = recipe.steps or method.sampling.steps
    teacher = Path(request.model).name
    return CardFacts(
        title=f"{teacher} in {calls} {'call' if calls == 1 else 'calls'}",
        summary=f"Distilled from {teacher} by {recipe.method} ({method.paper}); see recipe.json.",
        data=", ".join(Path(source).name for source in sources) or "none: the teacher alone",
        licence="other",
        command=_command(request, recipe),
    )


def _command(request: Request, recipe: DistillRecipe) -> str:
    """What makes this student again."""
    words = ["fewstep", "distill", request.model, "--method", recipe.method]
    for name in ("data", "pairs", "recipe"):
        if getattr(request, name) is not None:
            words += [f"--{name}", getattr(request, name)]
    for name, value in request.values.items():
        if value is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    for option in request.options:
        words += ["--option", option]
    return shlex.join(words)


def _show(request: Request, done: Distilled, output: Path) -> None:
    for note in done.notes:
        print(f"fewstep distill: {note}", file=sys.stderr)
    if request.as_json:
        print(json.dumps(_report(request, done, output), indent=2))
    elif done.complete:
        calls = done.student.sampling.steps
        print(f"{output}: {done.result.stopped} after {done.result.minutes:.1f} minutes")
        for name, value in done.metrics.items():
            theirs = done.teacher_metrics[name]
            print(f"  {name}: {value:.4g} with {calls} calls, teacher {theirs:.4g} with {done.teacher_calls}")
    if not done.complete:
        print("fewstep distill: interrupted; the same command goes on from here", file=sys.stderr)


def _report(request: Request, done: Distilled, output: Path) -> dict[str, Any]:
    return {
        "model": request.model,
        "method": done.recipe.method,
        "student": str(output) if done.complete else None,
        "stopped": done.result.stopped,
        "steps": done.result.step,
        "minutes": round(done.result.minutes, 4),
        "skipped": done.result.skipped,
        "calls": done.student.sampling.steps,
        "metrics": _finite(done.metrics),
        "teacher_calls": done.teacher_calls,
        "teacher_metrics": _finite(done.teacher_metrics),
        "notes": list(done.notes),
    }


def _finite(metrics: Any) -> dict[str, float | None]:
    """JSON knows no infinity."""
    return {name: value if abs(value) < float("inf") else None for name, value in metrics.items()}
