"""One-call students of a ResShift model: the recipe of `resshift-x4-1call`."""

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.adversarial.features import FrozenFeatures
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.adversarial.heads import HeadPerLayer, PatchHead, TimedHead
from fewstep.core.objectives.distances import AbsoluteError
from fewstep.core.objectives.score.base import Judge, ScoreDistillation
from fewstep.core.objectives.score.levels import BelowStart
from fewstep.core.objectives.score.time_aware import PerturbedScore, TeacherRegression
from fewstep.core.objectives.times import Uniform
from fewstep.core.training import TrainResult

from .data import PairedCrops, list_images, read_rgb, reduce_image
from .methods.resshift import ResShift
from .methods.resshift_config import PREDICTIONS
from .metrics import score, sharpness
from .nets.edsr import ConditionalEDSR
from .one_call import FromStart, TrunkFeatures
from .runs import Run
from .train import restore_bytes

BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class OneCallRecipe:
    """Everything that the distillation depends on, apart from the teacher and the photographs.

    Args:
        teacher_steps: network calls of the teacher's result that the student has to reach in one.
        regression: weight of the distance to that result.
        perturbed: weight of the distance of how the teacher sees both, noised a little.
        share: of the path, from its clean end, from which that noise is drawn.
        adversarial: weight of the judge in the student's loss; 0: no judge.
        judge_rate: learning rate of the judge.
        judge_begins: share of the run after which the student listens to the judge.
        judge_every: every how many blocks of the teacher's trunk the judge looks at.
        patch: side of a training crop in pixels of the truth.
        batch_size: crops per batch.
        learning_rate: of the student, under a cosine schedule.
        warmup: share of the run in which the rate rises.
        ema: decay of the averaged weights that are validated and kept.
        clip: largest gradient norm.
        precision: "bf16" or "no".
        max_updates: of the student.
        validation_images: photographs of the validation folder that are used.
        validate_every: student updates between validations.
        seed: of crops, noise and the judge's weights.

    Raises:
        ValueError: a weight is negative, a share is outside (0, 1], or there is nothing to learn from.

    Reference: He et al. 2024, "One Step Diffusion-based Super-Resolution with Time-Aware Distillation"
        (TAD-SR). Absolute in place of squared errors, for whose scale the judge's weight is chosen.
    """

    teacher_steps: int = 4
    regression: float = 1.0
    perturbed: float = 1.0
    share: float = 1 / 3
    adversarial: float = 0.005
    judge_rate: float = 2e-4
    judge_begins: float = 0.1
    judge_every: int = 4
    patch: int = 96
    batch_size: int = 8
    learning_rate: float = 2e-4
    warmup: float = 0.02
    ema: float = 0.995
    clip: float = 1.0
    precision: str = "bf16"
    max_updates: int = 100_000
    validation_images: int = 10
    validate_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("regression", "perturbed", "adversarial"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")
        if not self.regression + self.perturbed:
            raise ValueError("regression and perturbed must not both be 0: the student would learn nothing")


def one_call_objective(teacher: ResShift, recipe: OneCallRecipe) -> ScoreDistillation:
    """The losses of a student that draws in one call what the teacher draws in `recipe.teacher_steps`.

    With x = student(x_T), x* the end of the teacher's deterministic way from the same x_T, and D the teacher,

        L = |x − x*| + w |D(x_t) − D(x*_t)| + g l(judge(x_t)),   x_t and x*_t with the same noise, t small.

    Batches are {"x0", "y", "lq"}, see `student_batch`.

    Args:
        teacher: a ResShift model in pixel space with the small network.
        recipe: weights.

    Raises:
        TypeError: the teacher has another network.
    """
    if not isinstance(teacher.net, ConditionalEDSR):
        raise TypeError(f"teacher must have a ConditionalEDSR, it has a {type(teacher.net).__name__}")
    path, prediction = teacher.path, PREDICTIONS[teacher.config.prediction]
    frozen = copy.deepcopy(teacher.net).eval().requires_grad_(False)
    flow = FlowMap(frozen, path, prediction)
    terms = (
        TeacherRegression(AbsoluteError(), recipe.regression),
        PerturbedScore(flow, BelowStart(recipe.share), AbsoluteError(), recipe.perturbed),
    )
    judge = None
    if recipe.adversarial:
        features = TrunkFeatures(frozen, recipe.judge_every)
        heads = HeadPerLayer([PatchHead(width, hidden=32) for width in features.widths])
        head = AdversarialHead(
            path, TimedHead(heads, features.widths), FrozenFeatures(features, None), Uniform(), "hinge"
        )
        judge = Judge(head, recipe.adversarial, 1.0, recipe.judge_begins)

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=recipe.learning_rate, betas=BETAS, weight_decay=0.0)

    return ScoreDistillation(
        path,
        prediction,
        [term for term in terms if term.weight],
        generation=FromStart(flow, steps=recipe.teacher_steps),
        judge=judge,
        optimizer=optimizer,
    )


