"""What the distillation of a ResShift model asks the core for: its start, and features for a judge."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.time_aware import Taught, WithTeacher
from fewstep.core.training import Moment

from .nets.edsr import ConditionalEDSR


@dataclass(frozen=True, eq=False)
class FromStart(WithTeacher):
    """One call of the student from the state that ResShift starts in, and the teacher's way from it.

    x_T = y + κ √η_T ε, the published start, in which y counts in full; the path's own x_T has η_T y there.
    """

    def __call__(
        self, student: FlowMap, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Taught:
        """Samples of one call, and the teacher's where they are asked for."""
        noise = batch.noise_or(generator)
        state = student.path.start(noise, batch.y)
        t = torch.full((len(noise),), student.path.t_max, dtype=torch.float64, device=noise.device)
        teacher = self.teacher.given(**batch.conditions, y=batch.y)
        return Taught(student.x0(state, t), t, state, noise, lambda: self.solve(teacher, state))


class TrunkFeatures(nn.Module):
    """What the residual blocks of a ConditionalEDSR give, every so many of them: what a judge looks at.

    Args:
        net: the network; it is not copied.
        every: after how many blocks each.
    """

    def __init__(self, net: ConditionalEDSR, every: int) -> None:
        super().__init__()
        self.net = net
        self.places = tuple(range(len(net.body)))[every - 1 :: every] or (len(net.body) - 1,)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each map."""
        return (self.net.width,) * len(self.places)

    def forward(
        self, x: Float[Tensor, "batch channels H W"], t: Tensor, lq: Float[Tensor, "batch channels h w"]
    ) -> list[Tensor]:
        """The maps, (batch, width, h, w) each."""
        maps: list[Tensor] = []

        def keep(block: nn.Module, given: Any, out: Any) -> None:
            maps.append(out)

        hooks = [self.net.body[place].register_forward_hook(keep) for place in self.places]
        try:
            self.net(x, t, lq)
        finally:
            for hook in hooks:
                hook.remove()
        return maps
