"""Easy consistency tuning: the second time starts at the data and moves towards the first."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from fewstep.core.objectives.times import LogNormal, TimeSampler
from fewstep.core.objectives.trajectory.pairs import kappa_at
from fewstep.core.paths import Path
from fewstep.core.training import Moment


@dataclass(frozen=True)
class ShrinkingPairs:
    """Pairs t > r with a relative gap that shrinks from stage to stage, on kappa = sigma/a.

    kappa_r = kappa_t·max(1 − n(kappa_t)/q^(j + 1), 0),   n = 1 + k·sigmoid(−b·kappa_t)   or n = 1,

    in stage j = 0, 1, …; where it is 0, r is the clean end and the target is the data: then the loss is that
    of a denoiser, which is why a trained one is a good start.

    Args:
        times: of t.
        q: by which the gap shrinks from stage to stage.
        stages: of equal length in a run.
        mapping: "sigmoid" or "constant" n.
        k: of "sigmoid".
        b: of "sigmoid".

    Raises:
        ValueError: q or stages is too small, or mapping unknown.

    Reference: Geng, Pokle, Luo, Lin and Kolter 2024, "Consistency Models Made Easy", section 3, appendix A.
    """

    times: TimeSampler = field(default_factory=lambda: LogNormal(-1.1, 2.0))
    q: float = 2.0
    stages: int = 8
    mapping: str = "sigmoid"
    k: float = 8.0
    b: float = 1.0

    def __post_init__(self) -> None:
        if not self.q > 1:
            raise ValueError(f"q must be above 1, got {self.q!r}")
        if self.stages < 1:
            raise ValueError(f"stages must be at least 1, got {self.stages!r}")
        if self.mapping not in ("sigmoid", "constant"):
            raise ValueError(f"mapping must be 'sigmoid' or 'constant', got {self.mapping!r}")

    def stage(self, moment: Moment) -> int:
        """j at a moment."""
        return min(int(moment.progress * self.stages + 1e-9), self.stages - 1)

    def partner(self, path: Path, t: Tensor, stage: int) -> Float64[Tensor, "batch"]:
        """Return r for every t."""
        kappa = kappa_at(path, t)
        factor = torch.ones_like(kappa)
        if self.mapping == "sigmoid":
            factor = 1 + self.k * torch.sigmoid(-self.b * kappa)
        kappa_r = kappa * (1 - factor * self.q ** -(stage + 1)).clamp_min(0)
        r = path.time_at(-kappa_r.log())
        # The network of a table knows whole times only.
        return torch.minimum(r.round(), t.double() - 1) if path.is_discrete else r

    def __call__(
        self,
        path: Path,
        count: int,
        generator: torch.Generator,
        moment: Moment,
        device: torch.device | str = "cpu",
    ) -> tuple[Tensor, Tensor]:
        t = self.times(path, count, generator, device)
        return t, self.partner(path, t, self.stage(moment))