def student_batch(crops: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch {"x0", "lq"} of pairs with the degraded end of the path, "y" = lq enlarged (bicubic)."""
    x0, lq = crops["x0"], crops["lq"]
    return {"x0": x0, "lq": lq, "y": F.interpolate(lq, size=x0.shape[-2:], mode="bicubic")}


@dataclass(frozen=True, eq=False)
class OneCallValidation:
    """PSNR on luma and sharpness of one call from the start state, over whole photographs.

    Args:
        model: whose configuration the network is put into.
        truth: photographs (height, width, 3) uint8, sides multiples of the scale.
    """

    model: ResShift
    truth: tuple[np.ndarray, ...]

    @classmethod
    def from_files(cls, model: ResShift, files: Iterable[FilePath]) -> "OneCallValidation":
        """Read photographs."""
        return cls(model, tuple(read_rgb(file, multiple=model.scale) for file in files))

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """Metrics of a network: "psnr_y" in dB and "sharpness" (1 = truth)."""
        return self.measure(ResShift(self.model.config, network=net).eval(), "mean")

    def measure(self, model: ResShift, mode: str) -> dict[str, float]:
        """The same metrics of a model in one of its modes."""
        rows = []
        for image in self.truth:
            restored = restore_bytes(model, reduce_image(image, model.scale), mode)
            rows.append((score(restored, image, "y", border=model.scale).psnr, sharpness(restored, image)))
        return dict(zip(("psnr_y", "sharpness"), np.mean(rows, axis=0).tolist(), strict=True))


def distill_one_call(
    teacher: ResShift,
    photographs: str | FilePath,
    validation: str | FilePath,
    output: str | FilePath,
    recipe: OneCallRecipe | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
    student_config: Callable[[Any], Any] = lambda config: config,
) -> TrainResult:
    """Train a one-call student of a ResShift model, or go on with a run that was stopped, and save it.

    The student has the teacher's network and begins with its weights. Asked once, from the start state with
    noise, it gives one of the things that the teacher draws in several calls.

    Args:
        teacher: a trained model.
        photographs: folder of training photographs.
        validation: folder of photographs that are never trained on.
        output: folder of the run; the complete run's averaged weights are saved in `output/model`.
        recipe: settings; a run that goes on must be given the same ones.
        max_minutes: minutes of training over all parts of the run, by which the learning rate anneals.
        device: "auto" or "cpu".
        student_config: changes the teacher's configuration into the student's.

    Returns:
        How the run ended.

    Raises:
        TypeError: the teacher has no ConditionalEDSR.
        ValueError: no photographs, or the folder holds a run of another recipe.
    """
    recipe = recipe or OneCallRecipe()
    run = Run.begin(recipe, output, max_minutes, device)
    objective = one_call_objective(teacher, recipe)
    crops = PairedCrops.from_files(photographs, scale=teacher.scale, patch=recipe.patch)
    held_out = OneCallValidation.from_files(teacher, list_images(validation)[: recipe.validation_images])
    student = copy.deepcopy(teacher.net).requires_grad_(True)
    # The trainer counts the updates of judge and student, the recipe those of the student.
    turns = sum(phase.updates for phase in objective.phases())
    config = replace(
        run.settings(recipe.max_updates, log_every=50, turns=turns), learning_rate=recipe.judge_rate
    )

    def batch(generator: np.random.Generator, n: int) -> dict[str, Tensor]:
        return student_batch(crops.batch(generator, n))

    def save(averaged: nn.Module, place: FilePath) -> None:
        ResShift(student_config(teacher.config), network=averaged).save_pretrained(place)

    return run.fit(student, objective, batch, held_out, save, config)
