"""Recipes kept beside the runs they belong to."""

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from fewstep.core.configs import config_from_dict
from fewstep.core.files import atomic_path

Recipe = TypeVar("Recipe")
RECIPE = "recipe.json"


def load_recipe(kind: type[Recipe], path: str | Path) -> Recipe:
    """Read a recipe from a JSON file; fields that it does not name keep their defaults.

    Raises:
        ValueError: not JSON, or a field that the recipe has not or whose value is out of range.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON recipe ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a recipe is a JSON object, got {type(values).__name__}")
    return config_from_dict(kind, values, str(path))


def refuse_other(recipe: Any, folder: Path) -> None:
    """Refuse a folder that was begun with another recipe; nothing is written.

    Raises:
        ValueError: the folder holds a run of another recipe.
    """
    file = folder / RECIPE
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != json.loads(_text(recipe)):
        raise ValueError(f"output: {folder} holds a run of another recipe ({file}); give another folder")


def remember(recipe: Any, folder: Path) -> None:
    """Write the recipe into a run's folder; refuse a folder that was begun with another one.

    Raises:
        ValueError: the folder holds a run of another recipe.
    """
    refuse_other(recipe, folder)
    file = folder / RECIPE
    if file.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as temporary:
        temporary.write_text(_text(recipe), encoding="utf-8")


def _text(recipe: Any) -> str:
    if not is_dataclass(recipe) or isinstance(recipe, type):
        raise TypeError(f"recipe must be a dataclass, not {type(recipe).__name__}")
    return json.dumps(asdict(recipe), indent=2) + "\n"
