"""distill: a trained model becomes one that needs few network calls."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.core.cards import CardFacts
from fewstep.core.devices import pick_device
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets.lora import merge
from fewstep.core.objectives import methods
from fewstep.core.objectives.distill_data import Samples, Split, TrainingBatches, checked_samples, split
from fewstep.core.objectives.distill_folder import StudentFolder, fingerprint
from fewstep.core.objectives.equipped import Equipped, OnProgress
from fewstep.core.objectives.method_options import checked_options
from fewstep.core.objectives.methods.base import Method
from fewstep.core.objectives.pair_folder import Pairs
from fewstep.core.objectives.recipe import DistillRecipe
from fewstep.core.objectives.student import (
    Model,
    build_student,
    labels_of,
    make_material,
    prediction_of,
    sampled_by,
)
from fewstep.core.objectives.student_score import SEED, SampleScore, calls_of
from fewstep.core.training import (
    ConstantSchedule,
    CosineSchedule,
    Objective,
    Trainer,
    TrainerConfig,
    TrainResult,
    load_weights,
)
from fewstep.core.training.phases import STUDENT, Turns


@dataclass(frozen=True)
class Distilled:
    """What became of a distillation.

    Args:
        student: on the CPU, in evaluation mode; saved unless the run was interrupted.
        recipe: as it was run.
        result: how the run ended.
        metrics: distances of the student's samples to the reference, with the weights that were kept.
        teacher_metrics: those of the teacher, sampled as it is meant to be.
        teacher_calls: network calls for one of these samples.
        notes: sentences about the data, for the user.
    """

    student: Model
    recipe: DistillRecipe
    result: TrainResult
    metrics: Mapping[str, float]
    teacher_metrics: Mapping[str, float]
    teacher_calls: int
    notes: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return self.result.stopped != "interrupted"


def distill(
    teacher: Model,
    method: str | Method | None = None,
    *,
    data: Tensor | Samples | None = None,
    pairs: Samples | Pairs | None = None,
    recipe: DistillRecipe | None = None,
    folder: str | Path,
    on_progress: OnProgress | None = None,
) -> Model:
    """Train a student that needs few network calls, or go on with a run that was stopped.

    The folder gets the student as a checkpoint, recipe.json, a model card, and the run in `run`: its log,
    previews and checkpoints. The weights with the best sample metric on held-out data are kept.

    Args:
        teacher: a trained model.
        method: a name of `methods.names()`, or a Method (None: the recipe's, or "meanflow").
        data: real samples, x0 alone or {"x0", "label", …}.
        pairs: samples of the teacher with their noise, {"x0", "noise", …}, or what `make_pairs` gave.
        recipe: see DistillRecipe (None: the method's own settings).
        folder: of the student.
        on_progress: called after every update of the student.

    Returns:
        The student; `generate` draws its samples.

    Raises:
        ImportError: the extra [train] is not installed.
        TrainingDiverged: losses stayed NaN or infinite.
        ValueError: the method cannot be used with this model or this data, or the folder is another run's.
    """
    if not isinstance(method, Method):
        name = method or (recipe.method if recipe else "meanflow")
        method = methods.get(name)
        recipe = recipe or DistillRecipe.of(method, name)
        if recipe.method != name:
            raise ValueError(f"method must be that of the recipe, {recipe.method!r}, got {name!r}")
    recipe = recipe or DistillRecipe.of(method, "own")
    run = Distillation(teacher, method, recipe, folder, data, pairs, on_progress=on_progress)
    return run.run().student


@dataclass(frozen=True)
class Distillation:
    """A distillation with everything that can be told; `distill` has the usual part of it.

    Args:
        teacher: a trained model.
        method: the paper.
        recipe: the settings; its `method` is no more than a name here.
        folder: of the student.
        data: real samples.
        pairs: samples of the teacher with their noise.
        on_progress: called after every update of the student.
        device: "auto" or "cpu".
        facts: of the model card, which is completed.
    """

    teacher: Model
    method: Method
    recipe: DistillRecipe
    folder: str | Path
    data: Tensor | Samples | None = None
    pairs: Samples | Pairs | None = None
    on_progress: OnProgress | None = None
    device: Literal["auto", "cpu"] = "auto"
    facts: CardFacts = field(default_factory=lambda: CardFacts("student", "A distilled diffusion model."))

    def run(self) -> Distilled:
        """Train, choose the best weights, and save the student; see `distill`."""
        teacher, recipe = self.teacher, self.recipe
        options = checked_options(self.method, recipe.options)
        parts, notes = self._samples()
        found = split(self.method, recipe, parts["data"], parts["pairs"])
        sampling = replace(self.method.sampling, steps=recipe.steps or self.method.sampling.steps)
        student = build_student(teacher, self.method, sampling, recipe.seed)
        material = make_material(teacher, student, recipe.updates, recipe.options, recipe.guidance)
        if recipe.guidance != 1.0 and found.train is not None and "label" not in found.train:
            raise ValueError("guidance needs labels, which the data do not have")
        objective = self.method.make(material, **options)
        # A method that finds the times of its calls itself (BOSS) says so.
        sampling = getattr(objective, "sampling", sampling)
        sampled_by(student, sampling)
        folder = StudentFolder(self.folder)
        folder.claim(recipe, teacher, fingerprint(teacher.net, parts.values()))
        asked = material.taught()
        reference, conditions = self._reference(found, asked)
        score = SampleScore(student.path, prediction_of(student), sampling, reference, conditions)
        result = self._train(student, objective, found, score, folder)
        teacher_score = replace(score, prediction=asked.prediction, sampling=teacher.sampling)
        measured, baseline = score(student.net), teacher_score(_module(asked))
        calls = calls_of(teacher.sampling, teacher.path)
        done = Distilled(student, recipe, result, measured, baseline, calls, (*notes, *found.notes))
        if done.complete:
            folder.save(student, recipe, self._facts(done, reference_of=found))
        return done

    def _samples(self) -> tuple[dict[str, Samples | None], list[str]]:
        found: dict[str, Samples | None] = {"data": None, "pairs": None}
        notes: list[str] = []
        for name, given in (("data", self.data), ("pairs", self.pairs)):
            if given is None:
                continue
            shape, classes = self.teacher.shape, len(labels_of(self.teacher))
            found[name], more = checked_samples(given, shape, classes, name)
            notes += more
        pairs = found["pairs"]
        if pairs is not None and "noise" not in pairs:
            raise ValueError(f"pairs must hold the noise of each x0; they hold {', '.join(pairs)}")
        return found, list(dict.fromkeys(notes))

    def _reference(self, found: Split, asked: FlowMap) -> tuple[Tensor, Samples]:
        """Held-out samples and their conditions; the teacher's own where there are no data."""
        if found.reference is not None:
            return found.reference, found.conditions
        count, classes = self.recipe.validation_samples, len(labels_of(self.teacher))
        conditions = {"label": torch.arange(count) % classes} if classes else {}
        net = _module(asked).to(pick_device(self.device))
        shape = torch.empty(count, *self.teacher.shape)
        drawn = SampleScore(asked.path, asked.prediction, self.teacher.sampling, shape, conditions)
        return replace(drawn, seed=2 * SEED).samples(net, count).cpu(), conditions

    def _train(
        self, student: Model, objective: Objective, found: Split, score: SampleScore, folder: StudentFolder
    ) -> TrainResult:
        recipe = self.recipe
        objective = Equipped(objective, recipe, self.on_progress)
        # The trainer counts the updates of all phases, the recipe those of the student.
        turns = Turns(objective.phases())
        own = sum(phase.updates for phase in turns.phases if STUDENT in phase.trains)
        if not own:
            raise ValueError("the method's objective never trains the student")

        def steps(updates: int) -> int:
            return math.ceil(updates / own) * len(turns)

        config = TrainerConfig(
            max_steps=steps(recipe.updates),
            max_minutes=recipe.max_minutes,
            batch_size=recipe.batch_size,
            precision="bf16" if recipe.precision == "bf16" else "no",
            clip=recipe.clip,
            ema_decays=() if recipe.ema is None else (recipe.ema,),
            learning_rate=recipe.learning_rate,
            save_every_minutes=5.0,
            log_every=steps(max(1, recipe.validate_every // 5)),
            validate_every=steps(recipe.validate_every),
            preview_every=steps(recipe.validate_every),
            monitor=recipe.metric,
            monitor_mode="min",
            patience=recipe.patience,
            seed=recipe.seed,
            device=self.device,
            tensorboard=False,
        )
        warmed = ConstantSchedule if recipe.schedule == "constant" else CosineSchedule
        classes = len(labels_of(self.teacher))
        batches = TrainingBatches(found.train, self.teacher.shape, recipe.batch_size, classes)
        trainer = Trainer(
            student.net,
            objective,
            batches,
            folder=folder.run,
            config=config,
            schedule=warmed(warmup=recipe.warmup),
            validate=score,
            preview=score.picture,
        )
        result = trainer.fit()
        kept = "best" if (folder.run / "checkpoints" / "best.pt").is_file() else "last"
        student.net.load_state_dict(load_weights(folder.run, kept))
        # Methods that train adapters (HiPA) leave a plain network all the same.
        merge(student.net)
        student.net.cpu().eval().requires_grad_(False)
        return result

    def _facts(self, done: Distilled, reference_of: Split) -> CardFacts:
        against = "held-out samples" if reference_of.reference is not None else "the teacher's samples"
        pairs = {
            name.replace("-", " "): (done.metrics[name], done.teacher_metrics[name]) for name in done.metrics
        }
        return replace(
            self.facts,
            steps=done.result.step,
            minutes=done.result.minutes,
            metrics={f"distance to {against}": pairs},
            baseline=f"Teacher, {done.teacher_calls} calls",
        )


def _module(flow: FlowMap) -> nn.Module:
    assert isinstance(flow.net, nn.Module)
    return flow.net
