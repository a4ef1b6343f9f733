"""What a judge and a student make of the judge's logits, by name."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Side = Callable[[Float[Tensor, "*shape"]], Float[Tensor, "*shape"]]


@dataclass(frozen=True)
class LogitLoss:
    """The three sides of an adversarial loss, each element by element of the logits.

    Args:
        real: what the judge pays for its logits of data.
        made: what the judge pays for its logits of samples.
        student: what the student pays for the judge's logits of its samples.
        calibrated: the best judge's logit is log(q/p), q the density of data and p that of samples.
    """

    real: Side
    made: Side
    student: Side
    calibrated: bool


LOSSES: dict[str, LogitLoss] = {
    "softplus": LogitLoss(
        real=lambda logits: F.softplus(-logits),
        made=F.softplus,
        student=lambda logits: F.softplus(-logits),
        calibrated=True,
    ),
    "hinge": LogitLoss(
        real=lambda logits: F.relu(1 - logits),
        made=lambda logits: F.relu(1 + logits),
        student=lambda logits: -logits,
        calibrated=False,
    ),
    "lsgan": LogitLoss(
        real=lambda logits: (logits - 1).square() / 2,
        made=lambda logits: logits.square() / 2,
        student=lambda logits: (logits - 1).square() / 2,
        calibrated=False,
    ),
}
"""Non-saturating logistic loss, hinge loss, least squares (data 1, samples 0).

Reference: Goodfellow et al. 2014, section 3; Lim and Ye 2017, "Geometric GAN"; Mao et al. 2017, "Least
    Squares Generative Adversarial Networks", eq. 2 and 9.
"""


def logit_loss(name: str | LogitLoss) -> LogitLoss:
    """The loss of that name (a LogitLoss is returned as it is).

    Raises:
        ValueError: unknown name.
    """
    if isinstance(name, LogitLoss):
        return name
    if name not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {name!r}")
    return LOSSES[name]
