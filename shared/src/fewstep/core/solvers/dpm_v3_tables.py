"""The integrals of DPM-Solver-v3 over one step."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fewstep.core.solvers.exponential import lagrange_weights, phi
from fewstep.core.statistics import ModelStatistics

_WIDEST = 0.1  # intervals of lam on which the corrected trapezoidal rule errs by less than 1e-6
_TOO_NEAR = 1e-6  # points of the statistics so near to a grid point would make intervals of rounding errors


class Update(NamedTuple):
    """ybar_t = keep·ybar_s + sum_j weights[j]·f_j + constant; floats, or tensors shaped like one sample."""

    keep: float | Tensor
    weights: Sequence[float | Tensor]
    constant: float | Tensor


class Tables(ABC):
    """What the solver needs to know about its grid of half log-SNRs.

    Attributes:
        half_log_snr: those of the grid, possibly moved onto the grid of the statistics.
    """

    half_log_snr: Sequence[float]

    @abstractmethod
    def slope(self, i: int) -> float | Tensor:
        """l at grid point i."""

    @abstractmethod
    def update(self, s: int, t: int, others: Sequence[int], pseudo: bool) -> Update:
        """The step from grid point s to t with f at s and at the other grid points.

        `pseudo` takes divided differences for the derivatives of the interpolating polynomial at s.
        """


class DegenerateTables(Tables):
    """l = 1, s = b = 0, with the integrals in closed form: f = −D, exponential Adams in data form."""

    def __init__(self, half_log_snr: Sequence[float]) -> None:
        self.half_log_snr = half_log_snr

    def slope(self, i: int) -> float:
        return 1.0

    def update(self, s: int, t: int, others: Sequence[int], pseudo: bool) -> Update:
        start = self.half_log_snr[s]
        h = self.half_log_snr[t] - start
        nodes = [(self.half_log_snr[j] - start) / h for j in (s, *others)]
        if pseudo:
            moments = [math.factorial(k) * phi(k + 1, -h) for k in range(len(nodes))]
            weights = (_differences(nodes).T @ torch.tensor(moments, dtype=torch.float64)).tolist()
        else:
            weights = lagrange_weights(nodes, -h)
        return Update(math.exp(-h), [-h * w for w in weights], 0.0)


class StatisticsTables(Tables):
    """Statistics given on a grid of their own.

    With L = int l, S = int s, B = int e^(−S)·b and everything measured from the start s of the step,

        ybar_t = e^(−L_t)·(ybar_s − sum_k E_k·g^(k) − int e^(L + S)·B),
        E_k = int e^(L + S)·(lam − lam_s)^k/k!,   g_j = e^(−S_j)·f_j − B_j,

    g^(k) the derivatives at s of the polynomial through the g_j.

    "official": the times move to the nearest points of the statistics, and integrals are trapezoidal sums.
    "exact": the grid stays, l, s and b are linear between their points and constant beyond them, and the
    trapezoidal rule has its end correction, which makes its error of fourth order.

    Reference: Zheng et al. 2023 (DPM-Solver-v3), sections 3.2 and 3.3, appendix C.1.
    """

    def __init__(self, statistics: ModelStatistics, half_log_snr: Sequence[float], variant: str) -> None:
        self._corrected = variant == "exact"
        known = statistics.half_log_snr.to(statistics.l.device)
        values = [v.double() for v in (statistics.l, statistics.s, statistics.b)]
        if self._corrected:
            wanted = torch.tensor(half_log_snr, dtype=torch.float64, device=known.device)
            between = _between(known, wanted)
            apart = (between[:, None] - wanted).abs().amin(1) > _TOO_NEAR
            lam = torch.cat([between[apart], wanted]).sort().values
            values = [_interpolated(known, v, lam) for v in values]
            self._at = torch.searchsorted(lam, wanted).tolist()
            self.half_log_snr = list(half_log_snr)
        else:
            lam = known
            self._at = [_nearest(statistics, value) for value in half_log_snr]
            self.half_log_snr = [
                known[i].item() if abs(known[i].item() - value) > 1e-9 else value
                for i, value in zip(self._at, half_log_snr, strict=True)
            ]
            if any(b <= a for a, b in itertools.pairwise(self._at)):
                raise ValueError(
                    f"statistics with {statistics.intervals} intervals are too coarse for this grid: two of "
                    "its times fall on one point; use fewer steps, finer statistics or variant 'exact'"
                )
        self._lam = lam.reshape(-1, *[1] * (values[0].ndim - 1))
        self._l, self._s, self._b = values

    def slope(self, i: int) -> Tensor:
        return self._l[self._at[i]]

    def update(self, s: int, t: int, others: Sequence[int], pseudo: bool) -> Update:
        lowest = min(self._at[j] for j in (s, t, *others))
        part = slice(lowest, self._at[t] + 1)
        here = self._at[s] - lowest
        lam, l, slope, b = (v[part] for v in (self._lam, self._l, self._s, self._b))  # noqa: E741
        u = lam - lam[here]
        big_l, big_s = self._from(here, u, l), self._from(here, u, slope)
        decayed = torch.exp(-big_s)
        offset = self._from(here, u, decayed * b, (_rates(u, b), decayed, -slope * decayed * b))

        grown = torch.exp(big_l + big_s)[here:]
        ahead, rate = u[here:], (l + slope)[here:]
        moments, before = [], torch.zeros_like(grown)
        for k in range(len(others) + 1):
            value = grown * ahead**k
            moments.append(self._over(ahead, value, rate * value + k * before))
            before = value
        known = grown * offset[here:]
        drift = self._over(ahead, known, rate * known + torch.exp(big_l[here:]) * b[here:])

        nodes = [self._at[j] - lowest for j in (s, *others)]
        places = [u[j].flatten()[0].item() for j in nodes]
        matrix = _differences(places) if pseudo else torch.linalg.inv(_powers(places))
        matrix = matrix.to(u.device)
        sums = torch.einsum("kj,k...->j...", matrix, torch.stack(moments))
        shrink = torch.exp(-big_l[-1])
        constant = shrink * (sum(w * offset[j] for w, j in zip(sums, nodes, strict=True)) - drift)
        return Update(shrink, [-shrink * w * decayed[j] for w, j in zip(sums, nodes, strict=True)], constant)

    def _from(
        self, here: int, u: Tensor, value: Tensor, rates: tuple[Tensor, Tensor, Tensor] | None = None
    ) -> Tensor:
        """The integral from u[here] to every point; `rates` (r, d, e): value' = r·d + e, r per interval."""
        width = u[1:] - u[:-1]
        pieces = 0.5 * width * (value[1:] + value[:-1])
        if self._corrected and rates is not None:
            slope, factor, rest = rates
            fall = slope * (factor[:-1] - factor[1:]) + rest[:-1] - rest[1:]
            pieces = pieces + width.square() / 12 * fall
        total = torch.cat([torch.zeros_like(pieces[:1]), pieces.cumsum(0)])
        return total - total[here]

    def _over(self, u: Tensor, value: Tensor, rate: Tensor) -> Tensor:
        """The integral over the whole range."""
        width = u[1:] - u[:-1]
        pieces = 0.5 * width * (value[1:] + value[:-1])
        if self._corrected:
            pieces = pieces + width.square() / 12 * (rate[:-1] - rate[1:])
        return pieces.sum(0)


