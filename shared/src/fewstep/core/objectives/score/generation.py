"""How a student makes samples: in one call, or in several with the last of them trained."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.objectives.score.base import Generation, Made
from fewstep.core.training import Moment


def start_state(student: FlowMap, noise: Tensor, start: float) -> tuple[Tensor, Tensor]:
    """The state sigma·noise + b·y at a start time, as samplers begin with it, and the times (batch,)."""
    t = torch.full((len(noise),), start, dtype=torch.float64, device=noise.device)
    _, b, sigma = student.path.evaluate(t)
    state = spread(sigma, noise) * noise
    return (state if student.y is None else state + spread(b, noise) * student.y), t


@dataclass(frozen=True)
class OneStep(Generation):
    """x = D(sigma·z, start): one call from noise at a start time.

    z is the noise that the batch is coupled to, if it is, and a fresh draw otherwise.

    Args:
        start: time of the call (None: the path's t_max). A student that starts as an EDM teacher does so best
            at a level well below t_max, where its denoiser is not yet the mean of all data: 2.5 in SiD.

    Reference: Zhou et al. 2024, "Score identity Distillation", section 4 (sigma_init).
    """

    start: float | None = None

    def __call__(
        self, student: FlowMap, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Made:
        """Samples of one call."""
        noise = batch.noise_or(generator)
        state, t = start_state(student, noise, student.path.t_max if self.start is None else self.start)
        return Made(student.x0(state, t), t, state, noise)


@dataclass(frozen=True)
class SeveralSteps(Generation):
    """Backward simulation: the student's own chain up to a random call, which alone is trained.

    Call k is x⁽ᵏ⁾ = D(x_{t_k}, t_k); the state of the next one is x⁽ᵏ⁾ with fresh noise at t_{k+1}, as
    sampling of kind "consistency" has it. Every sample of the batch has its own k.

    Args:
        times: of the calls, decreasing; the first is the start.

    Raises:
        ValueError: times are not decreasing.

    Reference: Yin et al. 2024, "Improved Distribution Matching Distillation", section 4.4.
    """

    times: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.times or any(a <= b for a, b in pairwise(self.times)):
            raise ValueError(f"times must be decreasing, got {self.times}")

    def __call__(
        self, student: FlowMap, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Made:
        """Samples of a random call of the chain."""
        noise = batch.noise_or(generator)
        count = len(noise)
        drawn = torch.randint(len(self.times), (count,), generator=generator, device=noise.device)
        state, t = start_state(student, noise, self.times[0])
        chosen_state, chosen_t = state, t
        for k, time in enumerate(self.times[1:], 1):
            with torch.no_grad():
                x = student.x0(state, t)
            t = torch.full_like(t, time)
            state = student.path.corrupt(x, t, normal_like(x, generator), student.y)
            here = drawn == k
            chosen_state = torch.where(spread(here, x) > 0, state, chosen_state)
            chosen_t = torch.where(here, t, chosen_t)
        return Made(student.x0(chosen_state, chosen_t), chosen_t, chosen_state, noise)
