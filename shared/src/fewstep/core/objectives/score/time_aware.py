"""What a student learns from its teacher's result in many steps: to reach it, and to look the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.objectives.score.backtrack import teacher_at, teacher_networks
from fewstep.core.objectives.score.base import Generation, Made, Term
from fewstep.core.objectives.score.generation import OneStep
from fewstep.core.objectives.score.levels import BelowStart, Levels
from fewstep.core.sampling import Sampling
from fewstep.core.training import Moment
from fewstep.core.training.phases import Networks


@dataclass(frozen=True)
class Taught(Made):
    """A student's samples beside what its teacher makes of the same states.

    Args:
        solve: gives the teacher's result; asked at most once, and only if a term wants it.
    """

    solve: Callable[[], Tensor]

    @cached_property
    def target(self) -> Tensor:
        """The teacher's result (batch, ...), without graph."""
        with torch.no_grad():
            return self.solve()


@dataclass(frozen=True, eq=False)
class WithTeacher(Generation):
    """One call of the student from noise, and the teacher's solution from the same state in many.

    Args:
        teacher: the frozen model.
        start: time of the student's call (None: the path's t_max).
        steps: of the teacher; a path with a table of times is walked time by time where it has fewer.
        spacing: of the steps, see Sampling.
        order: 1 (Euler, which is DDIM) or 2 (Heun).

    Raises:
        ValueError: steps is below 1, or spacing or order unknown.

    Reference: He et al. 2024, "One Step Diffusion-based Super-Resolution with Time-Aware Distillation",
        section 3.2; Zhang and Hooi 2023, "HiPA", section 3.
    """

    teacher: FlowMap
    start: float | None = None
    steps: int = 18
    spacing: str = "karras"
    order: Literal[1, 2] = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order!r}")
        self._sampling()

    def __call__(
        self, student: FlowMap, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Taught:
        """Samples of one call, and the teacher's where they are asked for."""
        made = OneStep(self.start)(student, batch, generator, moment)
        teacher = teacher_at(self.teacher, batch, moment)
        solve = partial(self.solve, teacher, made.state)
        return Taught(made.x, made.start, made.state, made.noise, solve)

    def solve(self, teacher: FlowMap, state: Tensor) -> Tensor:
        """The teacher's solution from a state at the start time (batch, ...)."""
        step = teacher.heun if self.order == 2 else teacher.jump
        times = torch.tensor(self.times(teacher), dtype=torch.float64, device=state.device)
        for t, s in pairwise(times):
            state = step(state, t.expand(len(state)), s.expand(len(state)))
        return state

    def times(self, teacher: FlowMap) -> list[float]:
        """The times from the start to the clean end."""
        path = teacher.path
        if not path.is_discrete:
            return self._sampling().grid(path)
        start = path.t_max if self.start is None else self.start
        steps = min(self.steps, round(start - path.t_min) + 1)
        # Whole times, evenly over the table, from the start down to the clean end.
        return [round(start + (path.t_clean - start) * i / steps) for i in range(steps + 1)]

    def _sampling(self) -> Sampling:
        return Sampling("ode", self.steps, start=self.start, spacing=self.spacing)


@dataclass(frozen=True, eq=False)
class TeacherRegression(Term):
    """weight·dist(x, x*), x* the teacher's result: knowledge distillation without stored pairs.

    With a distance that also compares high frequencies it is HiPA's loss.

    Args:
        distance: see Distance.
        weight: of the term.

    Reference: He et al. 2024 (TAD-SR), eq. 5; Zhang and Hooi 2023, "HiPA: Enabling One-Step Text-to-Image
        Diffusion Models via High-Frequency-Promoting Adaptation", eq. 4.
    """

    distance: Distance = field(default_factory=SquaredError)
    weight: float = 1.0
    name: str = "regression"

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,)."""
        return self.weight * self.distance(made.x, target_of(made))


@dataclass(frozen=True, eq=False)
class PerturbedScore(Term):
    """weight·dist(D_phi(x_t), sg D_phi(x*_t)): to the teacher, the student's sample should look like x*.

    Both get the same noise, x_t = a·x + b·y + sigma·eps and x*_t = a·x* + b·y + sigma·eps, so a student that
    reaches x* has none of the bias that comparing with eps itself has. At small t, a denoiser passes on
    what is fine, hence "high-frequency enhanced". Gradients go through the frozen teacher.

    Args:
        teacher: the frozen model.
        levels: times; by default the cleanest third of the way to the start.
        distance: of the two estimates.
        weight: of the term.

    Reference: He et al. 2024 (TAD-SR), section 3.3.
    """

    teacher: FlowMap
    levels: Levels = field(default_factory=lambda: BelowStart(1 / 3))
    distance: Distance = field(default_factory=SquaredError)
    weight: float = 1.0
    name: str = "perturbed-score"

    def frozen(self) -> Mapping[str, nn.Module]:
        """The teacher."""
        return teacher_networks(self.teacher)

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,)."""
        teacher, target = teacher_at(self.teacher, batch, moment), target_of(made)
        t, noise = self.levels(teacher.path, made, generator), normal_like(target, generator)
        with torch.no_grad():
            wanted = teacher.x0(teacher.path.corrupt(target, t, noise, batch.y), t)
        seen = teacher.x0(teacher.path.corrupt(made.x, t, noise, batch.y), t)
        return self.weight * self.distance(seen, wanted)


def target_of(made: Made) -> Tensor:
    """The teacher's result.

    Raises:
        TypeError: there is none, because the generation was not `WithTeacher`.
    """
    if not isinstance(made, Taught):
        raise TypeError(f"this term needs samples made WithTeacher, got {type(made).__name__}")
    return made.target
