"""A teacher that changes during the run: back along the way from the student's start to the true teacher."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.objectives.times import LogNormal, TimeSampler
from fewstep.core.objectives.weights import Weighting, weighting
from fewstep.core.training import Moment
from fewstep.core.training.phases import MakeOptimizer


@dataclass(frozen=True, eq=False)
class TeacherPath:
    """Teachers that take over one after the other.

    Args:
        stages: (teacher, share of the run at which it takes over), in order; the first at 0, the last is the
            true teacher.

    Raises:
        ValueError: the shares do not begin at 0 and increase.

    Reference: Zhang et al. 2024, "Distribution Backtracking Builds a Faster Convergence Trajectory for
        Diffusion Distillation", section 4.2.
    """

    stages: tuple[tuple[FlowMap, float], ...]

    def __post_init__(self) -> None:
        starts = [start for _, start in self.stages]
        if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
            raise ValueError(f"stages must start at increasing shares of the run from 0 on, got {starts}")

    @classmethod
    def spread_over(cls, teachers: Iterable[FlowMap], until: float) -> "TeacherPath":
        """Teachers that take turns of equal length, the last from the share `until` to the end."""
        flows = tuple(teachers)
        last = max(len(flows) - 1, 1)
        return cls(tuple((flow, until * i / last) for i, flow in enumerate(flows)))

    def at(self, moment: Moment) -> FlowMap:
        """Whose turn it is."""
        return [flow for flow, start in self.stages if start <= moment.progress][-1]


Teacher = FlowMap | TeacherPath


def teacher_at(teacher: Teacher, batch: SampleBatch, moment: Moment) -> FlowMap:
    """The teacher of this moment with the batch's conditions."""
    flow = teacher.at(moment) if isinstance(teacher, TeacherPath) else teacher
    conditions = dict(batch.conditions)
    return flow.given(**conditions, y=batch.y) if flow.path.uses_y else flow.given(**conditions)


def teacher_networks(teacher: Teacher) -> dict[str, nn.Module]:
    """The networks by name: the true one is "teacher", those before it "teacher-0" and so on."""
    flows = [flow for flow, _ in teacher.stages] if isinstance(teacher, TeacherPath) else [teacher]
    *before, last = [flow.net for flow in flows]
    named = {f"teacher-{i}": net for i, net in enumerate(before)} | {"teacher": last}
    return {name: net for name, net in named.items() if isinstance(net, nn.Module)}


def record_degradation(
    teacher: FlowMap,
    make: Callable[[torch.Generator], tuple[Tensor, SampleBatch]],
    updates: int,
    stages: int,
    generator: torch.Generator,
    *,
    times: TimeSampler | None = None,
    weight: str | Weighting = "karras",
    optimizer: MakeOptimizer | None = None,
) -> list[nn.Module]:
    """Turn a copy of the teacher into a denoiser of the student's first samples and keep it on the way there.

    Args:
        teacher: see `ScoreMatching`; its network is copied.
        make: gives a batch of samples of the untrained student, and the batch they belong to.
        updates: of the copy.
        stages: copies that are kept, evenly over the updates.
        generator: of times and noise, and for `make`.
        times: noise levels.
        weight: of the error of x0.
        optimizer: of the copy (None: Adam with a rate of 1e-3).

    Returns:
        The copies, the most degraded (nearest to the student) first; the teacher itself is not among them.

    Raises:
        TypeError: the teacher's network is not a module.
        ValueError: there are fewer updates than stages, or no stage.

    Reference: Zhang et al. 2024 (DisBack), section 4.1, "degradation recording".
    """
    if not isinstance(teacher.net, nn.Module):
        raise TypeError(f"teacher.net must be a torch.nn.Module, not {type(teacher.net).__name__}")
    if not 1 <= stages <= updates:
        raise ValueError(f"stages must lie in [1, updates={updates}], got {stages}")
    net = copy.deepcopy(teacher.net).requires_grad_(True)
    mover = torch.optim.Adam(net.parameters(), lr=1e-3) if optimizer is None else optimizer(net.parameters())
    times, path, kept = times or LogNormal(), teacher.path, []
    for update in range(1, updates + 1):
        with torch.no_grad():
            x, batch = make(generator)
        t = times(path, len(x), generator, x.device)
        x_t = path.corrupt(x, t, normal_like(x, generator), batch.y)
        error = batch.flow_map(net, path, teacher.prediction).x0(x_t, t) - x
        scale = weighting(weight)(path, t).to(x.dtype)
        loss = (scale * error.square().flatten(1).mean(1)).mean()
        mover.zero_grad(set_to_none=True)
        loss.backward()
        mover.step()
        if update * stages // updates > len(kept):
            kept.append(copy.deepcopy(net).requires_grad_(False))
    return kept[::-1]
