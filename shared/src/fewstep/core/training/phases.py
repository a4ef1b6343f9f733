"""What a run trains: one loss of one network, or an alternation of several losses of several networks."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fewstep.core.training.batches import Batch

Losses = Tensor | Mapping[str, Tensor]
Networks = Mapping[str, nn.Module]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
STUDENT = "student"


class Moment(NamedTuple):
    """Where a run stands, for losses that follow a curriculum.

    Args:
        step: updates that this phase has had before.
        progress: share of the run that is done, 0 to 1.
    """

    step: int = 0
    progress: float = 0.0


PhaseLoss = Callable[[Networks, Batch, torch.Generator, Moment], Losses]


@dataclass(frozen=True)
class Phase:
    """One kind of update in an alternation.

    Args:
        name: of its loss in the log; unique.
        loss: loss(networks, batch, generator, moment) gives the loss, or a mapping with "loss" and other
            scalars to log. It calls the networks that it is given, by name; noise is drawn with the
            generator.
        trains: names of the networks whose weights move; all others stay as they are.
        updates: how often in a row, in every round.
        optimizer: makes one from the parameters (None: AdamW with the settings of the run).

    Raises:
        ValueError: nothing is trained, or updates is below 1.
    """

    name: str
    loss: PhaseLoss
    trains: tuple[str, ...] = (STUDENT,)
    updates: int = 1
    optimizer: MakeOptimizer | None = None

    def __post_init__(self) -> None:
        if not self.trains:
            raise ValueError(f"phase {self.name!r} trains no network")
        if self.updates < 1:
            raise ValueError(f"updates of phase {self.name!r} must be at least 1, got {self.updates}")


class Objective(ABC):
    """Turns networks and a batch into losses, in one phase or several that take turns.

    The network that a Trainer is given is "student"; the objective brings the others.

    `partial` says that a loss may leave weights of what its phase trains without a gradient, which several
    processes have to know. Alternations count as partial without it.
    """

    partial: bool = False

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """The phases of a round, in their order."""

    def modules(self) -> dict[str, nn.Module]:
        """Networks besides the student that change during the run, by name; checkpoints hold them."""
        return {}

    def frozen(self) -> tuple[nn.Module, ...]:
        """Networks that never change, such as the teacher; moved to the device, not saved."""
        return ()

    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:  # noqa: B027
        """Called after every update of a phase, with its moment; for averages and schedules."""


class SinglePhase(Objective):
    """An objective with one loss of the student."""

    @abstractmethod
    def loss(self, student: nn.Module, batch: Batch, generator: torch.Generator, moment: Moment) -> Losses:
        """The loss of a batch, or a mapping with "loss" and other scalars."""

    def phases(self) -> tuple[Phase, ...]:
        """One phase, "train"."""
        return (Phase("train", self._loss),)

    def _loss(self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment) -> Losses:
        return self.loss(networks[STUDENT], batch, generator, moment)


class FunctionObjective(SinglePhase):
    """A function loss(network, batch, generator) as an objective."""

    def __init__(self, function: Callable[[nn.Module, Batch, torch.Generator], Losses]) -> None:
        self.function = function

    def loss(self, student: nn.Module, batch: Batch, generator: torch.Generator, moment: Moment) -> Losses:
        """What the function gives."""
        return self.function(student, batch, generator)


class Turns:
    """The endless sequence of phases: which one update number n belongs to.

    Args:
        phases: of a round.

    Raises:
        ValueError: there are none, or two have the same name.

    Example:
        >>> fake, student = Phase("fake", print, updates=2), Phase("student", print)
        >>> turns = Turns((fake, student))
        >>> [(turns.at(n)[0].name, turns.at(n)[1]) for n in range(5)]
        [('fake', 0), ('fake', 1), ('student', 0), ('fake', 2), ('fake', 3)]
    """

    def __init__(self, phases: tuple[Phase, ...]) -> None:
        names = [phase.name for phase in phases]
        if not phases or len(set(names)) != len(names):
            raise ValueError(f"an objective needs phases with different names, got {names}")
        self.phases = phases
        self._round = [(phase, k) for phase in phases for k in range(phase.updates)]

    def __len__(self) -> int:
        """Updates of a round."""
        return len(self._round)

    def at(self, update: int) -> tuple[Phase, int]:
        """The phase of an update and how many updates that phase has had before."""
        rounds, place = divmod(update, len(self._round))
        phase, before = self._round[place]
        return phase, rounds * phase.updates + before


class PhaseModule(nn.Module):
    """The networks that a phase trains as one module, whose forward pass is the loss.

    Whatever part of a network a loss calls, gradients then meet between processes.
    """

    def __init__(self, phase: Phase, networks: Networks) -> None:
        super().__init__()
        missing = [name for name in phase.trains if name not in networks]
        if missing:
            known = ", ".join(networks)
            raise ValueError(f"phase {phase.name!r} trains {missing[0]!r}, which is none of {known}")
        self.trained = nn.ModuleDict({name: networks[name] for name in phase.trains})
        self._loss, self._networks = phase.loss, dict(networks)

    def forward(self, batch: Batch, generator: torch.Generator, moment: Moment) -> dict[str, Tensor]:
        """The named losses."""
        return _named_losses(self._loss(self._networks, batch, generator, moment))


@dataclass(frozen=True)
class Turn:
    """What a phase needs in a run: its module (as the processes share it), what moves, and what moves it."""

    phase: Phase
    module: nn.Module
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer

    def moves(self, wanted: bool) -> None:
        """Whether the phase's parameters get gradients."""
        for parameter in self.parameters:
            parameter.requires_grad_(wanted)


def _named_losses(losses: Losses) -> dict[str, Tensor]:
    named = {"loss": losses} if isinstance(losses, Tensor) else dict(losses)
    if "loss" not in named:
        raise ValueError(f'a loss must be a tensor or a mapping with "loss", got {", ".join(named)}')
    if named["loss"].numel() != 1:
        raise ValueError(f"a loss must be one number, got a tensor of shape {tuple(named['loss'].shape)}")
    return named
