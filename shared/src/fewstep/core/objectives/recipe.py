"""DistillRecipe: everything that a distillation depends on, apart from the teacher and the data."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from fewstep.core.configs import config_from_dict
from fewstep.core.files import atomic_path
from fewstep.core.objectives.methods.base import Method
from fewstep.core.training.ema import check_rule

RECIPE = "recipe.json"
METRICS = ("sliced-wasserstein", "energy")
OPTIMIZERS = ("adam", "adamw", "radam")
# A run may be made longer or validated differently without becoming another one.
EXTENSIBLE = ("updates", "max_minutes", "patience", "validate_every")


@dataclass(frozen=True)
class DistillRecipe:
    """How a student is trained, saved as `recipe.json` beside it.

    Args:
        method: a name of `fewstep.core.objectives.methods.names()`, or of one's own.
        options: of the method, as JSON has them; those left out keep the method's defaults.
        steps: network calls that the student is meant for and validated with (None: the method's).
        updates: of the student; those of other networks in between do not count.
        max_minutes: of training over all parts of the run, after which it is complete (None: any).
        batch_size: samples of a batch.
        learning_rate: of every network whose method does not say otherwise.
        betas: of Adam and its kin.
        weight_decay: of AdamW.
        optimizer: a name of OPTIMIZERS.
        schedule: "constant" or "cosine", after the warm-up.
        warmup: share of the run in which the rate rises.
        ema: rule of the average of the student that is validated and saved (a decay, "power:…" or
            "half-life:…"); None: the student itself.
        precision: "no" or "bf16".
        clip: largest gradient norm (None: not clipped).
        guidance: scale of classifier-free guidance that the teacher is asked with; 1: none.
        metric: what the best student is chosen by, a name of METRICS; smaller is better.
        validate_every: updates of the student between two validations.
        validation_samples: at most so many samples are made and compared.
        patience: validations without a better value after which the run ends (None: never).
        seed: of data order, noise and new weights.

    Raises:
        ValueError: a value is outside of its range.

    Example:
        >>> DistillRecipe("cd", steps=2).learning_rate
        0.0001
    """

    method: str = "meanflow"
    options: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    updates: int = 10_000
    max_minutes: float | None = None
    batch_size: int = 128
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    schedule: str = "constant"
    warmup: float = 0.0
    ema: float | str | None = 0.999
    precision: str = "no"
    clip: float | None = 1.0
    guidance: float = 1.0
    metric: str = "sliced-wasserstein"
    validate_every: int = 500
    validation_samples: int = 1024
    patience: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"updates": 1, "batch_size": 1, "validate_every": 1, "validation_samples": 2, "seed": 0}
        for name, low in least.items():
            if not _is_whole(getattr(self, name), low):
                raise ValueError(f"{name} must be a whole number from {low}, got {getattr(self, name)!r}")
        for name in ("steps", "patience"):
            value = getattr(self, name)
            if value is not None and not _is_whole(value, 1):
                raise ValueError(f"{name} must be None or a whole number from 1, got {value!r}")
        for name in ("learning_rate", "max_minutes", "clip"):
            value = getattr(self, name)
            if value is None and name != "learning_rate":
                continue
            if not (_is_number(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, got {value!r}")
        for name, top in (("weight_decay", math.inf), ("warmup", 1.0)):
            if not (_is_number(getattr(self, name)) and 0 <= getattr(self, name) < top):
                raise ValueError(f"{name} must lie in [0, {top:g}), got {getattr(self, name)!r}")
        if len(self.betas) != 2 or not all(_is_number(beta) and 0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas!r}")
        if not _is_number(self.guidance):
            raise ValueError(f"guidance must be a finite number, got {self.guidance!r}")
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, ("constant", "cosine"))
        _one_of("precision", self.precision, ("no", "bf16"))
        _one_of("metric", self.metric, METRICS)
        if self.ema is not None:
            try:
                check_rule(self.ema)
            except (TypeError, ValueError):
                wanted = "None, a number in [0, 1), 'power:…' or 'half-life:…'"
                raise ValueError(f"ema must be {wanted}, got {self.ema!r}") from None
        if not self.method or not isinstance(self.options, Mapping):
            raise ValueError(
                f"method must be a name and options a mapping, got {self.method!r}, {self.options!r}"
            )
        try:
            plain = json.loads(json.dumps(dict(self.options), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"options must be what JSON can hold: {error}") from None
        object.__setattr__(self, "options", plain)

    @classmethod
    def of(cls, method: Method, name: str, **values: Any) -> "DistillRecipe":
        """The recipe of a method: the usual values, the method's own in their place, then those given.

        Args:
            method: whose `settings` are taken.
            name: of the method.
            values: further fields.

        Raises:
            ValueError: a field is unknown or its value out of range.
        """
        settings = {**method.settings, **values, "method": name}
        return config_from_dict(cls, settings, f"the recipe of {name}")

    def save(self, path: str | Path) -> None:
        """Write the recipe as JSON."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "DistillRecipe":
        """Read a recipe; fields that the file does not name keep their defaults.

        Raises:
            ValueError: the file is not a JSON object, or a field is unknown or its value out of range.
        """
        return config_from_dict(cls, read_fields(path), str(path))

    def changes(self, other: "DistillRecipe") -> dict[str, tuple[Any, Any]]:
        """Fields in which another recipe makes another student: {name: (mine, the other's)}."""
        mine, theirs = asdict(self), asdict(other)
        return {
            name: (mine[name], theirs[name])
            for name in mine
            if mine[name] != theirs[name] and name not in EXTENSIBLE
        }

    def with_values(self, **values: Any) -> "DistillRecipe":
        """The recipe with other values, checked."""
        return replace(self, **values)


def read_fields(path: str | Path) -> dict[str, Any]:
    """The fields that a recipe file names.

    Raises:
        ValueError: the file cannot be read or is not a JSON object.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a recipe: it must be a JSON object")
    return values


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
