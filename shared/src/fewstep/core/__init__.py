"""Few-step diffusion: the shared core.

Six nouns make every method. A Path says how data becomes noise; a Denoiser is the one thing a sampler may
ask; a Grid is the sequence of times that is visited; a Solver turns path and grid into a Plan; a Plan is a
table of numbers that one runner executes; an objective turns a network and a batch into a loss.
"""

from fewstep.core import grids, paths, predictions, solvers
from fewstep.core.builder import PlanBuilder
from fewstep.core.denoiser import Denoiser
from fewstep.core.guidance import Guided
from fewstep.core.noise import NoiseField
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.predictions import Prediction
from fewstep.core.run import StepInfo, run
from fewstep.core.sample import sample
from fewstep.core.thresholding import Thresholded
from fewstep.core.tiling import Tiled

__all__ = [
    "Denoiser",
    "Guided",
    "NoiseField",
    "Path",
    "Plan",
    "PlanBuilder",
    "Prediction",
    "StepInfo",
    "Thresholded",
    "Tiled",
    "grids",
    "paths",
    "predictions",
    "run",
    "sample",
    "solvers",
]
