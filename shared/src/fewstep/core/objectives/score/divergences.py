"""f-divergences between the teacher's and the student's distributions, as weights of score differences.

With q the data, p the student, r = q/p, both noised to a time t, and s their scores, for every f

    d/dtheta E_p[f(r)] = E_p[ h(r)·(s_p − s_q)·dx_t/dtheta ],   h(r) = r²·f''(r),

so that a divergence is one function h; the same h weighs Fisher divergences, of which D_f is the integral
along the path. A new divergence is one more row of `DIVERGENCES`.

Reference: Xu et al. 2025, "One-step Diffusion Models with f-Divergence Distribution Matching", theorem 1;
    Wang et al. 2025, "Uni-Instruct", theorem 3.1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Divergence:
    """D_f(q‖p) = E_p[f(q/p)].

    Args:
        f: convex, f(1) = 0; of r.
        second: its second derivative f''(r).
        h: r²·f''(r) as a function of log r, so that no large ratio overflows on the way.

    Example:
        >>> DIVERGENCES["js"].h(torch.tensor(0.0))
        tensor(0.5000)
    """

    f: Function
    second: Function
    h: Function


DIVERGENCES: dict[str, Divergence] = {
    "reverse-kl": Divergence(
        f=lambda r: -r.log(),
        second=lambda r: r**-2,
        h=torch.ones_like,
    ),
    "forward-kl": Divergence(
        f=lambda r: r * r.log(),
        second=lambda r: 1 / r,
        h=torch.exp,
    ),
    "js": Divergence(
        f=lambda r: r * r.log() - (r + 1) * ((r + 1) / 2).log(),
        second=lambda r: 1 / (r * (1 + r)),
        h=torch.sigmoid,
    ),
    "softened-reverse-kl": Divergence(
        f=lambda r: (r + 1) * ((r + 1) / (2 * r)).log(),
        second=lambda r: 1 / (r**2 * (1 + r)),
        h=lambda log_ratio: torch.sigmoid(-log_ratio),
    ),
    "squared-hellinger": Divergence(
        f=lambda r: 1 - r.sqrt(),
        second=lambda r: r**-1.5 / 4,
        h=lambda log_ratio: (log_ratio / 2).exp() / 4,
    ),
    "jeffreys": Divergence(
        f=lambda r: (r - 1) * r.log(),
        second=lambda r: 1 / r + r**-2,
        h=lambda log_ratio: 1 + log_ratio.exp(),
    ),
    "neyman": Divergence(
        f=lambda r: (1 - r).square() / r,
        second=lambda r: 2 * r**-3,
        h=lambda log_ratio: 2 * (-log_ratio).exp(),
    ),
    "chi2": Divergence(
        f=lambda r: (r - 1).square(),
        second=lambda r: torch.full_like(r, 2),
        h=lambda log_ratio: 2 * (2 * log_ratio).exp(),
    ),
}
"""Name → divergence. "reverse-kl" seeks modes and needs no ratio; "js" and "softened-reverse-kl" have bounded
weights; "forward-kl" covers all modes at the price of variance, "chi2" of extreme variance."""


def divergence(name: str) -> Divergence:
    """The divergence of that name.

    Raises:
        ValueError: unknown name.
    """
    if name not in DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(DIVERGENCES)}, got {name!r}")
    return DIVERGENCES[name]


@dataclass(frozen=True)
class RatioWeight:
    """h(r) of an estimated ratio, made robust.

    r = exp(clip(log r, ±clip)), clamped to [lowest, highest]; divided by its mean over the samples of the
    batch whose clock lies in the same of `bins` equal parts; then h(r), divided by its mean over the batch.
    The two means couple the samples of a batch (of a process' batch), as in the paper.

    Args:
        divergence: a name of `DIVERGENCES`.
        clip: largest |log r|.
        lowest: smallest ratio.
        highest: largest ratio.
        bins: parts of the clock sigma/(a + sigma) (0: the ratios stay as they are).
        normaliser: what h is divided by: "mean" over the batch, or "none".

    Raises:
        ValueError: an option is out of range.

    Reference: Xu et al. 2025, section 4.3 (two-stage normalisation).
    """

    divergence: str = "js"
    clip: float = 10.0
    lowest: float = 0.1
    highest: float = 20.0
    bins: int = 10
    normaliser: str = "mean"

    def __post_init__(self) -> None:
        divergence(self.divergence)
        if not 0 <= self.lowest < self.highest:
            raise ValueError(f"lowest must lie in [0, highest), got {self.lowest} and {self.highest}")
        if self.clip <= 0 or self.bins < 0:
            raise ValueError(f"clip must be positive and bins at least 0, got {self.clip} and {self.bins}")
        if self.normaliser not in ("mean", "none"):
            raise ValueError(f"normaliser must be 'mean' or 'none', got {self.normaliser!r}")

    def __call__(self, log_ratio: Tensor, tau: Tensor) -> Tensor:
        """The weight of every sample.

        Args:
            log_ratio: log q/p of each noised sample (batch,).
            tau: the clock of each, in [0, 1].
        """
        log_ratio = log_ratio.detach().clamp(-self.clip, self.clip)
        low = math.log(self.lowest) if self.lowest else -math.inf
        log_ratio = log_ratio.clamp(low, math.log(self.highest))
        if self.bins:
            log_ratio = log_ratio - self._bin_means(log_ratio.exp(), tau).log()
        h = DIVERGENCES[self.divergence].h(log_ratio)
        return h / h.mean() if self.normaliser == "mean" else h

    def _bin_means(self, ratio: Tensor, tau: Tensor) -> Tensor:
        """The mean ratio of the bin of each sample."""
        place = (tau * self.bins).long().clamp(0, self.bins - 1)
        members = torch.nn.functional.one_hot(place, self.bins).to(ratio.dtype)
        means = (members.T @ ratio) / members.sum(0).clamp_min(1)
        return members @ means
