"""A pseudo-Huber distance to the pseudo-target, element by element."""

from dataclasses import dataclass

from torch import Tensor

from fewstep.core.objectives.score.families import Estimates, Family


@dataclass(frozen=True)
class HuberTarget(Family):
    """mean over the elements of sqrt(d² + c²) − c over w, d = x − sg[x − (D_psi − D_phi)].

    w = mean |x − D_phi| of every sample, without gradient; the public code's loss. (The paper's, one square
    root for the whole sample and no w, has the gradient of `PseudoTarget("tdm-huber")`.)

    Args:
        c: below this size an error counts squared.

    Raises:
        ValueError: c is not positive.

    Reference: Luo et al. 2025 (TDM), published code.
    """

    c: float = 1e-3
    through = False

    def __post_init__(self) -> None:
        if not self.c > 0:
            raise ValueError(f"c must be positive, got {self.c!r}")

    def __call__(self, estimates: Estimates) -> Tensor:
        """The loss, whose gradient is all that matters."""
        x = estimates.x
        away = x - (x - (estimates.fake - estimates.real)).detach()
        losses = ((away.square() + self.c**2).sqrt() - self.c).flatten(1).mean(1)
        return losses * estimates.weight("dmd").flatten()
