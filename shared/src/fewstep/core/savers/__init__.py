"""Savers: rules that spend fewer network calls, or make better use of them, with a model as it is."""

from fewstep.core.savers.disa import StepAnnealing
from fewstep.core.savers.q_sched import Calibration, calibrate, ramp, scaled

__all__ = ["Calibration", "StepAnnealing", "calibrate", "ramp", "scaled"]
