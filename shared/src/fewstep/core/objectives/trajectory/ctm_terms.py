"""What CTM learns besides its jumps: denoising, and weights that keep its terms in balance."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.grids.base import SNR_FLOOR
from fewstep.core.objectives.distances import Distance, SquaredError
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like, uniform
from fewstep.core.objectives.times import LogNormal, TimeSampler
from fewstep.core.objectives.trajectory.consistency import masked
from fewstep.core.objectives.weights import Weighting, weighting
from fewstep.core.paths import Path


@dataclass(frozen=True)
class HalfLogNormal:
    """One half of the samples log-normal, the other even on a Karras grid from the noisy end.

    First half: ln(sigma/a) ~ N(mean, std²). Second: kappa^(1/rho) uniform between that of t_max and the
    point `reach` of the way to that of t_min.

    Args:
        mean: P_mean.
        std: P_std.
        reach: share of the grid that the second half covers.
        rho: of the grid.

    Raises:
        ValueError: reach is not in (0, 1].

    Reference: Kim et al. 2024, "Consistency Trajectory Models", appendix C; the split is that of the
        authors' code.
    """

    mean: float = -1.2
    std: float = 1.2
    reach: float = 0.7
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0 < self.reach <= 1:
            raise ValueError(f"reach must lie in (0, 1], got {self.reach!r}")

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        first = LogNormal(self.mean, self.std)(path, count // 2, generator, device)
        top, low = (
            math.exp(-max(path.half_log_snr(t), SNR_FLOOR) / self.rho) for t in (path.t_max, path.t_min)
        )
        share = self.reach * uniform(count - count // 2, generator, device)
        second = path.time_at(-self.rho * (top + share * (low - top)).log()).clamp(path.t_min, path.t_max)
        return torch.cat([first, second.round() if path.is_discrete else second])


@dataclass(frozen=True)
class DenoisingTerm:
    """w(t)·dist(D(x_t, t, t), x0): a jump of no length is the denoiser.

    Args:
        times: of t.
        weight: a name of `WEIGHTS` or a function (path, t) → (batch,).
        distance: between estimate and data.

    Raises:
        ValueError: weight is unknown.

    Reference: Kim et al. 2024, equation 12.
    """

    times: TimeSampler = field(default_factory=HalfLogNormal)
    weight: str | Weighting = "karras"
    distance: Distance = field(default_factory=SquaredError)

    def __post_init__(self) -> None:
        weighting(self.weight)

    def __call__(
        self, student: FlowMap, batch: SampleBatch, generator: torch.Generator
    ) -> Float[Tensor, "batch"]:
        """The loss, one number per sample; its noise is its own."""
        path, x0 = student.path, batch.x0
        t = self.times(path, len(x0), generator, x0.device)
        return self.between(student, batch, normal_like(x0, generator), t)

    def between(
        self, student: FlowMap, batch: SampleBatch, noise: Tensor, t: Tensor
    ) -> Float[Tensor, "batch"]:
        """The loss at given times and noise."""
        x = student.path.corrupt(batch.x0, t, noise, batch.y)
        error = masked(self.distance, student.x0(x, t), batch.x0, batch.mask)
        return weighting(self.weight)(student.path, t).to(error.dtype) * error


@dataclass(frozen=True)
class Balance:
    """The weight with which a term moves the last layer as another does: ‖∇main‖/(‖∇term‖ + 1e-4), clipped.

    Args:
        low: smallest weight.
        high: largest weight.

    Raises:
        ValueError: not 0 ≤ low ≤ high.

    Reference: Esser, Rombach and Ommer 2021, "Taming Transformers", equation 7; Kim et al. 2024, section 3.3.
    """

    low: float = 0.0
    high: float = 1e4

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low and high must satisfy 0 <= low <= high, got {self.low} and {self.high}")

    def __call__(self, main: Tensor, term: Tensor, net: nn.Module) -> Tensor:
        """The weight of `term`, without gradient; 1 where nothing is differentiated."""
        layer = last_layer(net)
        if layer is None or not (main.requires_grad and term.requires_grad):
            return torch.ones_like(main)
        norms = [
            torch.autograd.grad(loss, layer, retain_graph=True, allow_unused=True)[0] for loss in (main, term)
        ]
        ours, theirs = (main.new_zeros(()) if norm is None else norm.norm() for norm in norms)
        return (ours / (theirs + 1e-4)).clamp(self.low, self.high).to(main.dtype)


def last_layer(net: nn.Module) -> nn.Parameter | None:
    """The last trained weight of a network that is no bias or scale."""
    weights = [p for p in net.parameters() if p.ndim >= 2 and p.requires_grad]
    return weights[-1] if weights else None
