"""TrigFlow: every path as a rotation from data to noise, the setting of continuous consistency models."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.paths import Path
from fewstep.core.predictions.base import point_on


def angle_at(path: Path, t: Float64[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
    """Return the angle atan2(sigma, a·sigma_data) of every time, 0 at data and π/2 at noise."""
    a, _, sigma = path.evaluate(t)
    return torch.atan2(sigma, a * path.sigma_data)


def rotated(path: Path, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
    """Return cos(angle)·x0 + sin(angle)·sigma_data·eps.

    It is sigma_data·(x − b·y)/sqrt(sigma² + a²·sigma_data²).
    """
    _, b, _ = path.evaluate(t)
    z = x if y is None else x - spread(b, x) * y
    return z * spread(path.sigma_data / _norm(path, t), x)


def rotation_field(flow: FlowMap, x: Tensor, t: Tensor) -> Float[Tensor, "batch *shape"]:
    """Return F of D = cos·x̂ − sin·sigma_data·F, x̂ being the rotated state: the network's field on TrigFlow.

    The weights are made in float64, so nothing cancels where the angle is small; for prediction "edm" F is
    minus the raw output.
    """
    path = flow.path
    out = flow.predict(x, t)
    weights, norm = flow.prediction.x0_at(point_on(path, t)), _norm(path, t)
    a, b, sigma = path.evaluate(t)
    cosine, size = a * path.sigma_data / norm, path.sigma_data * sigma / norm
    skip = cosine * path.sigma_data / norm
    field = spread((skip - weights.x) / size, x) * x - spread(weights.out[0] / size, x) * out
    return field if flow.y is None else field - spread((skip * b + weights.y) / size, x) * flow.y


def along_angle(
    path: Path, x: Tensor, t: Tensor, velocity: Tensor, y: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (dx, dt)·cos·sin by the angle, of a state whose rotated form moves with `velocity`.

    The factor cos·sin keeps the rates finite at both ends.

    Raises:
        ValueError: the path is a table, which has no rates.
    """
    if path.is_discrete:
        raise ValueError(f"a loss with a derivative by time needs a continuous path, not {path}")
    a, _, sigma = path.evaluate(t)
    da, db, dsigma = path.derivatives_at(t)
    norm, sd = _norm(path, t), path.sigma_data
    damped = a * sd * sigma / norm.square()
    slower = damped * norm.square() / (sd * (dsigma * a - sigma * da))
    grown = (sigma * dsigma + a * da * sd**2) / norm / sd * slower
    moved = spread(damped * norm / sd, x) * velocity + spread(grown, x) * rotated(path, x, t, y)
    return moved if y is None else moved + spread(db * slower, x) * y, slower


def _norm(path: Path, t: Tensor) -> Tensor:
    a, _, sigma = path.evaluate(t)
    return (sigma.square() + (a * path.sigma_data).square()).sqrt()
