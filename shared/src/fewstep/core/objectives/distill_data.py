"""What a distillation trains on and is judged by: data, pairs, or the teacher's own samples."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.objectives.methods.base import Method
from fewstep.core.objectives.pair_folder import Pairs
from fewstep.core.objectives.recipe import DistillRecipe

Samples = Mapping[str, Tensor]
# With fewer held-out samples a distance says nothing; then the training data are compared with.
_FEWEST = 16


@dataclass(frozen=True)
class Split:
    """Training samples and held-out ones.

    Args:
        train: x0 and what goes with it; None: the method needs none, and its batches hold shapes alone.
        reference: held-out x0, (count, *shape); None: the teacher's samples take their place.
        conditions: what the network is told for each of the reference.
        notes: sentences for the user.
    """

    train: Samples | None
    reference: Tensor | None
    conditions: Samples = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def missing_needs(method: Method, data: Any, pairs: Any) -> list[str]:
    """What a method needs and is not given: "data", "pairs" or both."""
    given = {"teacher": True, "data": data is not None, "pairs": pairs is not None}
    return [need for need in method.needs if not given[need]]


def checked_samples(
    given: Tensor | Samples | Pairs, shape: tuple[int, ...], classes: int, name: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Samples as a mapping with "x0", and notes about what is left out.

    Args:
        given: x0 alone, a mapping, or a folder of pairs.
        shape: of one sample.
        classes: number of the model's labels.
        name: of the argument, for messages.

    Raises:
        ValueError: there is no x0, shapes or numbers do not agree, or a value is not finite or no label.
    """
    given = given.tensors() if isinstance(given, Pairs) else given
    samples = {"x0": given} if isinstance(given, Tensor) else dict(given)
    if not isinstance(samples.get("x0"), Tensor):
        raise ValueError(f"{name} must hold x0; it holds {', '.join(samples) or 'nothing'}")
    x0 = samples["x0"] = samples["x0"].float()
    if tuple(x0.shape[1:]) != tuple(shape) or len(x0) < 2:
        raise ValueError(f"{name} must be at least 2 samples of shape {tuple(shape)}, got {tuple(x0.shape)}")
    for key, value in samples.items():
        if not isinstance(value, Tensor) or len(value) != len(x0):
            count = len(value) if isinstance(value, Tensor) and value.ndim else type(value).__name__
            raise ValueError(f"{name} must hold {len(x0)} entries of {key}, one per sample, got {count}")
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise ValueError(f"{name} holds values of {key} that are not finite")
    return _with_labels(samples, classes, name)


def split(method: Method, recipe: DistillRecipe, data: Samples | None, pairs: Samples | None) -> Split:
    """Choose what is trained on, and hold a tenth of it out.

    Pairs are trained on where the method needs them, or needs no data; the reference comes from the data
    where there are any.

    Raises:
        ValueError: something that the method needs is not given.
    """
    absent = missing_needs(method, data, pairs)
    if absent:
        raise ValueError(f"method {recipe.method} needs {' and '.join(absent)}")
    free = "data" not in method.needs
    source = pairs if pairs is not None and ("pairs" in method.needs or free) else data
    if source is None:
        return Split(None, None)
    if pairs is not None and source is not pairs:
        notes = (f"method {recipe.method} uses no pairs; they are left aside",)
    else:
        notes = ()
    train, held, used = _held_out(source, recipe)
    if source is pairs and data is not None:
        train, (_, held, used) = source, _held_out(data, recipe)
    notes += (used,) if used else ()
    conditions = {name: value for name, value in held.items() if name not in ("x0", "noise", "mask")}
    return Split(train, held["x0"], conditions, notes)


class TrainingBatches:
    """Draws batches from samples; without samples, batches that hold shapes and random labels alone.

    Args:
        samples: by name, all of one length; None: zeros.
        shape: of one sample.
        size: of a batch.
        classes: number of labels that are drawn where there are no samples.
    """

    def __init__(self, samples: Samples | None, shape: tuple[int, ...], size: int, classes: int) -> None:
        self.samples, self.shape, self.size, self.classes = samples, shape, size, classes

    def __call__(self, generator: np.random.Generator) -> dict[str, Tensor]:
        """One batch."""
        if self.samples is not None:
            chosen = torch.from_numpy(generator.integers(len(self.samples["x0"]), size=self.size))
            return {name: value[chosen] for name, value in self.samples.items()}
        batch = {"x0": torch.zeros(self.size, *self.shape)}
        if self.classes:
            batch["label"] = torch.from_numpy(generator.integers(self.classes, size=self.size))
        return batch


def _with_labels(samples: dict[str, Tensor], classes: int, name: str) -> tuple[dict[str, Tensor], list[str]]:
    label = samples.get("label")
    if label is None:
        return samples, []
    if not classes:
        del samples["label"]
        return samples, ["the model has no classes: the labels are not used"]
    if label.is_floating_point() or label.ndim != 1:
        raise ValueError(f"{name} must hold labels as whole numbers, one per sample")
    if int(label.min()) < 0 or int(label.max()) >= classes:
        low, high = int(label.min()), int(label.max())
        raise ValueError(f"{name} must hold labels in 0 … {classes - 1}, got {low} … {high}")
    samples["label"] = label.long()
    return samples, []


def _held_out(samples: Samples, recipe: DistillRecipe) -> tuple[Samples, Samples, str | None]:
    count = len(samples["x0"])
    order = torch.from_numpy(np.random.default_rng(recipe.seed).permutation(count))
    held = min(count // 10, recipe.validation_samples)
    if held < _FEWEST:
        part = _rows(samples, order[: recipe.validation_samples])
        return (
            samples,
            part,
            f"{count} samples are too few to hold some out: students are compared with them all",
        )
    return _rows(samples, order[held:]), _rows(samples, order[:held]), None


def _rows(samples: Samples, rows: Tensor) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in samples.items()}
