"""What the training of a small model for a task that keeps the size depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .degradations import Degradation, OneOf, degradation
from .tasks import TASKS

METHODS = ("rddm", "irsde")
ERRORS = ("absolute", "squared")


@dataclass(frozen=True)
class TaskRecipe:
    """A model with a small U-Net: a few-step RDDM, or an IR-SDE of many times that MR-sampler skips.

    Args:
        task: a name of `tasks.TASKS`, or several joined by "+", for one model.
        method: "rddm", which learns exactly the times that sampling visits, or "irsde", which learns all.
        method_options: fields of the method's configuration in place of the recipe's. RDDMConfig: little
            noise (sum_scale 0.01), x0 prediction, "ddim", 5 calls. IRSDEConfig: x0 prediction, "mrs-2", 10
            calls.
        degradation: {"name": …, further fields} of `degradations.degradation`, or {"one_of": [[such, share],
            …]}.
        takes: what the network is told beside the input, of "mask" and "level"; an IR-SDE is told no level,
            and is shown the masked pixels white.
        level_share: how often the network is told the noise level, where it is known.
        pair_share: share of crops from real pairs, where there are any.
        widths, blocks, fold: of `nets.small_unet.SmallUNet`.
        start_share: how often the start of the path is drawn, relative to each other time.
        rollout_share: of an RDDM: how often a later state is made from the network's own first prediction, as
            it is in sampling, and not from the clean image.
        error: of an RDDM's predicted clean image, "absolute" or "squared". Squared errors gain PSNR where
            much is uncertain, as under a mask, and suit the end of a training.
        patch: side of a training crop in pixels.
        batch_size: crops of a batch.
        learning_rate: largest rate of AdamW, under a cosine schedule.
        warmup: share of the run in which the rate rises.
        ema: decay of the averaged weights that are validated and shipped.
        clip: largest gradient norm.
        precision: "bf16" or "no".
        max_steps: end of the run by steps.
        validation_images: photographs of the validation folder that are used.
        validate_every: steps between validations, each with a preview.
        seed: of crops, degradations, noise and initial weights.

    Raises:
        ValueError: a value out of its range.
    """

    task: str = "denoise"
    method: str = "rddm"
    method_options: Mapping[str, Any] = field(default_factory=dict)
    degradation: Mapping[str, Any] = field(default_factory=lambda: {"name": "noise"})
    takes: tuple[str, ...] = ()
    level_share: float = 0.5
    pair_share: float = 0.25
    widths: tuple[int, ...] = (48, 96, 128)
    blocks: int = 2
    fold: int = 2
    start_share: float = 2.0
    rollout_share: float = 0.95
    error: str = "absolute"
    patch: int = 96
    batch_size: int = 8
    learning_rate: float = 1e-3
    warmup: float = 0.01
    ema: float = 0.999
    clip: float = 0.1
    precision: str = "bf16"
    max_steps: int = 500_000
    validation_images: int = 3
    validate_every: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {self.method!r}")
        if not set(self.tasks) <= set(TASKS):
            raise ValueError(f"task must be of {', '.join(TASKS)}, joined by '+', got {self.task!r}")
        if self.error not in ERRORS:
            raise ValueError(f"error must be one of {', '.join(ERRORS)}, got {self.error!r}")
        if self.method == "irsde" and "level" in self.takes:
            raise ValueError(f"takes must be without 'level' for method 'irsde', got {self.takes}")
        for name in ("level_share", "pair_share", "rollout_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("patch", "batch_size", "max_steps", "validation_images", "validate_every", "blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "start_share"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        multiple = self.fold * 2 ** (len(self.widths) - 1)
        if self.patch % multiple:
            raise ValueError(f"patch must be a multiple of {multiple} for this network, got {self.patch}")

    def degrade(self) -> Degradation:
        """What makes the input of a crop."""
        return _degradation(self.degradation)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the model."""
        return tuple(self.task.split("+"))


def _degradation(given: Mapping[str, Any]) -> Degradation:
    if "one_of" in given:
        return OneOf(*((_degradation(part), float(share)) for part, share in given["one_of"]))
    fields = dict(given)
    return degradation(fields.pop("name"), **fields)


# The recipes of the shipped models.
RECIPES = {
    "rddm-denoise": TaskRecipe(
        task="denoise",
        degradation={"name": "noise", "low": 0.0, "high": 50.0},
        takes=("level",),
        pair_share=0.6,
        start_share=3.0,
        learning_rate=7e-4,
    ),
    "rddm-jpeg": TaskRecipe(task="jpeg", degradation={"name": "jpeg"}, start_share=4.0, learning_rate=8e-4),
    "rddm-low-light": TaskRecipe(
        task="low-light",
        degradation={"name": "low_light"},
        method_options={"exposure": 0.45},
        rollout_share=0.75,
        patch=128,
        batch_size=4,
    ),
    "rddm-inpaint": TaskRecipe(
        task="inpaint",
        # Of a photograph's twelve lines about five pass through a crop.
        degradation={"name": "mask", "lines": (1, 5)},
        method_options={"fill": True},
        takes=("mask",),
        start_share=3.0,
        learning_rate=8e-4,
        patch=128,
        batch_size=4,
    ),
    "irsde-derain": TaskRecipe(
        task="derain",
        method="irsde",
        method_options={"max_sigma": 30.0},
        degradation={"name": "rain"},
        batch_size=4,
        # Shipped: begun with the weights of an RDDM for rain.
        learning_rate=5e-4,
    ),
}


def recipe_for(task: str, method: str | None = None) -> TaskRecipe:
    """The recipe of the shipped model of a task.

    Args:
        task: what it does.
        method: of the model; where none of it ships, the recipe of another method is changed to it.

    Raises:
        ValueError: there is none.

    Example:
        >>> recipe_for("denoise").takes, recipe_for("denoise", "irsde").takes
        (('level',), ())
    """
    found = [recipe for recipe in RECIPES.values() if task in (*recipe.tasks, recipe.task)]
    if not found:
        tasks = sorted({name for recipe in RECIPES.values() for name in recipe.tasks})
        known = ", ".join([*tasks, "compressed-sensing"])
        raise ValueError(f"--task: expected super-resolution or one of {known}, got {task!r}")
    same = [recipe for recipe in found if method in (None, recipe.method)]
    return same[0] if same else with_method(found[0], str(method))


def with_method(recipe: TaskRecipe, method: str) -> TaskRecipe:
    """A recipe for the same inputs with another method, whose own options are the usual ones.

    Raises:
        ValueError: there is no such method.
    """
    if method == recipe.method:
        return recipe
    if method not in METHODS:
        raise ValueError(f"--method: expected one of {', '.join(METHODS)}, got {method!r}")
    takes = tuple(name for name in recipe.takes if method != "irsde" or name != "level")
    return replace(recipe, method=method, method_options={}, takes=takes)
