"""Autoguidance: a denoiser pushed away from what a worse version of itself says."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.guidance.base import Beside, Interval, estimate_elsewhere, interval_of, weight_at
from fewstep.core.wrapping import BaseDenoiser, Time


class Autoguided(Beside):
    """Guidance by a smaller or less trained model of the same data and conditions.

    x0 = x0_bad + scale·(x0 - x0_bad).

    The bad model may have another prediction and another path: it is asked about the same sample at the same
    sigma/a, and the two are combined in x0. These are two networks, so each has a call of its own; outside of
    the interval (and with scale 1) only the good one is asked.

    Args:
        inner: the good denoiser.
        bad: the worse one, with conditions of its own bound; `given` reaches it for names it has bound.
        scale: guidance weight, published values 1.4 to 2.4.
        interval: smallest and largest sigma/a at which to guide; default: everywhere.

    Attributes:
        nfe: network evaluations of both inside the interval; `nfe_at(t)` tells them at a time.

    Raises:
        ValueError: when the interval is empty, or there is one and `inner` has no path.

    Reference: Karras et al. 2024, "Guiding a Diffusion Model with a Bad Version of Itself", equation 4.

    >>> Autoguided(lambda x, t: x, lambda x, t: 0.5 * x, scale=2.0)(torch.ones(1, 1), 0.5)
    tensor([[1.5000]])
    """

    other: BaseDenoiser

    def __init__(
        self,
        inner: BaseDenoiser | Callable[..., Tensor],
        bad: BaseDenoiser | Callable[..., Tensor],
        scale: float = 2.0,
        *,
        interval: Interval | tuple[float, float] | None = None,
    ) -> None:
        super().__init__(inner, bad)
        self.scale = float(scale)
        self.interval = interval_of(interval)
        if self.interval is not None and self.path is None:
            raise ValueError("an interval in sigma/a needs a denoiser that knows its path")
        self.nfe = self.inner.nfe + (0 if self.scale == 1.0 else self.other.nfe)

    def nfe_at(self, t: Time) -> int:
        """Network evaluations of a sample for a call at t."""
        return self.inner.nfe if self._is_plain(t) else self.nfe

    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """Guided x0."""
        good = self.inner(x, t)
        if self._is_plain(t):
            return good
        bad = estimate_elsewhere(self.other, x, t, self.path, self.inner.y)
        return torch.lerp(bad, good, weight_at(self.scale, self.interval, self.path, t, x))

    def _is_plain(self, t: Time) -> bool:
        if self.scale == 1.0:
            return True
        return self.interval is not None and self.interval.contains(self.path, t) is False
