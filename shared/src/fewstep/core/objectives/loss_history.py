"""LossHistory: times are drawn where the losses have been large."""

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor, nn

from fewstep.core.clock import clock_at, time_of_clock
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.objectives.times import clock_ends
from fewstep.core.paths import Path


class LossHistory(nn.Module):
    """Importance sampling: p_i ∝ sqrt(mean of the last squared losses), loss times 1/(bins·p_i).

    A bin is a time of a table, or one of equal stretches of the normalised clock; the expectation of the
    weighted loss is that of times uniform over the bins. Until every bin has a full history all are alike.
    The history is saved with the run; several processes share what they saw.

    Args:
        path: of the states.
        bins: number of stretches of a continuous path; a table has a bin for each of its times.
        length: losses that are remembered in every bin.
        floor: share of the draws that are uniform.

    Raises:
        ValueError: bins or length is below 1, or floor is not in [0, 1].

    Reference: Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", section 3.3.
    """

    losses: Tensor
    count: Tensor

    def __init__(self, path: Path, bins: int = 100, length: int = 10, floor: float = 0.001) -> None:
        if min(bins, length) < 1:
            raise ValueError(f"bins and length must be at least 1, got {bins} and {length}")
        if not 0 <= floor <= 1:
            raise ValueError(f"floor must lie in [0, 1], got {floor}")
        super().__init__()
        self.bins = round(path.t_max) + 1 if path.is_discrete else bins
        self.length, self.floor = length, floor
        self.register_buffer("losses", torch.zeros(self.bins, length, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(self.bins, dtype=torch.long))

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Float64[Tensor, "count"]:
        """Draw times; see `TimeSampler`."""
        shares = self.shares().to(device)
        chosen = torch.multinomial(shares, count, replacement=True, generator=generator)
        if path.is_discrete:
            return chosen.double()
        low, high = clock_ends(path)
        place = (chosen + uniform(count, generator, device)) / self.bins
        return time_of_clock(path, low + (high - low) * place).clamp(path.t_min, path.t_max)

    def shares(self) -> Float64[Tensor, "bins"]:
        """The probability of every bin."""
        even = torch.full_like(self.losses[:, 0], 1 / self.bins)
        size = self.losses.square().mean(1).sqrt()
        shares = (1 - self.floor) * size / size.sum().clamp_min(1e-300) + self.floor * even
        known = (self.count >= self.length).all() & (size.sum() > 0)
        return torch.where(known, shares, even)

    def importance(self, path: Path, t: Shaped[Tensor, "batch"]) -> Float64[Tensor, "batch"]:
        """1/(bins·p) of every time, by which its loss is to be multiplied."""
        return 1 / (self.bins * self.shares()[self._bin(path, t)])

    @torch.no_grad()
    def record(self, path: Path, t: Shaped[Tensor, "batch"], losses: Float[Tensor, "batch"]) -> None:
        """Remember the losses that were found at these times; of too many in one bin, the last ones."""
        where, losses = _from_all(self._bin(path, t)), _from_all(losses.double())
        order = where.argsort(stable=True)
        where, losses = where[order], losses[order]
        here = torch.bincount(where, minlength=self.bins)
        first = here.cumsum(0) - here
        rank = torch.arange(len(where), device=where.device) - first[where]
        newest = rank >= here[where] - self.length
        slot = (self.count[where] + rank) % self.length
        self.losses[where[newest], slot[newest]] = losses[newest]
        self.count += here

    def _bin(self, path: Path, t: Tensor) -> Tensor:
        if path.is_discrete:
            return t.round().long()
        low, high = clock_ends(path)
        place = (clock_at(path, t) - low) / (high - low)
        return (place * self.bins).long().clamp(0, self.bins - 1)


def _from_all(values: Tensor) -> Tensor:
    """The values of every process, in the order of the processes."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return values
    parts = [torch.empty_like(values) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts)
