"""The training loop, on Hugging Face Accelerate."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
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
from fewstep.core.training.phases import (
    STUDENT,
    FunctionObjective,
    Losses,
    Moment,
    Objective,
    Phase,
    PhaseModule,
    Turn,
    Turns,
)
from fewstep.core.training.processes import Processes
from fewstep.core.training.result import TrainingDiverged, TrainResult
from fewstep.core.training.schedule import CosineSchedule
from fewstep.core.training.snapshot import Snapshot

LossFunction = Callable[[nn.Module, Batch, torch.Generator], Losses]


class Trainer:
    """Train a network, or several in turns; stop and go on at any time as if the run had never stopped.

    The weights are the same bit for bit where kernels are deterministic (CPU, float32), for the same number
    of processes and a schedule that follows steps: with `max_minutes` the learning rate follows the clock.
    A run that stops between two updates of an alternation goes on with the second.
    The folder of the run holds config.json, log.jsonl, checkpoints/, previews/ and tensorboard/.

    Args:
        model: the network; its weights keep their precision (float32 is advised, also with "bf16").
        objective: an `Objective`, or a function loss(model, batch, generator) that gives the loss, or a
            mapping with "loss" and other scalars to log. It calls the model that it is given; noise is drawn
            with the generator, which lives on the device and is seeded for every batch.
        train_data: a function batches(generator: numpy.random.Generator) that draws one batch, or a
            map-style Dataset. Tensors and arrays in a batch, however nested, are moved to the device.
        folder: of the run; made when it is missing.
        config: see TrainerConfig. Its steps count the updates of all phases.
        optimizer: over the parameters of the model, for an objective with one phase (None: AdamW with the
            config's learning rate).
        schedule: factor of every learning rate by progress = max(step/max_steps, minutes/max_minutes).
        validate: validate(model) gives metrics of the first average of the weights (of the weights when
            there is none), in evaluation mode, without gradients, on the main process.
        preview: preview(model) gives a uint8 picture (height, width[, 3]), or several by name; as `validate`.

    Raises:
        ImportError: the extra [train] is not installed.
        RuntimeError: fewer processes were started than config.processes.
        TypeError: train_data is of neither kind.
        ValueError: there is nothing to train, or an optimiser was given for several phases.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective | LossFunction,
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
        self.config, self.folder = config, Path(folder)
        self.objective = objective if isinstance(objective, Objective) else FunctionObjective(objective)
        self.schedule = schedule or CosineSchedule()
        phases = Turns(self.objective.phases())
        partial = self.objective.partial or len(phases.phases) > 1
        self.processes = Processes(config.processes, config.device, partial)
        self.batches = make_batches(
            train_data, config.batch_size, config.seed, self.processes.rank, self.processes.count
        )
        self.model = model
        self.networks = {STUDENT: model, **self.objective.modules()}
        self._place()
        self.order, self.turns = phases, {}
        for phase in phases.phases:
            self.turns[phase.name] = self._prepare(phase, optimizer, single=len(phases.phases) == 1)
        ema = self.ema = Ema(model, config.ema_decays)
        optimizers = {name: turn.optimizer for name, turn in self.turns.items()}
        self.snapshot = Snapshot(self.networks, ema, optimizers, self.folder)
        self.evaluation = Evaluation(self.snapshot, validate, preview, config)
        self.generator = torch.Generator(self.processes.device)

    def _place(self) -> None:
        """Put every network on the device, in the memory order that is asked for."""
        for network in (*self.networks.values(), *self.objective.frozen()):
            network.to(self.processes.device)
            if self.config.channels_last:
                network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.processes.share(self.networks.values())

    def _prepare(self, phase: Phase, optimizer: torch.optim.Optimizer | None, single: bool) -> Turn:
        if optimizer is not None and not single:
            raise ValueError("optimizer was given, but the objective has several phases; name it in each")
        module = PhaseModule(phase, self.networks)
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not parameters:
            raise ValueError("model has no parameter that requires a gradient")
        if optimizer is None and phase.optimizer is not None:
            optimizer = phase.optimizer(parameters)
        elif optimizer is None:
            rate, decay = self.config.learning_rate, self.config.weight_decay
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        return Turn(phase, self.processes.prepare(module), parameters, optimizer)

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
            networks = (*self.networks.values(), *self.objective.frozen())
            with Interrupt() as interrupt, self.processes.precision(networks, self.config.precision):
                stopped = self._loop(interrupt, log)
            stopped = self.processes.gather_object(stopped)[0]
            self.processes.wait()
        finally:
            for turn in self.turns.values():
                turn.moves(True)
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
        meters, stop = Meters(), self._is_stale
        saved_step, saved_minutes = position.step, position.minutes
        started = time.monotonic() - 60 * position.minutes
        while self.progress < 1 and not stop:
            phase, before = self.order.at(position.step)
            turn, moment = self.turns[phase.name], Moment(before, self.progress)
            bad, loss, norm = self._accumulate(turn, moment, batches, meters)
            minutes = (time.monotonic() - started) / 60
            bad, stop, position.minutes = self.processes.agree(bad, interrupt.requested, minutes)
            self._update(turn, moment, bad, loss, norm)
            if due(position.step, config.log_every):
                self._log_training(meters, log)
            if log is not None:
                log.advance(position.step, self.progress)
            if position.bad_streak:
                continue
            if log is not None:
                self.evaluation(log, finished=self.progress >= 1)
            if config.patience and due(position.step, config.validate_every):
                # The main process alone validates, so it alone knows.
                stop = self.processes.gather_object(stop or self._is_stale)[0]
            waited = position.minutes - saved_minutes
            if due(position.step, config.save_every_steps) or waited >= (
                config.save_every_minutes or math.inf
            ):
                self.snapshot.save(self.processes, config.keep)
                saved_step, saved_minutes = position.step, position.minutes
        if saved_step != position.step and not position.bad_streak:
            self.snapshot.save(self.processes, config.keep)
        if self.progress < 1:
            return "no_improvement" if self._is_stale else "interrupted"
        return "max_steps" if position.step >= config.max_steps else "max_minutes"

    @property
    def _is_stale(self) -> bool:
        """Whether the monitored metric has not improved for too long."""
        patience = self.config.patience
        return patience is not None and self.position.stale >= patience

    def _accumulate(
        self, turn: Turn, moment: Moment, batches: Iterator[Batch], meters: Meters
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of one accumulation window: whether it is not finite, its loss, its norm."""
        config, rank = self.config, self.processes.rank
        for group in turn.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * self.schedule(self.progress)
        self._unfreeze(turn)
        prefix = "" if len(self.turns) == 1 else f"{turn.phase.name}/"
        total = torch.zeros((), device=self.processes.device)
        for part in range(config.accumulate):
            batch = to_device(next(batches), self.processes.device, config.channels_last)
            self.generator.manual_seed(states.derive_seed(config.seed, rank, self.position.batches, 1))
            self.position.batches += 1
            last = part == config.accumulate - 1
            with nullcontext() if last else self.processes.no_sync(turn.module):
                with self.processes.autocast(config.precision):
                    losses = turn.module(batch, self.generator, moment)
                self.processes.backward(losses["loss"] / config.accumulate)
            total += losses["loss"].detach().reshape(()) / config.accumulate
            meters.add({prefix + name: value for name, value in losses.items()})
        norm = torch.nn.utils.clip_grad_norm_(turn.parameters, config.clip or math.inf)
        meters.add({prefix + "gradient_norm": norm})
        return ~(torch.isfinite(total) & torch.isfinite(norm)), total, norm

    def _unfreeze(self, turn: Turn) -> None:
        """Let exactly the phase's networks have gradients: a loss may pass through the others."""
        for network in self.networks.values():
            network.train()
        if len(self.turns) > 1:
            for other in sorted(self.turns.values(), key=lambda other: other is turn):
                other.moves(other is turn)

    def _update(self, turn: Turn, moment: Moment, bad: bool, loss: Tensor, norm: Tensor) -> None:
        """Take the step, or skip it when it is bad; give up after too many bad ones in a row."""
        position = self.position
        if bad:
            position.skipped += 1
            position.bad_streak += 1
        else:
            turn.optimizer.step()
            if STUDENT in turn.phase.trains:
                self.ema.update(self.model)
            self.objective.after_update(turn.phase.name, self.networks, moment)
            position.bad_streak = 0
        turn.optimizer.zero_grad(set_to_none=True)
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
            rate = next(iter(self.turns.values())).optimizer.param_groups[0]["lr"]
            at = self.position
            run = {"learning_rate": rate, "minutes": at.minutes, "skipped": at.skipped}
            log.report(at.step, "train", {**values, **run})
