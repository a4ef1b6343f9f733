"""Starts: what happens before a sampler's first step, and which start it gets."""

from fewstep.core.starts.boundary import BestStart, best_candidate, best_start
from fewstep.core.starts.one_more_step import OneMoreStep
from fewstep.core.starts.optimal_transport import TransportMap, fit_transport
from fewstep.core.starts.seeds import SeedMiner, SeedRanking
from fewstep.core.starts.teleport import GaussianModel

__all__ = [
    "BestStart",
    "GaussianModel",
    "OneMoreStep",
    "SeedMiner",
    "SeedRanking",
    "TransportMap",
    "best_candidate",
    "best_start",
    "fit_transport",
]
