"""Guidance: denoisers around denoisers, and constraints on the states of a sampler.

What changes the estimate of x0 is a denoiser around a denoiser. What changes the state itself is a function
for `sample(..., on_step=...)` that edits `info.x` in place.
"""

from fewstep.core.guidance.autoguidance import Autoguided
from fewstep.core.guidance.base import Interval
from fewstep.core.guidance.classifier import ClassifierGuided
from fewstep.core.guidance.classifier_free import Guided
from fewstep.core.guidance.confusion import ConfusionGuided
from fewstep.core.guidance.constraints import Replacement, in_turn
from fewstep.core.guidance.operators import (
    AveragePool,
    BlockSensing,
    Dense,
    Grayscale,
    LinearOperator,
    Mask,
)
from fewstep.core.guidance.range_null import NoisyRangeNull, RangeNull
from fewstep.core.guidance.steering import Steering

__all__ = [
    "Autoguided",
    "AveragePool",
    "BlockSensing",
    "ClassifierGuided",
    "ConfusionGuided",
    "Dense",
    "Grayscale",
    "Guided",
    "Interval",
    "LinearOperator",
    "Mask",
    "NoisyRangeNull",
    "RangeNull",
    "Replacement",
    "Steering",
    "in_turn",
]
