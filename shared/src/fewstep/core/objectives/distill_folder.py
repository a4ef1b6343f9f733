"""The folder of a student: claimed before the run, so that no other run's student is overwritten."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from fewstep.core.bridges.diffusers_folder import INDEX, DiffusersModel
from fewstep.core.cards import CardFacts, make_card
from fewstep.core.checkpoints import WEIGHTS
from fewstep.core.files import atomic_path
from fewstep.core.objectives.recipe import RECIPE, DistillRecipe
from fewstep.core.objectives.student import Model

_MATERIAL = "material.json"
_ROWS = 4096


class StudentFolder:
    """Student, recipe and card in a folder, the run in `run` inside of it.

    Args:
        path: of the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser()
        self.run = self.path / "run"

    def claim(self, recipe: DistillRecipe, teacher: Model, material: str) -> None:
        """Write down whose the folder is, before anything else.

        Args:
            recipe: of this run.
            teacher: of this run.
            material: fingerprint of teacher and data.

        Raises:
            ValueError: the folder is the teacher's, or holds something else than this run.
            OSError: the folder cannot be written.
        """
        if teacher.folder is not None and teacher.folder.resolve() == self.path.resolve():
            raise ValueError(f"folder {self.path} is the teacher's own; give another one")
        known = self.path / RECIPE
        if known.is_file():
            self._compare(DistillRecipe.load(known), recipe, material)
        elif any((self.path / name).exists() for name in (WEIGHTS, INDEX)):
            raise ValueError(f"folder {self.path} holds another model; give another one")
        self.run.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.run / _MATERIAL) as temporary:
            temporary.write_text(json.dumps({"material": material}) + "\n", encoding="utf-8")
        recipe.save(known)

    def save(self, student: Model, recipe: DistillRecipe, facts: CardFacts) -> None:
        """Write the student, its recipe and its card."""
        net = student.net.model if isinstance(student, DiffusersModel) else student.net
        card = make_card(facts, _parameters(net))
        with atomic_path(self.path / "README.md") as temporary:
            temporary.write_text(str(card), encoding="utf-8")
        student.save_pretrained(self.path)
        recipe.save(self.path / RECIPE)

    def _compare(self, old: DistillRecipe, new: DistillRecipe, material: str) -> None:
        changes = old.changes(new)
        if changes:
            listed = "; ".join(f"{name} was {a!r}, now {b!r}" for name, (a, b) in changes.items())
            raise ValueError(
                f"folder {self.path} holds a student of another recipe ({listed}); give another one"
            )
        try:
            before = json.loads((self.run / _MATERIAL).read_text(encoding="utf-8"))["material"]
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(
                f"folder {self.path} holds a student without its run; give another one"
            ) from None
        if before != material:
            raise ValueError(
                f"folder {self.path} holds a student of another teacher or of other data; give another one"
            )


def fingerprint(net: nn.Module, samples: Iterable[Mapping[str, Tensor] | None]) -> str:
    """A short name of a teacher's weights and of data (of up to 4,096 evenly spread samples of each)."""
    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        _add(digest, name, value)
    for part in samples:
        for name, value in sorted((part or {}).items()):
            _add(digest, f"{name} {tuple(value.shape)}", value[:: max(1, len(value) // _ROWS)])
        digest.update(b"|")
    return digest.hexdigest()[:32]


def _add(digest: "hashlib._Hash", name: str, value: Tensor) -> None:
    digest.update(name.encode())
    plain = value.detach().cpu().contiguous()
    digest.update(
        (plain if plain.numel() and not plain.is_floating_point() else plain.float()).numpy().tobytes()
    )


def _parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())
