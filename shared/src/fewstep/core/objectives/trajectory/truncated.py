"""Truncated consistency: a second stage that leaves the small times to the first."""

import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from fewstep.core.clock import spread
from fewstep.core.grids.base import SNR_FLOOR
from fewstep.core.objectives.distances import Distance, PseudoHuber
from fewstep.core.objectives.same_rng import same_rng
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.objectives.trajectory.base import JumpRule, Situation
from fewstep.core.objectives.trajectory.consistency import (
    PairWeighting,
    end_estimate,
    masked,
    pair_weighting,
)
from fewstep.core.objectives.trajectory.easy_consistency import ShrinkingPairs
from fewstep.core.paths import Path


@dataclass(frozen=True)
class TruncatedLogT:
    """ln(sigma/a) = mean + scale·T, T of Student's t distribution, from ln low to the path's noisy end.

    With few degrees of freedom the density falls like 1/|ln(sigma/a) − mean|: most draws lie near `low`, but
    no noise level is left out.

    Args:
        low: smallest sigma/a.
        mean: of ln(sigma/a).
        scale: of the distribution.
        freedom: degrees of freedom.

    Raises:
        ValueError: low, scale or freedom is not positive.

    Reference: Lee, Xu, Geffner et al. 2025, "Truncated Consistency Models", section 5; the values are those
        of a published configuration for CIFAR-10.
    """

    low: float = 1.0
    mean: float = 0.0
    scale: float = 0.2
    freedom: float = 0.01

    def __post_init__(self) -> None:
        if not min(self.low, self.scale, self.freedom) > 0:
            raise ValueError(f"low, scale and freedom must be positive, got {self}")

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        knots, mass = _cumulative(self, path)
        knots, mass = knots.to(device), mass.to(device)
        place = uniform(count, generator, device)
        right = torch.searchsorted(mass, place, right=True).clamp(1, len(mass) - 1)
        share = (place - mass[right - 1]) / (mass[right] - mass[right - 1])
        t = path.time_at(-torch.lerp(knots[right - 1], knots[right], share)).clamp(path.t_min, path.t_max)
        return t.round() if path.is_discrete else t


@lru_cache(maxsize=64)
def _cumulative(times: TruncatedLogT, path: Path) -> tuple[Tensor, Tensor]:
    """(ln(sigma/a), the share below it) on a fine grid that is densest around the mean."""
    top = -max(path.half_log_snr(path.t_max), SNR_FLOOR)
    ends = ((math.log(times.low) - times.mean) / times.scale, (top - times.mean) / times.scale)
    if not ends[0] < ends[1]:
        raise ValueError(
            f"low must lie below the path's largest sigma/a {math.exp(top):g}, got {times.low:g}"
        )
    # The density is about 1/|x| from sqrt(freedom) on, hence even steps of asinh(x/sqrt(freedom)).
    width = math.sqrt(times.freedom)
    with torch.inference_mode(False):
        low, high = (math.asinh(end / width) for end in ends)
        x = width * torch.linspace(low, high, 4097, dtype=torch.float64).sinh()
        density = (1 + x.square() / times.freedom) ** (-(times.freedom + 1) / 2)
        mass = torch.cat([x.new_zeros(1), torch.cumulative_trapezoid(density, x)])
        return times.mean + times.scale * x, mass / mass[-1]


@dataclass(frozen=True)
class TruncatedConsistency(JumpRule):
    """Consistency for sigma/a ≥ t' only; below, the frozen first stage f0 (the situation's teacher) answers.

    loss = mean w·dist(f(x_t, t), sg f̂(x_r, r)) + boundary·mean w·dist(f(x_t', t'), f0(x_r, r)),

    f̂ being f where r ≥ t' and f0 below. The network spends all it has on the noisy part, which one- and
    two-step samples need. The first `share` of a batch are the pairs at t', so that both means have samples
    in every batch of at least two.

    Args:
        start: t' as a value of sigma/a.
        share: of a batch at the boundary.
        boundary: weight of its mean.
        times: of the others.
        pairs: how r follows from t.
        distance: between the estimates.
        weight: as for `Consistency`.

    Raises:
        ValueError: share is not in (0, 1), or times reach below start.

    Reference: Lee, Xu, Geffner et al. 2025, "Truncated Consistency Models", equations 8 to 11.
    """

    start: float = 1.0
    share: float = 0.25
    boundary: float = 0.1
    times: TruncatedLogT = field(default_factory=TruncatedLogT)
    pairs: ShrinkingPairs = field(default_factory=ShrinkingPairs)
    distance: Distance = field(default_factory=PseudoHuber)
    weight: str | PairWeighting = "gap"

    def __post_init__(self) -> None:
        pair_weighting(self.weight)
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie in (0, 1), got {self.share!r}")
        if self.times.low < self.start:
            raise ValueError(f"times.low must be at least start={self.start:g}, got {self.times.low:g}")

    def __call__(self, situation: Situation) -> dict[str, Tensor]:
        batch, path, generator = situation.batch, situation.path, situation.generator
        count, device = len(batch.x0), batch.x0.device
        if count < 2:
            raise ValueError("a batch of a truncated consistency model must hold at least 2 samples, got 1")
        border = min(max(round(self.share * count), 1), count - 1)
        noise = batch.noise_or(generator)
        first = path.time_at(-math.log(self.start))
        first = float(round(first)) if path.is_discrete else first
        t = torch.cat(
            [
                torch.full((border,), first, dtype=torch.float64, device=device),
                self.times(path, count - border, generator, device),
            ]
        )
        r = self.pairs.partner(path, t, self.pairs.stage(situation.moment))
        loss = self.between(situation, noise, t, r, first)
        parts = {"boundary": loss[:border].mean(), "consistency": loss[border:].mean()}
        return {"loss": parts["consistency"] + self.boundary * parts["boundary"], **parts}

    def between(self, situation: Situation, noise: Tensor, t: Tensor, r: Tensor, first: float) -> Tensor:
        """w·dist at given times and noise, one number per sample; `first` is the time of t'."""
        path, batch = situation.path, situation.batch
        x = path.corrupt(batch.x0, t, noise, batch.y)
        again = same_rng(x.device)
        made = situation.student.x0(x, t)
        with torch.no_grad():
            x_r = path.corrupt(batch.x0, r, noise, batch.y)
            with again:
                own = situation.target.x0(x_r, r.clamp_min(first))
            frozen = end_estimate(situation.taught(), x_r, r)
            wanted = torch.where(spread(r >= first, x) > 0, own, frozen)
        error = masked(self.distance, made, wanted, batch.mask)
        return pair_weighting(self.weight)(path, t, r).to(error.dtype) * error
