"""What networks predict: x0, eps, v, score, velocity, residuals … and how each turns into x0 and eps."""

from fewstep.core.predictions.base import (
    Affine,
    LinearPrediction,
    Point,
    Prediction,
    Relation,
    Weights,
)
from fewstep.core.predictions.library import ResidualNoise, get, names

__all__ = [
    "Affine",
    "LinearPrediction",
    "Point",
    "Prediction",
    "Relation",
    "ResidualNoise",
    "Weights",
    "get",
    "names",
]
