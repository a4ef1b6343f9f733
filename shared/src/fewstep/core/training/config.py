"""What a training run is told besides its model, its loss and its data."""

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from fewstep.core.files import atomic_path
from fewstep.core.training.ema import check_rule


@dataclass(frozen=True)
class TrainerConfig:
    """Settings of a training run, saved as `config.json` in the run's folder.

    Args:
        max_steps: optimiser steps after which the run is complete.
        max_minutes: minutes of training, over all resumed parts, after which the run is complete (None: any).
        batch_size: samples of a process' batch, for a Dataset; a function of batches knows its own size.
        accumulate: batches whose gradients are averaged for one optimiser step.
        precision: "no" (as the weights are) or "bf16" (the network computes under bfloat16 autocast).
        clip: largest norm of the gradient (None: not clipped).
        ema_decays: one averaged copy of the student's weights per rule (a decay, "power:…" or
            "half-life:…", see `Ema`); the first one is validated and previewed.
        learning_rate: of the default optimiser, AdamW; ignored when an optimiser is given.
        weight_decay: of the default optimiser.
        channels_last: keep the network and 4-d batches in channels-last memory order.
        workers: background processes that prepare batches (0: the training process does it).
        save_every_minutes: minutes between checkpoints (None: only by steps and at the end).
        save_every_steps: steps between checkpoints (None: only by minutes and at the end).
        keep: number of newest checkpoints that are kept.
        log_every: steps between two lines of the log.
        validate_every: steps between validations (None: only at the end).
        preview_every: steps between previews (None: only at the end).
        monitor: name of the validation metric whose best value keeps `best.pt` (None: no best is kept).
        monitor_mode: "max" when larger is better, "min" when smaller is.
        patience: validations without a better value of the metric after which the run ends (None: never).
        max_bad_steps: consecutive steps with a NaN or an infinity that are skipped; one more aborts.
        seed: of the data order, the noise of the loss and the global generators.
        processes: processes that the run must have at least; fewer is an error.
        device: "auto" or "cpu".
        tensorboard: also write TensorBoard event files.

    Raises:
        ValueError: a value is outside of its range.
    """

    max_steps: int = 100_000
    max_minutes: float | None = None
    batch_size: int = 16
    accumulate: int = 1
    precision: Literal["no", "bf16"] = "no"
    clip: float | None = 1.0
    ema_decays: tuple[float | str, ...] = (0.999,)
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    channels_last: bool = False
    workers: int = 0
    save_every_minutes: float | None = 10.0
    save_every_steps: int | None = None
    keep: int = 2
    log_every: int = 50
    validate_every: int | None = None
    preview_every: int | None = None
    monitor: str | None = None
    monitor_mode: Literal["max", "min"] = "max"
    patience: int | None = None
    max_bad_steps: int = 10
    seed: int = 0
    processes: int = 1
    device: Literal["auto", "cpu"] = "auto"
    tensorboard: bool = True

    def __post_init__(self) -> None:
        """Check every range once, so that nothing later has to."""
        for name in ("max_steps", "batch_size", "accumulate", "keep", "log_every", "processes"):
            _require(name, getattr(self, name), at_least=1)
        for name in ("workers", "max_bad_steps", "seed", "weight_decay"):
            _require(name, getattr(self, name), at_least=0)
        for name in ("save_every_steps", "validate_every", "preview_every", "patience"):
            if getattr(self, name) is not None:
                _require(name, getattr(self, name), at_least=1)
        for name in ("max_minutes", "clip", "save_every_minutes"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be None or a positive number, got {value!r}")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate!r}")
        _require_choice("precision", self.precision, ("no", "bf16"))
        _require_choice("monitor_mode", self.monitor_mode, ("max", "min"))
        _require_choice("device", self.device, ("auto", "cpu"))
        if self.patience is not None and self.monitor is None:
            raise ValueError("patience needs a metric to monitor, got monitor=None")
        object.__setattr__(self, "ema_decays", tuple(check_rule(rule) for rule in self.ema_decays))
        if len(set(self.ema_decays)) != len(self.ema_decays):
            raise ValueError(f"ema_decays must differ from each other, got {self.ema_decays!r}")

    def save(self, path: Path) -> None:
        """Write the settings as JSON."""
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> "TrainerConfig":
        """Read settings written by `save`.

        Raises:
            ValueError: the file is no JSON object or has a field that TrainerConfig has not.
        """
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TrainerConfig":
        """Make settings from a dictionary such as a recipe's JSON file holds.

        Raises:
            ValueError: a key is no field.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"TrainerConfig has no field {', '.join(unknown)}")
        if "ema_decays" in values:
            values = {**values, "ema_decays": tuple(values["ema_decays"])}
        return cls(**values)

    def changes(self, other: "TrainerConfig") -> dict[str, tuple[Any, Any]]:
        """Fields in which two settings differ: {name: (mine, the other's)}."""
        mine, theirs = asdict(self), asdict(other)
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


def _require(name: str, value: float, at_least: int) -> None:
    if not value >= at_least:
        raise ValueError(f"{name} must be at least {at_least}, got {value!r}")


def _require_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
