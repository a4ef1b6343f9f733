"""The two families of score losses: integral divergences, and Fisher divergences."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fewstep.core.clock import spread
from fewstep.core.objectives.score.normalisers import Normaliser, normaliser
from fewstep.core.paths import Path


@dataclass(frozen=True)
class Estimates:
    """What two denoisers say about the student's samples.

    Args:
        path: of the noise.
        t: times (batch,).
        x: the samples (batch, ...), with their graph.
        real: D_phi(x_t), the teacher's estimate.
        fake: D_psi(x_t), that of the fake score.
        importance: h(r) of every sample (batch,), without gradient; None: 1.
    """

    path: Path
    t: Tensor
    x: Tensor
    real: Tensor
    fake: Tensor
    importance: Tensor | None = None

    def weight(self, chosen: str | Normaliser) -> Tensor:
        """Normaliser times importance, shaped to multiply x."""
        factor = normaliser(chosen)(
            self.path, self.t, self.x.detach(), self.real.detach(), self.fake.detach()
        )
        return spread(factor if self.importance is None else factor * self.importance, self.x)


class Family(ABC):
    """A loss of samples by what two denoisers say about them.

    Attributes:
        through: gradients pass through the denoisers.
    """

    through: bool

    @abstractmethod
    def __call__(self, estimates: Estimates) -> Tensor:
        """One number per sample, (batch,)."""


@dataclass(frozen=True)
class PseudoTarget(Family):
    """½·mean (x − sg[x − g])², g = w·h·(D_psi − D_phi): the gradient by x is g/elements.

    g points along sigma²/a·(s_p − s_q); the value is ½·mean g² and says nothing about progress.

    Args:
        normaliser: w, a name of `NORMALISERS` or a Normaliser.

    Reference: Yin et al. 2024 (DMD), eq. 7 and 8.
    """

    normaliser: str | Normaliser = "dmd"
    through = False

    def __post_init__(self) -> None:
        normaliser(self.normaliser)

    def __call__(self, estimates: Estimates) -> Tensor:
        """The loss, whose gradient is all that matters."""
        x = estimates.x
        g = (estimates.weight(self.normaliser) * (estimates.fake - estimates.real)).detach()
        return (x - (x - g).detach()).square().flatten(1).mean(1) / 2


@dataclass(frozen=True)
class InnerProduct(Family):
    """sum of x·sg[w·h·(D_psi − D_phi)]: the gradient by x is w·h·(D_psi − D_phi).

    Args:
        normaliser: w, a name of `NORMALISERS` or a Normaliser.

    Reference: Luo et al. 2023, "Diff-Instruct", eq. 3.2.
    """

    normaliser: str | Normaliser = "none"
    through = False

    def __post_init__(self) -> None:
        normaliser(self.normaliser)

    def __call__(self, estimates: Estimates) -> Tensor:
        """The loss, whose gradient is all that matters."""
        g = estimates.weight(self.normaliser) * (estimates.fake - estimates.real)
        return (g.detach() * estimates.x).flatten(1).sum(1)


@dataclass(frozen=True)
class Fisher(Family):
    """scale·sum w·h·(D_phi − D_psi)·[(D_phi − x) − alpha·(D_phi − D_psi)], w and h without gradient.

    alpha = 1/2 has the gradient of the Fisher divergence E_p‖s_p − s_q‖² itself; alpha = 1 (SIM,
    Uni-Instruct) that with the distribution of x_t held fixed, which is exact with forward-KL weights; SiD's
    experiments favour 1.2. With `huber`, the score difference y = a/sigma²·(D_psi − D_phi) is shortened to
    y/sqrt(‖y‖² + c²), SIM's pseudo-Huber distance.

    Args:
        alpha: see above.
        normaliser: w, a name of `NORMALISERS` or a Normaliser.
        huber: c; None: y as it is.
        scale: factor on the sum over a sample's elements (100 in SiD).

    Reference: Zhou et al. 2024 (SiD), eq. 23; Luo et al. 2024, "One-Step Diffusion Distillation through Score
        Implicit Matching", eq. 3.5; Wang et al. 2025 (Uni-Instruct).
    """

    alpha: float = 1.2
    normaliser: str | Normaliser = "dmd"
    huber: float | None = None
    scale: float = 1.0
    through = True

    def __post_init__(self) -> None:
        normaliser(self.normaliser)
        if self.huber is not None and not self.huber > 0:
            raise ValueError(f"huber must be None or positive, got {self.huber!r}")

    def __call__(self, estimates: Estimates) -> Tensor:
        """The loss."""
        difference = estimates.real - estimates.fake
        lever = (estimates.real - estimates.x) - self.alpha * difference
        weight = estimates.weight(self.normaliser)
        if self.huber is not None:
            a, _, sigma = estimates.path.evaluate(estimates.t)
            c = (self.huber * sigma * sigma / a).to(difference.dtype)
            length = (difference.square().flatten(1).sum(1) + c * c).sqrt()
            difference = difference / spread(length, difference)
        return self.scale * (weight * difference * lever).flatten(1).sum(1)
