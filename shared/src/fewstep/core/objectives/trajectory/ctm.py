"""CTM: jumps between any two times of a trajectory agree with the teacher's."""

import itertools
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.same_rng import same_rng
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.trajectory.consistency import masked
from fewstep.core.objectives.trajectory.ctm_outer import OUTERS, OuterFlowMap
from fewstep.core.objectives.trajectory.pairs import GridPairs
from fewstep.core.objectives.trajectory.transports import Transport, transport_of
from fewstep.core.objectives.weights import Weighting, weighting
from fewstep.core.training import Moment
from fewstep.core.training.state import derive_seed

_STEPS_STREAM = 20_240_507  # only tells this stream of draws from others


@dataclass(frozen=True)
class TrajectoryConsistency(JumpRule):
    """A jump t → s of the student must agree with u → s after the teacher went t → u, seen at the clean end.

    x_u = n one-step transports of the teacher from x_t (u the n-th grid time after t), G the jump,
    estimate = G_target(G(x_t, t → s), s → t_min),
    target   = sg[G_target(G(x_u, u → s), s → t_min)],
    loss     = w(t)·dist(estimate, target),

    s any grid time from u on. Both are brought to the clean end by the target's jump, whose weights get no
    gradient but whose input does: without that the student would learn nothing.

    The number n is the same for a whole batch, and on all processes: it is drawn from the number of the
    update, with P(n) ∝ n^power.

    Args:
        points: N of the grid.
        grid: a name of `grids.names()`.
        power: of n in the shares of the numbers of transports, 1 … most.
        most: largest n; None: points − 1.
        transport: one step of the teacher, a name of `transports.TRANSPORTS` or a function.
        outer: "euler", "variance" or "mixed", see `OuterFlowMap`.
        distance: between estimate and target.
        weight: a name of `WEIGHTS` or a function (path, t) → (batch,).

    Raises:
        ValueError: an option is unknown or out of range.

    Reference: Kim et al. 2024, "Consistency Trajectory Models", equations 10 and 11 and algorithm 1.
    """

    points: int = 18
    grid: str = "karras"
    power: float = 1.0
    most: int | None = None
    transport: str | Transport = "heun"
    outer: str = "euler"
    distance: Distance = field(default_factory=SquaredError)
    weight: str | Weighting = "uniform"

    def __post_init__(self) -> None:
        GridPairs(self.points, self.grid)
        transport_of(self.transport)
        weighting(self.weight)
        if self.outer not in OUTERS:
            raise ValueError(f"outer must be one of {', '.join(OUTERS)}, got {self.outer!r}")
        if self.most is not None and not 1 <= self.most < self.points:
            raise ValueError(f"most must lie between 1 and points − 1 = {self.points - 1}, got {self.most}")

    def transports(self, moment: Moment, most: int) -> int:
        """n at a moment."""
        weights = np.arange(1, most + 1, dtype=np.float64) ** self.power
        draw = np.random.default_rng(derive_seed(_STEPS_STREAM, moment.step))
        return int(draw.choice(most, p=weights / weights.sum())) + 1

    def __call__(self, situation: Situation) -> Tensor:
        return self.between(situation, *self.draw(situation))[0]

    def draw(self, situation: Situation) -> tuple[Tensor, Tensor, Tensor]:
        """Noise, the times t, …, u that the teacher visits, (n + 1, batch), and s."""
        batch, generator = situation.batch, situation.generator
        count, device = len(batch.x0), batch.x0.device
        times = GridPairs(self.points, self.grid).times(situation.path, situation.moment, device)
        last = len(times) - 1
        n = self.transports(situation.moment, min(self.most or last, last))
        noise = batch.noise_or(generator)
        i = (uniform(count, generator, device) * (last + 1 - n)).long()
        k = i + n + (uniform(count, generator, device) * (last + 1 - n - i)).long()
        return noise, torch.stack([times[i + j] for j in range(n + 1)]), times[k]

    def between(
        self, situation: Situation, noise: Tensor, visited: Tensor, s: Tensor
    ) -> tuple[Float[Tensor, "batch"], Tensor]:
        """The loss and the estimates for given times t = visited[0], …, u = visited[-1] ≥ s and noise."""
        path, batch = situation.path, situation.batch
        t, u = visited[0], visited[-1]
        x = path.corrupt(batch.x0, t, noise, batch.y)
        again = same_rng(x.device)
        estimate = self.estimate(situation, x, t, s)
        with torch.no_grad():
            x_u = self.transported(situation, x, visited, noise)
            with again:
                target = self.estimate(situation, x_u, u, s)
        error = masked(self.distance, estimate, target, batch.mask)
        return weighting(self.weight)(path, t).to(error.dtype) * error, estimate

    def estimate(self, situation: Situation, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The student's jump to s, and from there the target's to t_min."""
        end = torch.full_like(s, situation.path.t_min)
        jumped = OuterFlowMap.of(situation.student, self.outer).jump(x, t, s)
        return OuterFlowMap.of(situation.target, self.outer).jump(jumped, s, end)

    def transported(self, situation: Situation, x: Tensor, visited: Tensor, noise: Tensor) -> Tensor:
        """The state after one transport from each visited time to the next."""
        step = transport_of(self.transport)
        for t, u in itertools.pairwise(visited):
            x = step(situation, x, t, u, noise)
        return x
