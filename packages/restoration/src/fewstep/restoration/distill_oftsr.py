"""Tunable one-call students of a ResShift model, in the manner of OFTSR."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path as FilePath
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import AbsoluteError, Distance
from fewstep.core.objectives.trajectory.base import JumpRule, Situation, TrajectoryDistillation
from fewstep.core.training import TrainResult

from .data import PairedCrops, list_images
from .distill_sr import OneCallValidation, student_batch
from .methods.resshift import ResShift
from .methods.resshift_config import PREDICTIONS
from .methods.tunable_resshift import Towards, TunableConfig, TunableResShift, told_of
from .nets.edsr import ConditionalEDSR
from .runs import Run


@dataclass(frozen=True)
class TunableRecipe:
    """Everything that the distillation depends on, apart from the teacher and the photographs.

    Args:
        ends: share of the draws at realism 0, and as much at realism 1; the others lie evenly between.
        patch: side of a training crop in pixels of the truth.
        batch_size: crops per batch.
        learning_rate: largest rate of AdamW, under a cosine schedule.
        warmup: share of the run in which the rate rises.
        ema: decay of the averaged weights that are validated and kept.
        clip: largest gradient norm.
        precision: "bf16" or "no".
        max_updates: of the student.
        validation_images: photographs of the validation folder that are used.
        validate_every: updates between validations.
        seed: of crops and noise.

    Raises:
        ValueError: ends is outside [0, 0.5].
    """

    ends: float = 0.25
    patch: int = 96
    batch_size: int = 8
    learning_rate: float = 2e-4
    warmup: float = 0.02
    ema: float = 0.99
    clip: float = 1.0
    precision: str = "bf16"
    max_updates: int = 100_000
    validation_images: int = 10
    validate_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.ends <= 0.5:
            raise ValueError(f"ends must lie in [0, 0.5], got {self.ends}")


@dataclass(frozen=True)
class AlongTheWay(JumpRule):
    """All answers of the student for one start lie on the teacher's way from there, walked to its end.

    x_T = y + κ √η_T ε is the start, x_k the states of the teacher's deterministic steps down its levels, and
    D*_k the estimate with which one jump leads from x_T to x_k. D*_{T−2} is the teacher's mean and D*_{−1}
    the end of its way, its sample.

        loss = d(D(x_T, s(r)), D*_u),   u = T − 2 − r (T − 1),   r the realism in [0, 1]

    Between two levels D* is mixed linearly. OFTSR learns from the teacher's next step after the student's own
    jump, since its flow has no few levels; here the whole way costs T calls, so that the target is exact and
    neither a boundary nor an alignment term is needed.

    Args:
        ends: share of draws at each end.
        distance: of clean estimates.

    Reference: Zhu et al. 2025, "OFTSR", section 4.2.
    """

    ends: float = 0.25
    distance: Distance = field(default_factory=AbsoluteError)

    def __call__(self, situation: Situation) -> Tensor:
        """The loss of a batch."""
        path, teacher = situation.path, situation.taught()
        noise, y = situation.batch.noise_or(situation.generator), situation.batch.y
        start = path.start(noise, y)
        levels = round(path.t_max) + 1
        with torch.no_grad():
            way = estimates(teacher, start)
        r = torch.rand(len(start), generator=situation.generator, device=start.device, dtype=torch.float64)
        r = ((r - self.ends) / max(1 - 2 * self.ends, 1e-9)).clamp(0, 1)
        top = torch.full_like(r, path.t_max)
        made = situation.student.given(s=told_of(r, levels)).x0(start, top)
        return self.distance(made, at_realism(way, r)).mean()


def estimates(teacher: FlowMap, start: Tensor) -> list[Tensor]:
    """The estimates D* with which one jump from the start leads to each state of the teacher's way.

    Args:
        teacher: with its conditions.
        start: (batch, channels, h, w) at the path's t_max.

    Returns:
        D*_{T−2}, which is the teacher's mean, down to D*_{−1}, the end of its way.
    """
    path, count = teacher.path, len(start)

    def at(level: int) -> Tensor:
        return torch.full((count,), float(level), dtype=torch.float64, device=start.device)

    top = at(round(path.t_max))
    state, found = start, []
    for level in range(round(path.t_max), -1, -1):
        t, s = at(level), at(level - 1)
        state = teacher.jump(state, t, s)
        # The jump from the start is linear in the estimate.
        offset = teacher.moved(start, top, s, torch.zeros_like(start))
        a_t, _, sigma_t = path.evaluate(top)
        a_s, _, sigma_s = path.evaluate(s)
        found.append((state - offset) / spread(a_s - sigma_s / sigma_t * a_t, start))
    return found


def at_realism(way: Sequence[Tensor], realism: Tensor) -> Tensor:
    """The estimates at points of the dial, (batch,), mixed linearly between two that are known."""
    place = realism * (len(way) - 1)
    below = place.floor().clamp(max=max(len(way) - 2, 0)).long()
    known, rows = torch.stack(tuple(way)), torch.arange(len(realism), device=realism.device)
    above = (below + 1).clamp(max=len(way) - 1)
    share = (place - below)[:, None, None, None].to(known)
    return torch.lerp(known[below, rows], known[above, rows], share)


def tunable_objective(teacher: ResShift, recipe: TunableRecipe) -> TrajectoryDistillation:
    """The loss of a student; the network that is trained is `Towards(student.net)`.

    Batches are {"x0", "y", "lq"}, see `distill_sr.student_batch`.

    Raises:
        TypeError: the teacher has another network than the small one.
    """
    if not isinstance(teacher.net, ConditionalEDSR):
        raise TypeError(f"teacher must have a ConditionalEDSR, it has a {type(teacher.net).__name__}")
    prediction = PREDICTIONS[teacher.config.prediction]
    frozen = copy.deepcopy(teacher.net).eval().requires_grad_(False)
    flow = FlowMap(frozen, teacher.path, prediction)
    return TrajectoryDistillation(teacher.path, prediction, AlongTheWay(recipe.ends), flow)


def tunable_of(teacher: ResShift, network: nn.Module) -> TunableResShift:
    """A student around a network of the teacher's layout."""
    options = {name: value for name, value in asdict(teacher.config).items() if name != "calls"}
    return TunableResShift(TunableConfig(**options), network=network).eval()


