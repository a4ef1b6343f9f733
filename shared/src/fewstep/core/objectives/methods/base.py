"""Method: a paper as a choice of objectives, networks and settings."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.paths import Path
from fewstep.core.sampling import Sampling
from fewstep.core.training import Objective

Needs = Literal["teacher", "data", "pairs"]


@dataclass(frozen=True)
class Material:
    """What a method has to work with.

    Args:
        path: of student and teacher.
        prediction: of the student.
        student: the network that will be trained, already with the teacher's weights.
        teacher: the frozen model; None when there is none.
        shape: of one sample.
        updates: of the student in the whole run, for curricula that count them.
        null_label: the label that means "none"; None: the model has no classes.
        options: further settings of the method, from its recipe.
        sampling: how the student will be sampled, for methods that train it as it is used (None: as the
            method says).
    """

    path: Path
    prediction: str
    student: nn.Module
    teacher: FlowMap | None
    shape: tuple[int, ...]
    updates: int = 10_000
    null_label: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling | None = field(default=None, kw_only=True)

    def taught(self) -> FlowMap:
        """The teacher.

        Raises:
            ValueError: there is none.
        """
        if self.teacher is None:
            raise ValueError("this method needs a teacher: a trained model")
        return self.teacher

    def copy_of_teacher(self) -> nn.Module:
        """A trainable copy of the teacher's network, for a fake score."""
        net = self.taught().net
        if not isinstance(net, nn.Module):
            raise ValueError("this method copies the teacher's network, which must be a torch.nn.Module")
        return copy.deepcopy(net).requires_grad_(True)


@dataclass(frozen=True)
class Method:
    """A paper's configuration.

    Args:
        paper: authors and year.
        summary: one line for lists.
        make: make(material, **options) gives the objective; its keyword arguments, all with defaults, are
            the options of the method.
        needs: what it cannot do without.
        sampling: how its students are sampled.
        two_times: the student's network takes a second time.
        prediction: of the student (None: the teacher's).
        settings: of the run where the method's differ from the usual, by name of the recipe's fields
            (learning_rate, updates, batch_size, ema …).
    """

    paper: str
    summary: str
    make: Callable[..., Objective]
    needs: tuple[Needs, ...]
    sampling: Sampling
    two_times: bool = False
    prediction: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
