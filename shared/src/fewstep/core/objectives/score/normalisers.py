"""What the difference of two denoisers is divided by: one positive number per sample, without gradient."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from fewstep.core.paths import Path


class Normaliser(ABC):
    """A factor on D_psi − D_phi."""

    @abstractmethod
    def __call__(self, path: Path, t: Tensor, x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        """The factor of every sample.

        Args:
            path: of the noise.
            t: times (batch,).
            x: the student's samples (batch, ...).
            real: the teacher's estimate of them, with its guidance.
            fake: the fake score's estimate.

        Returns:
            (batch,), in x's dtype.
        """


@dataclass(frozen=True)
class Unscaled(Normaliser):
    """1.

    Reference: Luo et al. 2023, "Diff-Instruct".
    """

    def __call__(self, path: Path, t: Tensor, x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        """Ones."""
        return x.new_ones(len(x))


@dataclass(frozen=True)
class TeacherError(Normaliser):
    """1/max(mean |x − D_phi|, floor), the mean over all elements of a sample (plus `offset`).

    Implementations differ: SiD has a floor, FastGen an offset of 1e-6, DMD2 neither.

    Args:
        floor: smallest divisor.
        offset: added to the divisor.

    Reference: Yin et al. 2024 (DMD), eq. 8; Zhou et al. 2024 (SiD), section 4.
    """

    floor: float = 1e-5
    offset: float = 0.0

    def __call__(self, path: Path, t: Tensor, x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        """The inverse error of the teacher."""
        error = (x - real).detach().abs().flatten(1).mean(1)
        return 1 / (error + self.offset).clamp_min(self.floor)


@dataclass(frozen=True)
class Variational(Normaliser):
    """w·a/sigma with w = sigma²/(a² + sigma²): the gradient is w·(eps_phi − eps_psi).

    On a variance-preserving path w = sigma² = 1 − alpha_bar.

    Reference: Poole et al. 2023, "DreamFusion", section 3; Wang et al. 2023, "ProlificDreamer".
    """

    def __call__(self, path: Path, t: Tensor, x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        """The weight by time."""
        a, _, sigma = path.evaluate(t)
        return (a * sigma / (a * a + sigma * sigma)).to(x.dtype)


@dataclass(frozen=True)
class SnrPower(Normaliser):
    """(a/sigma)^(2·power): with 1/2 the gradient is eps_phi − eps_psi, the difference of the noises.

    Args:
        power: of the signal-to-noise ratio a²/sigma².
    """

    power: float = 0.5

    def __call__(self, path: Path, t: Tensor, x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        """The power of the ratio."""
        a, _, sigma = path.evaluate(t)
        return ((a / sigma) ** (2 * self.power)).to(x.dtype)


@dataclass(frozen=True)
class PseudoHuberLength(Normaliser):
    """1/sqrt(‖D_psi − D_phi‖² + c²): the gradient is that of a pseudo-Huber distance to the pseudo-target.

    Args:
        c: None: 0.00054·sqrt(elements), the paper's; the public code has 1e-3.

    Reference: Luo et al. 2025, "Learning Few-Step Diffusion Models by Trajectory Distribution Matching".
    """

    c: float | None = None

    def __call__(self, path: Path, t: Tensor, x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
        """The inverse length."""
        squares = (fake - real).detach().square().flatten(1)
        c = 0.00054 * math.sqrt(squares.shape[1]) if self.c is None else self.c
        return (squares.sum(1) + c * c).rsqrt()


NORMALISERS: dict[str, Normaliser] = {
    "none": Unscaled(),
    "dmd": TeacherError(),
    "vsd": Variational(),
    "eps": SnrPower(0.5),
    "snr": SnrPower(1.0),
    "tdm-huber": PseudoHuberLength(),
}


def normaliser(name: str | Normaliser) -> Normaliser:
    """The normaliser of that name (a normaliser is returned as it is).

    Raises:
        ValueError: unknown name.
    """
    if isinstance(name, Normaliser):
        return name
    if name not in NORMALISERS:
        raise ValueError(f"normaliser must be one of {', '.join(NORMALISERS)}, got {name!r}")
    return NORMALISERS[name]
