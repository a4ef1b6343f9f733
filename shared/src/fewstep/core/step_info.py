"""What a caller may watch while a sampler runs."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(slots=True)
class StepInfo:
    """What `on_step` sees after a step.

    Attributes:
        step: number of the step just done, from 1.
        total: number of steps.
        t: time of `x`; one per sample with per-sample grids.
        nfe: network calls so far.
        x: the state. It is overwritten by later steps: clone it to keep it. What the caller writes into it is
            where the sampler goes on from.
    """

    step: int
    total: int
    t: float | Tensor
    nfe: int
    x: Tensor
    _estimate: Callable[[], Tensor] = field(repr=False)

    @property
    def x0(self) -> Tensor:
        """The newest denoised estimate, computed when it is asked for."""
        return self._estimate()


OnStep = Callable[[StepInfo], bool | None]
