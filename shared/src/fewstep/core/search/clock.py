"""Clock: where a time lies between pure noise and the clean end, as a number that a search can vary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fewstep.core.grids import SNR_FLOOR
from fewstep.core.paths import Path

GAP = 1e-3
"""Smallest distance of two positions that a search makes."""


@dataclass(frozen=True)
class Clock:
    """u = (lam(t) − lam(t_max))/(lam(t_min) − lam(t_max)), lam = log(a/sigma), between 0 and 1.

    Where a(t_max) = 0 the scale begins at the half log-SNR `grids.SNR_FLOOR`.

    Example:
        >>> from fewstep.core import paths
        >>> clock = Clock(paths.EDM())
        >>> [round(u, 3) for u in clock.positions([80.0, 0.4, 0.002])]
        [0.0, 0.5, 1.0]
    """

    path: Path

    @property
    def _ends(self) -> tuple[float, float]:
        first = self.path.half_log_snr(self.path.t_max)
        return max(first, SNR_FLOOR) if self.path.coefficients(self.path.t_max)[0] <= 0 else first, (
            self.path.half_log_snr(self.path.t_min)
        )

    def positions(self, times: Sequence[float]) -> list[float]:
        """The positions of times; those outside of the scale go to its ends."""
        low, high = self._ends
        return [min(max((self.path.half_log_snr(t) - low) / (high - low), 0.0), 1.0) for t in times]

    def times(self, positions: Sequence[float]) -> list[float]:
        """Strictly decreasing times, none of them an end of the path, at these positions in any order.

        On a discrete path they are integers.
        """
        spread = apart(positions, GAP)
        low, high = self._ends
        lam = torch.tensor([low + u * (high - low) for u in spread], dtype=torch.float64)
        times = self.path.time_at(lam).tolist()
        return _integers(self.path, times) if self.path.is_discrete else times


def apart(positions: Sequence[float], gap: float) -> list[float]:
    """Sorted positions in (0, 1], at least `gap` from 0 and from each other."""
    ordered = sorted(positions)
    gap = min(gap, 0.5 / max(len(ordered), 1))
    found: list[float] = []
    for i, u in enumerate(ordered):
        room = 1.0 - gap * (len(ordered) - 1 - i)
        found.append(min(max(u, (found[-1] if found else 0.0) + gap), room))
    return found


def _integers(path: Path, times: list[float]) -> list[float]:
    """The nearest integers that are distinct and lie between the ends of the table."""
    found: list[float] = []
    for i, t in enumerate(times):
        highest = (found[-1] if found else path.t_max) - 1
        lowest = path.t_clean + len(times) - i
        if highest < lowest:
            raise ValueError(f"this path has too few times for {len(times)} of them between its ends")
        found.append(float(min(max(round(t), lowest), highest)))
    return found
