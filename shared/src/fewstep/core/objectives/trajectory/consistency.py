"""Consistency: estimates of x0 from two neighbouring times of a trajectory must agree."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.same_rng import same_rng
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.trajectory.pairs import GridPairs, Pairs, kappa_at
from fewstep.core.objectives.trajectory.transports import Transport, transport_of
from fewstep.core.objectives.weights import weighting
from fewstep.core.paths import Path

PairWeighting = Callable[[Path, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Consistency(JumpRule):
    """D(x_t, t) and D(x_r, r) of one trajectory must agree.

    loss = w(t, r)·dist(D(x_t, t), sg[D_target(T(x_t, t → r), r)]),   x_t = a·x0 + b·y + sigma·eps.

    Four papers are choices of its options:

    - consistency distillation: `transport="heun"`, 40 grid points, an averaged target of 0.95;
    - consistency training: `transport="data"`, `ProgressivePoints`, a target with `AdaptiveDecay`;
    - improved training: "data", `DoublingPoints` with density (−1.1, 2), `PseudoHuber()`, weight "gap" and
      the student itself as target;
    - easy tuning: "data", `ShrinkingPairs`, `PseudoHuber(0.0)`, weight "gap", the student as target.

    At the end of the path (r ≤ t_min) the target is the state itself, z/a, so that nothing lets all estimates
    drift together; for the prediction "edm-boundary" this changes nothing. Dropout masks of both calls agree.

    Args:
        pairs: of times.
        transport: how x_r comes from x_t, a name of `transports.TRANSPORTS` or a function.
        distance: between the estimates.
        weight: a name of `WEIGHTS` by t, "gap" for 1/(kappa_t − kappa_r) with kappa = sigma/a, or a function
            (path, t, r) → (batch,).

    Raises:
        ValueError: transport or weight is unknown.

    Reference: Song, Dhariwal, Chen and Sutskever 2023, algorithms 2 and 3; Song and Dhariwal 2023; Geng et
        al. 2024, "Consistency Models Made Easy".
    """

    pairs: Pairs = field(default_factory=GridPairs)
    transport: str | Transport = "heun"
    distance: Distance = field(default_factory=SquaredError)
    weight: str | PairWeighting = "uniform"

    def __post_init__(self) -> None:
        transport_of(self.transport)
        pair_weighting(self.weight)

    def __call__(self, situation: Situation) -> Tensor:
        batch = situation.batch
        noise = batch.noise_or(situation.generator)
        t, r = self.pairs(
            situation.path, len(batch.x0), situation.generator, situation.moment, batch.x0.device
        )
        return self.between(situation, noise, t, r)

    def between(self, situation: Situation, noise: Tensor, t: Tensor, r: Tensor) -> Float[Tensor, "batch"]:
        """The loss at given times and noise, one number per sample."""
        path, batch = situation.path, situation.batch
        x = path.corrupt(batch.x0, t, noise, batch.y)
        again = same_rng(x.device)
        made = situation.student.x0(x, t)
        with torch.no_grad():
            x_r = transport_of(self.transport)(situation, x, t, r, noise)
            with again:
                wanted = end_estimate(situation.target, x_r, r)
        error = masked(self.distance, made, wanted, batch.mask)
        return pair_weighting(self.weight)(path, t, r).to(error.dtype) * error


def end_estimate(flow: FlowMap, x: Tensor, t: Tensor) -> Tensor:
    """D(x, t), and z/a where t is at the end of the path."""
    path = flow.path
    estimate = flow.x0(x, t.double().clamp_min(path.t_min))
    a, b, _ = path.evaluate(t)
    state = x if flow.y is None else x - spread(b, x) * flow.y
    return torch.where(spread(t <= path.t_min, x) > 0, state / spread(a, x), estimate)


def masked(distance: Distance, x: Tensor, y: Tensor, mask: Tensor | None) -> Float[Tensor, "batch"]:
    """The distance where the mask counts."""
    return distance(x, y) if mask is None else distance(mask * x, mask * y)


def pair_weighting(name: str | PairWeighting) -> PairWeighting:
    """The weight of a pair (path, t, r) by name.

    Raises:
        ValueError: unknown name.
    """
    if callable(name):
        return name
    if name == "gap":
        return lambda path, t, r: 1 / (kappa_at(path, t) - kappa_at(path, r))
    try:
        by_time = weighting(name)
    except ValueError as error:
        raise ValueError(f"{error}; or 'gap'") from None
    return lambda path, t, r: by_time(path, t)
