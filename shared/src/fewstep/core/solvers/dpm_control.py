"""Step-size controllers of the adaptive DPM-Solver: from an error to a step that is kept or done again."""

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float64
from torch import Tensor


class Verdict(NamedTuple):
    """What a controller says after a trial.

    Attributes:
        accepted: which samples keep the step.
        factor: what their step size is multiplied with.
        memory: inverse errors of the newest trial and of the two kept steps before it, for the next one.
    """

    accepted: Bool[Tensor, " batch"]
    factor: Float64[Tensor, " batch"]
    memory: Float64[Tensor, "3 batch"] | None


@runtime_checkable
class Controller(Protocol):
    """Judges the scaled error of a trial (1 is the tolerance), sample by sample."""

    def __call__(
        self, error: Float64[Tensor, " batch"], order: int, memory: Float64[Tensor, "3 batch"] | None
    ) -> Verdict: ...


@dataclass(frozen=True)
class Integral:
    """Keep the step if error ≤ 1; then h ← safety·error^(−1/order)·h.

    Args:
        safety: below 1, so that the next step is likely to be kept.

    Raises:
        ValueError: if it does not lie in (0, 1].

    Reference: Lu et al. 2022 (DPM-Solver), appendix C.
    """

    safety: float = 0.9

    def __post_init__(self) -> None:
        if not 0.0 < self.safety <= 1.0:
            raise ValueError(f"safety must lie in (0, 1], not {self.safety}")

    def __call__(
        self, error: Float64[Tensor, " batch"], order: int, memory: Float64[Tensor, "3 batch"] | None
    ) -> Verdict:
        return Verdict(error <= 1.0, self.safety * error ** (-1.0 / order), memory)


@dataclass(frozen=True)
class PID:
    """h ← f·h, f = 1 + atan(e0^b1·e1^b2·e2^b3 − 1), e the inverse errors of this trial and two kept steps.

    b1 = (p + i + d)/order, b2 = −(p + 2d)/order, b3 = d/order. The step is kept if f ≥ accept.

    Args:
        p: proportional coefficient.
        i: integral coefficient.
        d: derivative coefficient.
        accept: smallest factor with which a step is kept.

    Raises:
        ValueError: if a coefficient is not finite or accept does not lie in (0, 1].

    Reference: the adaptive DPM-Solver of k-diffusion; Söderlind 2003.
    """

    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    accept: float = 0.81

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.p, self.i, self.d))):
            raise ValueError(f"p, i and d must be finite, they are {self.p}, {self.i} and {self.d}")
        if not 0.0 < self.accept <= 1.0:
            raise ValueError(f"accept must lie in (0, 1], not {self.accept}")

    def __call__(
        self, error: Float64[Tensor, " batch"], order: int, memory: Float64[Tensor, "3 batch"] | None
    ) -> Verdict:
        inverse = 1.0 / (error + 1e-8)
        _, before, older = inverse.expand(3, -1) if memory is None else memory
        b1, b2, b3 = self.p + self.i + self.d, -(self.p + 2.0 * self.d), self.d
        ratio = (inverse**b1 * before**b2 * older**b3) ** (1.0 / order)
        factor = 1.0 + torch.atan(ratio - 1.0)
        accepted = factor >= self.accept
        kept = torch.stack([inverse, inverse, before])
        passed = torch.stack([inverse, before, older])
        return Verdict(accepted, factor, torch.where(accepted, kept, passed))
