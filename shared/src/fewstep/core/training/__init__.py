"""Training: one loop for every recipe, resumable bit for bit, on one process or many."""

from fewstep.core.training.config import TrainerConfig
from fewstep.core.training.ema import Ema
from fewstep.core.training.logging import read_log
from fewstep.core.training.phases import Moment, Objective, Phase, SinglePhase
from fewstep.core.training.result import TrainingDiverged, TrainResult
from fewstep.core.training.schedule import ConstantSchedule, CosineSchedule
from fewstep.core.training.state import load_weights
from fewstep.core.training.trainer import Trainer

__all__ = [
    "ConstantSchedule",
    "CosineSchedule",
    "Ema",
    "Moment",
    "Objective",
    "Phase",
    "SinglePhase",
    "TrainResult",
    "Trainer",
    "TrainerConfig",
    "TrainingDiverged",
    "load_weights",
    "read_log",
]
