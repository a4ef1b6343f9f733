"""The statistics that DPM-Solver-v3 needs, and their file."""

import json
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fewstep.core import paths
from fewstep.core.files import atomic_path
from fewstep.core.grids.base import SNR_FLOOR, snr_range
from fewstep.core.paths import Path

_KEY = "fewstep.statistics"


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """The coefficients l, s, b of DPM-Solver-v3 on n + 1 equally spaced half log-SNRs.

    With ybar = z/a, lam = log(a/sigma) and D the denoised sample, f = (1 − l)·ybar − D is the part of the
    probability-flow ODE that the solver does not treat exactly; its rate f' along a trajectory is predicted
    as s·f + b. A grid point holds one number for all pixels, or one for each.

    Compares and hashes by identity: two estimates are never equal by accident.

    Attributes:
        first: half log-SNR of the first grid point (most noise).
        last: half log-SNR of the last one.
        l: mean diagonal of sigma·d(eps)/dz, equal to 1 − mean diagonal of dD/d(ybar).
        s: slope of f' on f.
        b: offset of f'.
        path: the path on which they were estimated; None if unknown.

    Raises:
        ValueError: if the range is empty, shapes differ, or a value is not finite.

    Reference: Zheng et al. 2023 (DPM-Solver-v3), equations 7, 10 and 11.

    Example:
        >>> statistics = ModelStatistics.degenerate(paths.EDM(), intervals=120)
        >>> statistics.intervals, statistics.is_linear
        (120, True)
    """

    first: float
    last: float
    l: Float[Tensor, "points *pixels"]  # noqa: E741 — the paper's letter
    s: Float[Tensor, "points *pixels"]
    b: Float[Tensor, "points *pixels"]
    path: Path | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.first) and math.isfinite(self.last) and self.first < self.last):
            raise ValueError(f"first must lie below last, both finite; they are {self.first} and {self.last}")
        if not self.l.shape == self.s.shape == self.b.shape or self.l.ndim == 0 or self.l.shape[0] < 2:
            shapes = ", ".join(str(tuple(v.shape)) for v in (self.l, self.s, self.b))
            raise ValueError(
                f"l, s and b must have one shape (points, …) with 2 or more points, got {shapes}"
            )
        for name, value in (("l", self.l), ("s", self.s), ("b", self.b)):
            if not value.is_floating_point() or not bool(value.isfinite().all()):
                raise ValueError(f"{name} must hold finite floating-point numbers")

    @staticmethod
    def degenerate(path: Path, intervals: int = 120, floor: float = SNR_FLOOR) -> "ModelStatistics":
        """l = 1, s = b = 0: what is right if D is constant; the solver is exponential Adams in D then."""
        first, last = snr_range(path, floor)
        one = torch.ones(intervals + 1, dtype=torch.float64)
        return ModelStatistics(first, last, one, 0 * one, 0 * one, path)

    @property
    def intervals(self) -> int:
        """Number n of intervals of the grid."""
        return self.l.shape[0] - 1

    @property
    def half_log_snr(self) -> Float[Tensor, " points"]:
        """The grid, increasing."""
        return torch.linspace(self.first, self.last, self.intervals + 1, dtype=torch.float64)

    @property
    def is_linear(self) -> bool:
        """One number for all pixels and no offset: a step is a linear combination, so there is a plan."""
        return self.l.ndim == 1 and not bool(self.b.any())

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write a safetensors file: tensors l, s, b, and range and path as JSON metadata."""
        facts: dict[str, Any] = {"first": self.first, "last": self.last}
        if self.path is not None:
            facts["path"] = self.path.to_config()
        tensors = {"l": self.l, "s": self.s, "b": self.b}
        with atomic_path(file) as target:
            plain = {name: value.cpu().contiguous() for name, value in tensors.items()}
            save_file(plain, target, {_KEY: json.dumps(facts)})

    @staticmethod
    def load(file: str | os.PathLike[str]) -> "ModelStatistics":
        """Read what `save` wrote.

        Raises:
            ValueError: if the file holds something else.
        """
        try:
            with safe_open(file, "pt") as stored:
                text = (stored.metadata() or {}).get(_KEY)
                found = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{os.fspath(file)} is damaged or no safetensors file") from error
        if text is None or not {"l", "s", "b"} <= set(found):
            raise ValueError(f"{os.fspath(file)} does not hold model statistics")
        facts = json.loads(text)
        path = paths.from_config(facts["path"]) if "path" in facts else None
        return ModelStatistics(facts["first"], facts["last"], found["l"], found["s"], found["b"], path)
