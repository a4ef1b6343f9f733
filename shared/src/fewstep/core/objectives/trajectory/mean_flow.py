"""MeanFlow: the average velocity between two times, learned from its own derivative."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from fewstep.core.clock import clock_at, spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.derivative import Mode, along_clock, check_mode, value_and_rate
from fewstep.core.objectives.distances import AdaptiveError
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.trajectory.guided_velocity import (
    LabelGuidance,
    guided_velocity,
    labels_of,
    without_label,
)
from fewstep.core.objectives.trajectory.time_pairs import Ordered, TimePairs
from fewstep.core.training.phases import Losses


def mean_flow_pair(
    flow: FlowMap,
    x: Float[Tensor, "batch *shape"],
    t: Float64[Tensor, "batch"],
    s: Float64[Tensor, "batch"],
    velocity: Float[Tensor, "batch *shape"],
    mode: Mode = "jvp",
    step: float = 1e-4,
) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
    """Return the estimate u(x, t, s), with its graph, and what it must be, without one.

    u = v − (tau_t − tau_s)·du/dtau,   du/dtau = v·∂u/∂z + ∂u/∂tau,

    on the normalised clock tau, on which every path is z = (1 − tau)·x0 + tau·eps. Estimate and derivative
    come from one pass in mode "jvp".

    Args:
        flow: the student.
        x: states at t.
        t: times.
        s: times to jump to, s ≤ t.
        velocity: v = eps − x0, or a teacher's.
        mode: how du/dtau is had; see `value_and_rate`.
        step: of mode "difference", in tau.

    Raises:
        ValueError: the path is a table.

    Reference: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", eqs. 6-8, algorithm 1.
    """
    direction = (*along_clock(flow.path, x, t, velocity, flow.y), torch.zeros_like(s))
    u, rate = value_and_rate(FlowMap.mean_velocity, flow, (x, t, s), direction, mode, step)
    lag = spread(clock_at(flow.path, t) - clock_at(flow.path, s), x)
    return u, (velocity - lag * rate).detach()


@dataclass(frozen=True)
class VelocityMixture:
    """Guidance that is learned into one network.

    v = ω·(eps − x0) + κ·u(x, t, t|label) + (1 − ω − κ)·u(x, t, t|none)

    The effective scale of guidance is ω/(1 − κ). Dropped labels keep v = eps − x0.

    Args:
        omega: weight of the data's velocity.
        kappa: weight of the network's own velocity with the label.
        null_label: the label that means "none".
        drop: share of labels that are replaced by it.

    Reference: Geng et al. 2025, eqs. 13 and 19-21, appendix A.
    """

    omega: float
    kappa: float
    null_label: int
    drop: float = 0.1

    def __call__(
        self, flow: FlowMap, x: Tensor, t: Tensor, velocity: Tensor, generator: torch.Generator
    ) -> tuple[FlowMap, Tensor]:
        """Return the student with some labels dropped, and the mixed velocity."""
        label = labels_of(flow)
        dropped = uniform(len(label), generator, label.device) < self.drop
        with torch.no_grad():
            own = flow.mean_velocity(x, t, t)
            free = without_label(flow, self.null_label).mean_velocity(x, t, t)
        mixed = self.omega * velocity + self.kappa * own + (1 - self.omega - self.kappa) * free
        mixed = torch.where(spread(dropped, x) > 0, velocity, mixed)
        return flow.given(label=torch.where(dropped, self.null_label, label)), mixed


@dataclass(frozen=True)
class MeanFlow(JumpRule):
    """Learn the average velocity: from data, or, where there is a teacher, from its velocity.

    loss = ‖u − sg(v − (tau_t − tau_s)·du/dtau)‖²/sg(‖…‖² + c)^p, a sum over a sample, a mean over the batch.
    As p = 1 makes the loss about 1 whatever happens, "squared_error" is logged besides.

    Args:
        pairs: of the times (t, s).
        p: power of the adaptive weight. The paper's 1 was found on pictures; 0.5 is better in few dimensions.
        c: added to the squared error in the weight.
        mixture: guidance learned into the student, for training from data.
        guidance: of the teacher.
        mode: "jvp" or "difference", see `value_and_rate`.
        step: of the difference, in tau.

    Raises:
        ValueError: unknown mode.

    Reference: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", algorithm 1, eqs. 9-11 and 22.
    """

    pairs: TimePairs = field(default_factory=Ordered)
    p: float = 1.0
    c: float = 1e-3
    mixture: VelocityMixture | None = None
    guidance: LabelGuidance | None = None
    mode: Mode = "jvp"
    step: float = 1e-4

    def __post_init__(self) -> None:
        check_mode(self.mode, self.step)
        if self.guidance is not None and self.mixture is not None:
            raise ValueError("mixture is for training from data and guidance for a teacher; give one of them")

    def __call__(self, situation: Situation) -> Losses:
        """The loss, and the raw squared error and the size of the derivative's part for the log."""
        batch, path, generator = situation.batch, situation.path, situation.generator
        noise = batch.noise_or(generator)
        t, s = self.pairs(path, len(batch.x0), generator, batch.x0.device)
        x = path.corrupt(batch.x0, t, noise, batch.y)
        student, velocity = situation.student, noise - batch.x0
        if situation.teacher is not None:
            with torch.no_grad():
                velocity = guided_velocity(situation.teacher, x, t, self.guidance)
        elif self.mixture is not None:
            student, velocity = self.mixture(student, x, t, velocity, generator)
        u, target = mean_flow_pair(student, x, t, s, velocity, self.mode, self.step)
        if batch.mask is not None:
            u, target = u * batch.mask, target * batch.mask
        error = (u - target).detach().square().flatten(1).sum(1)
        return {
            "loss": AdaptiveError(self.p, self.c)(u, target).mean(),
            "squared_error": error.mean(),
            "derivative": (target - velocity).square().flatten(1).sum(1).mean(),
        }
