"""Grids that jump to a noise level first and spend all their steps after it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fewstep.core.grids.base import Times, check_request
from fewstep.core.paths import Path


@dataclass(frozen=True)
class Below:
    """The start of the path, then the times of another grid on what lies below a noise level.

    Args:
        half_log_snr: log(a/sigma) at which the inner grid begins; rounded down to an integer time on a table.
        inner: function of (path, steps), such as `grids.logsnr`.

    Raises:
        ValueError: (when called) if half_log_snr does not lie between the ends of the path.

    Example:
        >>> from fewstep.core import grids, paths
        >>> [round(t, 3) for t in Below(0.0, grids.logsnr)(paths.EDM(), 4)]
        [80.0, 1.0, 0.126, 0.016, 0.002, 0.0]
    """

    half_log_snr: float
    inner: Callable[[Path, int], Times]

    def __call__(self, path: Path, steps: int, /) -> Times:
        """Return steps + 2 times: the inner grid's after t_max."""
        check_request(steps, "clean")
        first = path.time_at(self.half_log_snr)
        if path.is_discrete:
            first = float(int(first))
        if not path.t_min < first < path.t_max:
            raise ValueError(
                f"half_log_snr must lie between {path.half_log_snr(path.t_max):g} and "
                f"{path.half_log_snr(path.t_min):g} on {type(path).__name__}, got {self.half_log_snr!r}"
            )
        return (path.t_max, *self.inner(_Shortened(path, first), steps))


@dataclass(frozen=True)
class _Shortened(Path):
    """A path that begins later: what a grid asks of it."""

    whole: Path
    t_max: float  # type: ignore[misc]

    @property
    def t_min(self) -> float:  # type: ignore[override]
        return self.whole.t_min

    @property
    def t_clean(self) -> float:  # type: ignore[override]
        return self.whole.t_clean

    @property
    def is_discrete(self) -> bool:  # type: ignore[override]
        return self.whole.is_discrete

    def evaluate(self, t: torch.Tensor):
        return self.whole.evaluate(t)

    def _time_at_ratio(self, ratio: torch.Tensor) -> torch.Tensor:
        return self.whole._time_at_ratio(ratio)
