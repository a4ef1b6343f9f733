"""Several students for one teacher: which conditions each of them serves, and how a smaller one begins."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.objectives.times import LogNormal, TimeSampler
from fewstep.core.objectives.weights import Weighting, weighting
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.training import Moment, Objective, Phase, SinglePhase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import Losses, Networks, PhaseLoss


@dataclass(frozen=True)
class ConditionFilter:
    """The samples whose condition has one of some values.

    Args:
        values: that are kept.
        name: of the condition, one whole number per sample.

    Raises:
        ValueError: there are no values.

    Example:
        >>> ConditionFilter((1, 2)).keeps(torch.tensor([0, 1, 2, 3]))
        tensor([False,  True,  True, False])
    """

    values: tuple[int, ...]
    name: str = "label"

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("values must hold at least one value, got none")

    def keeps(self, condition: Tensor) -> Tensor:
        """Whether each of them is kept."""
        return torch.isin(condition, torch.tensor(self.values, device=condition.device))

    def filtered(self, batch: Any) -> dict[str, Any]:
        """A batch of the same size with kept samples alone, each repeated as often as it takes.

        It waits for the device once, to be sure that something is kept.

        Raises:
            TypeError: the batch is no mapping.
            ValueError: it lacks the condition, or none of its samples is kept.
        """
        if not isinstance(batch, dict):
            raise TypeError(f"a filter needs a batch with the condition {self.name!r}, not {type(batch)}")
        if self.name not in batch:
            raise ValueError(f"batch must hold the condition {self.name!r}; it holds {', '.join(batch)}")
        (kept,) = self.keeps(batch[self.name]).nonzero(as_tuple=True)
        if not len(kept):
            raise ValueError(f"no sample of this batch has {self.name} in {self.values}; enlarge the batch")
        count = len(batch[self.name])
        chosen = kept[torch.arange(count, device=kept.device) % len(kept)]
        return {name: _picked(value, chosen, count) for name, value in batch.items()}


def partition(values: Iterable[int], students: int, name: str = "label") -> tuple[ConditionFilter, ...]:
    """Filters for so many students that share out the values, neighbours together and evenly.

    Raises:
        ValueError: there are more students than values, or none.

    Example:
        >>> [part.values for part in partition(range(5), 2)]
        [(0, 1, 2), (3, 4)]
    """
    every = sorted(set(values))
    if not 1 <= students <= len(every):
        raise ValueError(f"students must lie in [1, {len(every)}], one value each at least; got {students}")
    size, more = divmod(len(every), students)
    ends = [i * size + min(i, more) for i in range(students + 1)]
    return tuple(ConditionFilter(tuple(every[a:b]), name) for a, b in pairwise(ends))


class Filtered(Objective):
    """Any objective on the samples that a filter keeps.

    Args:
        inner: the objective of one student.
        kept: its conditions.

    Reference: Song et al. 2024, "Multi-student Diffusion Distillation for Better One-step Generators",
        section 4.1.
    """

    def __init__(self, inner: Objective, kept: ConditionFilter) -> None:
        self.inner, self.kept = inner, kept

    def phases(self) -> tuple[Phase, ...]:
        """Those of the objective, with filtered batches."""
        return tuple(replace(phase, loss=self._filtered(phase.loss)) for phase in self.inner.phases())

    def modules(self) -> dict[str, nn.Module]:
        """Those of the objective."""
        return self.inner.modules()

    def frozen(self) -> tuple[nn.Module, ...]:
        """Those of the objective."""
        return self.inner.frozen()

    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:
        """What the objective does."""
        self.inner.after_update(phase, networks, moment)

    def _filtered(self, loss: PhaseLoss) -> PhaseLoss:
        def of_kept(networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment) -> Losses:
            return loss(networks, self.kept.filtered(batch), generator, moment)

        return of_kept


class Students(nn.Module):
    """Several networks as one: each sample is answered by the student that serves its condition.

    Args:
        networks: of the students, which take x, t and the condition by its name.
        filters: their conditions, which must not overlap.

    Raises:
        ValueError: there are not as many filters as networks, or two serve the same value.
    """

    def __init__(self, networks: Sequence[nn.Module], filters: Sequence[ConditionFilter]) -> None:
        super().__init__()
        values = [value for part in filters for value in part.values]
        if len(networks) != len(filters) or len({part.name for part in filters}) != 1:
            raise ValueError(f"{len(networks)} networks need as many filters of one condition: {filters}")
        if len(set(values)) != len(values):
            raise ValueError(f"filters must not overlap, got {[part.values for part in filters]}")
        self.networks, self.filters = nn.ModuleList(networks), tuple(filters)

    def forward(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """The raw value of each sample's student.

        Raises:
            ValueError: the condition of a sample is served by none.
        """
        told, out = conditions[self.filters[0].name], None
        served = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for net, part in zip(self.networks, self.filters, strict=True):
            mine = part.keeps(told)
            if not bool(mine.any()):
                continue
            served |= mine
            own = {name: _picked(value, mine, len(x)) for name, value in conditions.items()}
            answer = net(x[mine], t[mine], **own)
            out = answer.new_empty(len(x), *answer.shape[1:]) if out is None else out
            out = out.index_put((mine,), answer)
        if out is None or not bool(served.all()):
            raise ValueError(
                f"{self.filters[0].name} {told[~served].unique().tolist()} is served by no student"
            )
        return out


class TeacherScoreMatching(SinglePhase):
    """w(t)·dist(D_student(x_t), D_phi(x_t)) on noised data: any network learns the teacher's score.

    A smaller student cannot begin with the teacher's weights. This gives it a start from which distribution
    matching converges; the minimiser is the teacher itself, not the data, so the target has no noise.

    Args:
        path: of both.
        prediction: of the student.
        teacher: the frozen model.
        times: noise levels.
        weight: of the error of x0 by time, a name of `WEIGHTS` or a function.
        distance: of the two estimates.

    Raises:
        ValueError: there is no such weight.

    Reference: Song et al. 2024 (MSD), section 4.3.
    """

    def __init__(
        self,
        path: Path,
        prediction: str | Prediction,
        teacher: FlowMap,
        *,
        times: TimeSampler | None = None,
        weight: str | Weighting = "karras",
        distance: Distance | None = None,
    ) -> None:
        self.path, self.prediction, self.teacher = path, prediction, teacher
        self.times, self.weight = times or LogNormal(), weighting(weight)
        self.distance = distance or SquaredError()

    def frozen(self) -> tuple[nn.Module, ...]:
        """The teacher."""
        return (self.teacher.net,) if isinstance(self.teacher.net, nn.Module) else ()

    def loss(self, student: nn.Module, batch: Batch, generator: torch.Generator, moment: Moment) -> Losses:
        """The mean over the batch."""
        read = SampleBatch.read(batch)
        flow = read.flow_map(student, self.path, self.prediction)
        t = self.times(self.path, len(read.x0), generator, read.x0.device)
        x = self.path.corrupt(read.x0, t, normal_like(read.x0, generator), read.y)
        with torch.no_grad():
            wanted = self.teacher.given(**flow.conditions).x0(x, t)
        errors = self.distance(flow.x0(x, t), wanted)
        return (self.weight(self.path, t).to(errors.dtype) * errors).mean()


def _picked(value: Any, chosen: Tensor, count: int) -> Any:
    """The chosen entries of what has one per sample."""
    has_each = isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
    return value[chosen] if has_each else value
