"""Terms that count only for students' calls within a band of noise levels."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.base import Made, Term
from fewstep.core.paths import Path
from fewstep.core.training import Moment
from fewstep.core.training.phases import Networks


@dataclass(frozen=True)
class Band:
    """The noise levels low ≤ sigma/a < high.

    Args:
        low: smallest sigma/a.
        high: sigma/a from which the next band begins.

    Raises:
        ValueError: the band is empty or negative.
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high:
            raise ValueError(f"a band must have 0 <= low < high, got {self.low} and {self.high}")

    def contains(self, path: Path, t: Tensor) -> Tensor:
        """Whether each time lies in the band, (batch,)."""
        a, _, sigma = path.evaluate(t)
        # Compared without dividing: a may be 0, at pure noise, which only a band without upper end holds.
        below = torch.ones_like(a, dtype=torch.bool) if self.high == math.inf else sigma < self.high * a
        return (sigma >= self.low * a) & below


def bands(levels: Sequence[float]) -> tuple[Band, ...]:
    """The bands between 0, the levels in increasing order, and infinity: every noise level is in one of them.

    Example:
        >>> [(band.low, band.high) for band in bands([0.5, 2.0])]
        [(0.0, 0.5), (0.5, 2.0), (2.0, inf)]
    """
    return tuple(Band(low, high) for low, high in pairwise([0.0, *levels, math.inf]))


@dataclass(frozen=True, eq=False)
class Within(Term):
    """A term for the samples whose call began within a band; nothing for the others.

    The mean is still over the whole batch, so a term's share follows how many calls the band has.

    Args:
        band: of the calls' noise levels.
        path: on which they are.
        term: any other.

    Reference: Flash-DMD 2025: matching of distributions for the calls at high noise, which settle what is
        seen, an adversarial loss for those at low noise, which settle how sharply.
    """

    band: Band
    path: Path
    term: Term

    @property
    def name(self) -> str:  # type: ignore[override]
        """That of the term."""
        return self.term.name

    def frozen(self) -> Mapping[str, nn.Module]:
        """The term's networks."""
        return self.term.frozen()

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,)."""
        losses = self.term(networks, made, batch, generator, moment)
        return torch.where(self.band.contains(self.path, made.start), losses, torch.zeros_like(losses))


@dataclass(frozen=True, eq=False)
class Adversarial(Term):
    """weight times the student's loss of an adversarial head, as a term that can be confined to a band.

    The head itself learns in a `Judge` with student_weight=0.

    Args:
        head: see AdversarialHead.
        weight: of the term.
    """

    head: AdversarialHead
    weight: float = 3e-3
    name: str = "adversarial"

    def frozen(self) -> dict[str, nn.Module]:
        """The networks of the head's features that never change."""
        return {f"{self.name}-{i}": net for i, net in enumerate(self.head.frozen())}

    def __call__(
        self, networks: Networks, made: Made, batch: SampleBatch, generator: torch.Generator, moment: Moment
    ) -> Tensor:
        """One number per sample, (batch,)."""
        return self.weight * self.head.student_loss(networks, made.x, batch, generator, moment)