def _nearest(statistics: ModelStatistics, half_log_snr: float) -> int:
    share = (half_log_snr - statistics.first) / (statistics.last - statistics.first)
    if not -1e-6 <= share <= 1 + 1e-6:
        raise ValueError(
            f"grid visits the half log-SNR {half_log_snr:g}, the statistics cover {statistics.first:g} to "
            f"{statistics.last:g}; use variant 'exact', which extends them"
        )
    return round(statistics.intervals * share)


def _between(known: Tensor, wanted: Tensor) -> Tensor:
    """The points of the statistics inside the wanted range, continued to its ends and refined to _WIDEST."""
    step = (known[-1] - known[0]) / (len(known) - 1)
    step = (step / (step / _WIDEST).ceil()).item()
    low = math.floor((wanted[0].item() - known[0].item()) / step)
    high = math.ceil((wanted[-1].item() - known[0].item()) / step)
    places = torch.arange(low + 1, high, dtype=torch.float64, device=known.device)
    return known[0] + step * places


def _interpolated(known: Tensor, values: Tensor, wanted: Tensor) -> Tensor:
    """Linear between the known points, constant beyond them."""
    step = (known[-1] - known[0]) / (len(known) - 1)
    place = ((wanted - known[0]) / step).clamp(0, len(known) - 1)
    left = place.floor().clamp(max=len(known) - 2).long()
    share = (place - left).reshape(-1, *[1] * (values.ndim - 1))
    return values[left] + share * (values[left + 1] - values[left])


def _rates(u: Tensor, value: Tensor) -> Tensor:
    """Slope of a piecewise linear function on every interval."""
    return (value[1:] - value[:-1]) / (u[1:] - u[:-1])


def _powers(nodes: Sequence[float]) -> Tensor:
    place = torch.tensor(nodes, dtype=torch.float64)
    return torch.stack([place**k for k in range(len(nodes))], dim=1)


def _differences(nodes: Sequence[float]) -> Tensor:
    """Row k holds the weights of the divided difference over the first k + 1 nodes."""
    rows = torch.zeros(len(nodes), len(nodes), dtype=torch.float64)
    for k in range(len(nodes)):
        for j in range(k + 1):
            rows[k, j] = 1.0 / math.prod(nodes[j] - nodes[m] for m in range(k + 1) if m != j)
    return rows
