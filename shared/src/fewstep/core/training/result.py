"""How a run ends."""

from dataclasses import dataclass


class TrainingDiverged(RuntimeError):
    """The loss or its gradient stayed NaN or infinite for too many consecutive steps."""


@dataclass(frozen=True)
class TrainResult:
    """How a call of `Trainer.fit` ended.

    Args:
        step: updates of the run so far, of all phases together.
        minutes: of the run so far, over all its parts.
        stopped: "max_steps", "max_minutes", "no_improvement" (see `TrainerConfig.patience`) or "interrupted"
            (resume goes on from there).
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
