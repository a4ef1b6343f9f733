"""Langevin dynamics at a fixed noise level: the corrector of Score-SDE and annealed sampling."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fewstep.core.paths import Path
from fewstep.core.solvers.base import Ask, Level, Listed, Report, StepwiseSolver, check_choice, levels


@dataclass(frozen=True)
class Corrector:
    """Steps of Langevin dynamics, z ← z + e·score + sqrt(2·e)·w, that leave the law at time t as it is.

        snr        e = 2·alpha·(snr·|w|/|score|)²,   annealed   e = 2·alpha·(snr·sigma)².

    alpha = r² is the decay of the forward step, (a_t/a_s)² (1 on VE, 1 − beta on VP).

    Args:
        rule: "snr" takes the norms of the draw and of the score; "annealed" is the rule of NCSN.
        snr: signal-to-noise ratio of a step; 0.16 was published for CIFAR-10, 0.075 for CelebA-HQ 256.
        repeats: steps at each noise level.
        norm: "sample" takes each sample's own norms; "batch" their means over the batch, as published, which
            couples the samples of a batch.

    Raises:
        ValueError: if an option is unknown or out of range.

    Reference: Song et al. 2021 (Score-SDE), algorithms 4 and 5; Song and Ermon 2019 (NCSN), algorithm 1.
    """

    rule: str = "snr"
    snr: float = 0.16
    repeats: int = 1
    norm: str = "sample"

    def __post_init__(self) -> None:
        check_choice("rule", self.rule, ("snr", "annealed"))
        if not 0.0 < self.snr < float("inf"):
            raise ValueError(f"snr must be a finite number above 0, not {self.snr}")
        if self.repeats < 0:
            raise ValueError(f"repeats must not be negative, it is {self.repeats}")
        check_choice("norm", self.norm, ("sample", "batch"))

    def correct(
        self, ask: Ask, z: Tensor, t: Level, alpha: float, noise: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Run the steps at time t.

        Args:
            ask: x0 from (z, t).
            z: the state in the y-free frame, shape (batch, ...).
            t: where it stands.
            alpha: decay of the forward step.
            noise: returns a fresh draw.
        """
        for _ in range(self.repeats):
            score = (t.a * ask(z, t.t) - z) / t.sigma**2
            draw = noise(z)
            size = self._size(score, draw, t.sigma, alpha)
            z = z + size * score + (2.0 * size) ** 0.5 * draw
        return z

    def _size(self, score: Tensor, draw: Tensor, sigma: float, alpha: float) -> Tensor | float:
        if self.rule == "annealed":
            return 2.0 * alpha * (self.snr * sigma) ** 2
        norms = torch.stack([draw.flatten(1).norm(dim=1), score.flatten(1).norm(dim=1)])
        if self.norm == "batch":
            norms = norms.mean(dim=1, keepdim=True)
        # a score of exactly 0 leaves nothing to scale with: such a sample waits for the next step
        ratio = torch.where(norms[1] > 0.0, norms[0] / norms[1], 0.0)
        return (2.0 * alpha * (self.snr * ratio).square()).view(-1, *[1] * (score.ndim - 1))


def decay(t: Level, s: Level) -> float:
    """alpha = (a_t/a_s)² of the forward step from s to t."""
    return (t.a / s.a) ** 2 if t.a > 0.0 else 0.0


@dataclass(frozen=True)
class Langevin(StepwiseSolver):
    """Annealed Langevin dynamics: `repeats` Langevin steps at each time of the grid, then one call for x0.

    The state goes on from one noise level to the next as it is, so neighbouring levels must be close. With a
    grid that ends at sigma = 0 the result is D at the last level asked; otherwise the state at that level,
    a time before the grid's end.

    Args:
        rule, snr, repeats, norm: as in `Corrector`.

    Raises:
        ValueError: if an option is unknown or out of range.

    Reference: Song and Ermon 2019 (NCSN), algorithm 1; Song and Ermon 2020 (NCSNv2), the last call;
        Song et al. 2021 (Score-SDE), algorithms 4 and 5 for the step sizes.
    """

    rule: str = "snr"
    snr: float = 0.16
    repeats: int = 10
    norm: str = "sample"
    name = "langevin"
    order = 1

    def __post_init__(self) -> None:
        _ = self.corrector

    @property
    def corrector(self) -> Corrector:
        return Corrector(self.rule, self.snr, self.repeats, self.norm)

    def integrate(
        self,
        ask: Ask,
        path: Path,
        grid: Sequence[float],
        z: Tensor,
        noise: Callable[[Tensor], Tensor],
        on_step: Report,
    ) -> Tensor:
        points = levels(path, grid)
        newest = z

        def watched(state: Tensor, t: float | Tensor) -> Tensor:
            nonlocal newest
            newest = ask(state, t)
            return newest

        for t, s in pairwise(points):
            z = self.corrector.correct(watched, z, t, decay(t, s), noise)
            if s.sigma == 0.0:
                newest = z = s.a * ask(z, t.t)
            if not on_step(z, s.t, newest):
                break
        return z


SOLVERS = {
    "langevin": Listed(
        Langevin, "Song and Ermon 2019, NCSN", "10n + 1", "hundreds of noise levels; keeps a law as it is"
    ),
}
