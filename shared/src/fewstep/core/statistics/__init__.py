"""Empirical model statistics: what DPM-Solver-v3 knows about a network, stored beside its checkpoint."""

from fewstep.core.statistics.estimate import estimate_statistics
from fewstep.core.statistics.stored import ModelStatistics

__all__ = ["ModelStatistics", "estimate_statistics"]
