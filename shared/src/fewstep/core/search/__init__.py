"""Search: the grid and the per-step choices that are best for one model at one number of network calls.

`tune` does all of it; its parts work alone: `boss_times` and `shortest_path` (dynamic programming), `evolve`
over a `TimeSpace` (AutoDiffusion) or a `UnifiedSpace` (USF/S³), objectives, and `untuned_plans`.
"""

from fewstep.core.search.boss import boss_times, shortest_path, step_costs
from fewstep.core.search.evolution import Evolution, Progress, Scored, Space, TimeSpace, evolve
from fewstep.core.search.objectives import (
    DataDistance,
    Objective,
    ReferenceDistance,
    Starts,
    energy_distance,
    reference_plan,
    sliced_wasserstein,
)
from fewstep.core.search.report import Measured, Tuned, load_plan, plan_file, saved_budgets
from fewstep.core.search.stages import TuneProgress
from fewstep.core.search.tune import OBJECTIVES, TuneSettings, tune
from fewstep.core.search.unified import UnifiedSpace
from fewstep.core.search.untuned import Untuned, untuned_plans

__all__ = [
    "OBJECTIVES",
    "DataDistance",
    "Evolution",
    "Measured",
    "Objective",
    "Progress",
    "ReferenceDistance",
    "Scored",
    "Space",
    "Starts",
    "TimeSpace",
    "TuneProgress",
    "TuneSettings",
    "Tuned",
    "UnifiedSpace",
    "Untuned",
    "boss_times",
    "energy_distance",
    "evolve",
    "load_plan",
    "plan_file",
    "reference_plan",
    "saved_budgets",
    "shortest_path",
    "sliced_wasserstein",
    "step_costs",
    "tune",
    "untuned_plans",
]
