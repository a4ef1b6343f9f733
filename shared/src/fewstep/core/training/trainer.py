"""The training loop, on Hugging Face Accelerate."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fewstep.core.training import state as states
from fewstep.core.training.batches import Batch, DrawBatch, MapDataset, iterate, make_batches, to_device
from fewstep.core.training.config import TrainerConfig
from fewstep.core.training.ema import Ema
from fewstep.core.training.evaluation import Evaluation, Preview, Validate, due
from fewstep.core.training.interrupt import Interrupt
from fewstep.core.training.logging import RunLog
from fewstep.core.training.meters import Meters
from fewstep.core.training.processes import Processes
from fewstep.core.training.schedule import CosineSchedule
from fewstep.core.training.snapshot import Snapshot

LossFunction = Callable[[nn.Module, Batch, torch.Generator], Tensor | Mapping[str, Tensor]]


class TrainingDiverged(RuntimeError):
    """The loss or its gradient stayed NaN or infinite for too many consecutive steps."""


@dataclass(frozen=True)
class TrainResult:
    """How a call of `Trainer.fit` ended.

    Args:
        step: optimiser steps of the run so far.
        minutes: of the run so far, over all its parts.
        stopped: "max_steps", "max_minutes" or "interrupted" (resume goes on from there).
        metrics: of the latest validation.
        best: best value of the monitored metric (None: nothing was monitored).
        skipped: steps skipped because of a NaN or an infinity.
    """

    step: int
    minutes: float
    stopped: str
    metrics: dict[str, float]
    best: float | None
    skipped: int


class Trainer:
    """Train a network; stop and go on at any time with the same weights as an unbroken run.

    The weights are the same bit for bit where kernels are deterministic (CPU, float32), for the same number
    of processes and a schedule that follows steps: with `max_minutes` the learning rate follows the clock.
    The folder of the run holds config.json, log.jsonl, checkpoints/, previews/ and tensorboard/.

    Args:
        model: the network; its weights keep their precision (float32 is advised, also with "bf16").
        loss_fn: loss_fn(model, batch, generator) gives the loss, or a mapping with "loss" and other scalars
            to log. It calls the model that it is given; noise is drawn with the generator, which lives on
            the device and is seeded for every batch.
        train_data: a function batches(generator: numpy.random.Generator) that draws one batch, or a
            map-style Dataset. Tensors and arrays in a batch, however nested, are moved to the device.
        folder: of the run; made when it is missing.
        config: see TrainerConfig.
        optimizer: over the parameters of the model (None: AdamW with the config's learning rate).
        schedule: factor of the learning rate by progress = max(step/max_steps, minutes/max_minutes).
        validate: validate(model) gives metrics of the first average of the weights (of the weights when
            there is none), in evaluation mode, without gradients, on the main process.
        preview: preview(model) gives a uint8 picture (height, width[, 3]), or several by name; as `validate`.

    Raises:
        ImportError: the extra [train] is not installed.
        RuntimeError: fewer processes were started than config.processes.
        TypeError: train_data is of neither kind.
        ValueError: the model has nothing to train.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        train_data: DrawBatch | MapDataset,
        *,
        folder: str | Path,
        config: TrainerConfig | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        schedule: Callable[[float], float] | None = None,
        validate: Validate | None = None,
        preview: Preview | None = None,
    ) -> None:
        config = config or TrainerConfig()
        self.config, self.folder, self.loss_fn = config, Path(folder), loss_fn
        self.schedule = schedule or CosineSchedule()
        self.processes = Processes(config.processes, config.device)
        self.batches = make_batches(
            train_data, config.batch_size, config.seed, self.processes.rank, self.processes.count
        )
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("model has no parameter that requires a gradient")
        model.to(self.processes.device)
        if config.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        ema = Ema(model, config.ema_decays)
        self.parallel = self.processes.prepare(model)
        # Only now do all processes have the same weights.
        ema.copy_from(model)
        if optimizer is None:
            optimizer = torch.optim.AdamW(
                self.parameters, lr=config.learning_rate, weight_decay=config.weight_decay
            )
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.model, self.ema, self.optimizer = model, ema, optimizer
        self.snapshot = Snapshot(model, ema, optimizer, self.folder)
        self.evaluation = Evaluation(self.snapshot, validate, preview, config)
        self.generator = torch.Generator(self.processes.device)

    @property
    def position(self) -> states.Position:
        """Where the run stands."""
        return self.snapshot.position

    @property
    def progress(self) -> float:
        """How much of the run is done: max(step/max_steps, minutes/max_minutes), at most 1."""
        share = self.position.step / self.config.max_steps
        if self.config.max_minutes is not None:
            share = max(share, self.position.minutes / self.config.max_minutes)
        return min(share, 1.0)

    def fit(self, resume: bool = True) -> TrainResult:
        """Train until max_steps, max_minutes or an interruption; each of them leaves a checkpoint.

        Args:
            resume: go on from the newest checkpoint in the folder, if there is one.

        Returns:
            How the run ended.

        Raises:
            TrainingDiverged: max_bad_steps + 1 steps in a row were NaN or infinite; the last good
                checkpoint stays.
            ValueError: resume is False and the folder already holds a run, or no checkpoint can be read.
        """
        if not resume and states.step_files(self.folder):
            raise ValueError(f"folder {self.folder} already holds a run; give another one or resume=True")
        notes = self.snapshot.restore(self.processes)
        if self.position.step == 0:
            states.seed_everything(self.config.seed, self.processes.rank)
        log = self._open_log(notes) if self.processes.is_main else None
        try:
            with Interrupt() as interrupt, self.processes.precision(self.model, self.config.precision):
                stopped = self._loop(interrupt, log)
            self.processes.wait()
        finally:
            if log is not None:
                log.close()
        at = self.position
        return TrainResult(at.step, at.minutes, stopped, dict(at.metrics), at.best, at.skipped)

    def _open_log(self, notes: list[str]) -> RunLog:
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "config.json"
        if self.position.step and settings.is_file():
            changes = TrainerConfig.load(settings).changes(self.config)
            notes = [*notes, *(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changes.items())]
        self.config.save(settings)
        log = RunLog(self.folder, self.position.step, self.config.tensorboard)
        for note in notes:
            log.say(note)
        return log

    def _loop(self, interrupt: Interrupt, log: RunLog | None) -> str:
        config, position = self.config, self.position
        batches = iterate(self.batches, position.batches, config.workers, config.seed)
        meters, stop = Meters(), False
        saved_step, saved_minutes = position.step, position.minutes
        started = time.monotonic() - 60 * position.minutes
        while self.progress < 1 and not stop:
            bad, loss, norm = self._accumulate(batches, meters)
            minutes = (time.monotonic() - started) / 60
            bad, stop, position.minutes = self.processes.agree(bad, interrupt.requested, minutes)
            self._update(bad, loss, norm)
            if due(position.step, config.log_every):
                self._log_training(meters, log)
            if log is not None:
                log.advance(position.step, self.progress)
            if position.bad_streak:
                continue
            if log is not None:
                self.evaluation(log, finished=self.progress >= 1)
            waited = position.minutes - saved_minutes
            if due(position.step, config.save_every_steps) or waited >= (
                config.save_every_minutes or math.inf
            ):
                self.snapshot.save(self.processes, config.keep)
                saved_step, saved_minutes = position.step, position.minutes
        if saved_step != position.step and not position.bad_streak:
            self.snapshot.save(self.processes, config.keep)
        if self.progress < 1:
            return "interrupted"
        return "max_steps" if position.step >= config.max_steps else "max_minutes"

    def _accumulate(self, batches: Iterator[Batch], meters: Meters) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of one accumulation window: whether it is not finite, its loss, its norm."""
        config, rank = self.config, self.processes.rank
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.schedule(self.progress)
        self.model.train()
        total = torch.zeros((), device=self.processes.device)
        for part in range(config.accumulate):
            batch = to_device(next(batches), self.processes.device, config.channels_last)
            self.generator.manual_seed(states.derive_seed(config.seed, rank, self.position.batches, 1))
            self.position.batches += 1
            last = part == config.accumulate - 1
            with nullcontext() if last else self.processes.no_sync(self.parallel):
                losses = _named_losses(self.loss_fn(self.parallel, batch, self.generator))
                self.processes.backward(losses["loss"] / config.accumulate)
            total += losses["loss"].detach().reshape(()) / config.accumulate
            meters.add(losses)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.clip or math.inf)
        meters.add({"gradient_norm": norm})
        return ~(torch.isfinite(total) & torch.isfinite(norm)), total, norm

    def _update(self, bad: bool, loss: Tensor, norm: Tensor) -> None:
        """Take the step, or skip it when it is bad; give up after too many bad ones in a row."""
        position = self.position
        if bad:
            position.skipped += 1
            position.bad_streak += 1
        else:
            self.optimizer.step()
            self.ema.update(self.model)
            position.bad_streak = 0
        self.optimizer.zero_grad(set_to_none=True)
        position.step += 1
        if position.bad_streak > self.config.max_bad_steps:
            files = states.step_files(self.folder)
            kept = f"the last good checkpoint is {files[-1]}" if files else "no checkpoint had been saved yet"
            raise TrainingDiverged(
                f"step {position.step} is number {position.bad_streak} in a row whose loss or gradient is "
                f"not finite (loss {float(loss):g}, gradient norm {float(norm):g}); {kept}. "
                "A lower learning rate or a smaller clip usually helps."
            )

    def _log_training(self, meters: Meters, log: RunLog | None) -> None:
        values = meters.read(self.processes)
        if log is not None:
            rate, at = self.optimizer.param_groups[0]["lr"], self.position
            run = {"learning_rate": rate, "minutes": at.minutes, "skipped": at.skipped}
            log.report(at.step, "train", {**values, **run})


def _named_losses(losses: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    named = {"loss": losses} if isinstance(losses, Tensor) else losses
    if "loss" not in named:
        raise ValueError(f'loss_fn must return a tensor or a mapping with "loss", got {", ".join(named)}')
    if named["loss"].numel() != 1:
        raise ValueError(
            f"loss_fn must return one number, got a tensor of shape {tuple(named['loss'].shape)}"
        )
    return named