@dataclass(frozen=True, eq=False)
class TunableValidation:
    """PSNR on luma and sharpness at both ends of the dial.

    Args:
        teacher: whose configuration the network is put into.
        photographs: what is restored.
    """

    teacher: ResShift
    photographs: OneCallValidation

    def __call__(self, net: Any) -> dict[str, float]:
        """Metrics "psnr_y_0", "sharpness_0", "psnr_y_1" and "sharpness_1"."""
        found = {}
        for realism in (0.0, 1.0):
            model = tunable_of(self.teacher, net.net).tuned(realism)
            for name, value in self.photographs.measure(model, "sample").items():
                found[f"{name}_{realism:.0f}"] = value
        return found


def distill_tunable(
    teacher: ResShift,
    photographs: str | FilePath,
    validation: str | FilePath,
    output: str | FilePath,
    recipe: TunableRecipe | None = None,
    max_minutes: float | None = None,
    device: str = "auto",
) -> TrainResult:
    """Train a tunable one-call student of a ResShift model, or go on with a run that was stopped.

    Args:
        teacher: a trained model.
        photographs: folder of training photographs.
        validation: folder of photographs that are never trained on.
        output: folder of the run; the complete run's averaged weights are saved in `output/model`.
        recipe: settings; a run that goes on must be given the same ones.
        max_minutes: minutes of training over all parts of the run, by which the learning rate anneals.
        device: "auto" or "cpu".

    Returns:
        How the run ended.

    Raises:
        TypeError: the teacher has no ConditionalEDSR.
        ValueError: no photographs, or the folder holds a run of another recipe.
    """
    recipe = recipe or TunableRecipe()
    run = Run.begin(recipe, output, max_minutes, device)
    objective = tunable_objective(teacher, recipe)
    crops = PairedCrops.from_files(photographs, scale=teacher.scale, patch=recipe.patch)
    held = OneCallValidation.from_files(teacher, list_images(validation)[: recipe.validation_images])
    student = Towards(copy.deepcopy(teacher.net).requires_grad_(True))

    def batch(generator: np.random.Generator, n: int) -> dict[str, Tensor]:
        return student_batch(crops.batch(generator, n))

    def save(averaged: Towards, place: FilePath) -> None:
        tunable_of(teacher, averaged.net).save_pretrained(place)

    config = run.settings(recipe.max_updates, log_every=10)
    return run.fit(student, objective, batch, TunableValidation(teacher, held), save, config)
