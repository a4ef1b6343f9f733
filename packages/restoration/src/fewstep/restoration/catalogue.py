"""The models that ship: which tasks they do and what they cost, read without loading a network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Any

from .tasks import TASKS

# Checkpoints say what they are by the name of a class; these were made before tasks were written down.
_TASKS_OF = {
    "ResShift": ("super-resolution",),
    "IDM": ("compressed-sensing",),
    # Commands of its own, not a task of `fewstep restore`.
    "Oscar": ("encode", "decode"),
}
DEFAULT = "resshift-x4"


@dataclass(frozen=True)
class Shipped:
    """A checkpoint of the package.

    Args:
        name: what `--model` calls it.
        tasks: what it was trained for.
        method: what `--method` calls its class: the name of the class in small letters.
        calls: network calls of the published sampling; None where the configuration does not say.
        megabytes: of the file of weights.
        default_for: tasks that use it unless told otherwise.
        ratio: measurements per pixel, of compressed sensing.
    """

    name: str
    tasks: tuple[str, ...]
    method: str
    calls: int | None
    megabytes: float
    default_for: tuple[str, ...]
    ratio: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The facts for JSON."""
        return asdict(self)


def shipped_models() -> list[Shipped]:
    """All of them, by name.

    Example:
        >>> [model.method for model in shipped_models() if model.name == "resshift-x4"]
        ['resshift']
    """
    folder = resources.files("fewstep.restoration") / "checkpoints"
    found = []
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        config, weights = entry / "config.json", entry / "model.safetensors"
        if config.is_file() and weights.is_file():
            with resources.as_file(weights) as file:
                size = file.stat().st_size
            found.append(described(entry.name, json.loads(config.read_text(encoding="utf-8")), size))
    return found


def described(name: str, config: Mapping[str, Any], size: int) -> Shipped:
    """What a configuration says.

    Args:
        name: of the checkpoint.
        config: content of its config.json.
        size: of its weights in bytes.

    Returns:
        The entry.
    """
    kind = str(config.get("_class", ""))
    defaults = tuple(task for task, about in TASKS.items() if about.model == name)
    tasks = tuple(config.get("tasks") or _TASKS_OF.get(kind, defaults))
    ratio = config.get("ratio")
    return Shipped(name, tasks, kind.lower(), _calls(kind, config), round(size / 1e6, 2), defaults, ratio)


def _calls(kind: str, config: Mapping[str, Any]) -> int | None:
    """Steps of the sampling, which some methods take on a path of many more."""
    for field in ("sampling_steps", "calls"):
        if config.get(field):
            return int(config[field])
    if kind in ("IRSDE", "Resfusion"):
        return _calls_of_path(kind, config)
    if kind in ("Oscar", "TunableResShift"):
        return 1
    # The others' steps are those of the whole path, of which only a part is gone.
    return int(config["steps"]) if kind in ("ResShift", "IDM") and "steps" in config else None


def _calls_of_path(kind: str, config: Mapping[str, Any]) -> int:
    """What the path and the rule say, where the configuration does not: it brings PyTorch along."""
    from fewstep.core.configs import config_from_dict

    from .methods.irsde_config import IRSDEConfig
    from .methods.resfusion_config import ResfusionConfig

    fields = {name: value for name, value in config.items() if name != "_class"}
    if kind == "IRSDE":
        restorer = config_from_dict(IRSDEConfig, fields)
        return restorer.calls_of(restorer.solver)
    return config_from_dict(ResfusionConfig, fields).times_kept


def method_name(text: str) -> str:
    """A method as users may write it, "IR-SDE", as the catalogue has it.

    Example:
        >>> method_name("IR-SDE")
        'irsde'
    """
    return "".join(letter for letter in text.lower() if letter.isalnum())


def table(models: list[Shipped]) -> str:
    """The catalogue in columns.

    Args:
        models: its rows.

    Returns:
        Lines of text; a task is followed by * where the model is its default.
    """
    rows = [("model", "tasks", "method", "calls", "MB")]
    for model in models:
        tasks = ", ".join(f"{task}*" if task in model.default_for else task for task in model.tasks)
        calls = "" if model.calls is None else str(model.calls)
        rows.append((model.name, tasks, model.method, calls, f"{model.megabytes:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(
        [*(line.rstrip() for line in lines), "* used for this task unless --model says otherwise"]
    )


def choose(task: str | None, method: str | None, ratio: float | None, models: list[Shipped]) -> str:
    """The model that a task, a method or a ratio of measurements asks for.

    Args:
        task: a key of `TASKS`; None: any.
        method: as of `Shipped`, in any spelling; None: any.
        ratio: of compressed sensing; None: any.
        models: those that ship.

    Returns:
        The name: the task's default where it fits, else the first that does.

    Raises:
        ValueError: none that ships fits.
    """
    if ratio is not None:
        task = task or "compressed-sensing"
        if task != "compressed-sensing":
            raise ValueError(f"--ratio is for --task compressed-sensing, not for {task}")
        if not 0 < ratio <= 1:
            raise ValueError(
                f"--ratio: expected measurements per pixel, more than 0 and at most 1, got {ratio:g}"
            )
    if task is not None and task not in TASKS:
        raise ValueError(f"--task: expected one of {', '.join(TASKS)}, got {task!r}")
    wanted = [model for model in models if task is None or task in model.tasks]
    if not wanted:
        raise ValueError(f"--task: no model for {task} ships with this version; name one with --model")
    fits = [
        model
        for model in wanted
        if (method is None or model.method == method_name(method)) and ratio in (None, model.ratio)
    ]
    if not fits:
        there = ", ".join(_short(model) for model in wanted)
        asked = (
            f"--method: no shipped model of {method!r}"
            if method is not None
            else f"--ratio: none of {ratio:g}"
        )
        raise ValueError(f"{asked}{f' for {task}' if task else ''}; there is {there}")
    usual = DEFAULT if task is None else TASKS[task].model
    names = [model.name for model in fits]
    return usual if usual in names else names[0]


def _short(model: Shipped) -> str:
    ratio = "" if model.ratio is None else f", ratio {model.ratio:g}"
    return f"{model.method} ({model.name}{ratio})"
