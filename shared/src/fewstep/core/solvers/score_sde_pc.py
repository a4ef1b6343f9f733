"""Predictor–corrector of Score-SDE: Langevin steps at each noise level, then a step of the reverse SDE."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from fewstep.core.paths import Path
from fewstep.core.solvers.base import Ask, Listed, Report, StepwiseSolver, check_choice, levels
from fewstep.core.solvers.langevin import Corrector, decay
from fewstep.core.solvers.score_sde import ScoreSDE, Update


@dataclass(frozen=True)
class LangevinCorrected(StepwiseSolver):
    """At each time of the grid: `repeats` Langevin steps, then one step of the reverse SDE (or its ODE).

    The corrector comes first, as in the published loop (not as in the printed algorithm). The step to
    sigma = 0 draws no noise: the result is the mean, which is the published "denoise" at the end.

    Args:
        predictor: "reverse-diffusion", "euler-maruyama" or "ancestral"; see `ScoreSDE`.
        equation: "sde" or "ode".
        steps_as: "integrated", "local" or "published"; see `ScoreSDE`.
        count: N of "published"; 0 takes the number of steps of the grid.
        corrector: "snr" or "annealed"; see `Corrector`.
        snr: signal-to-noise ratio of a corrector step.
        repeats: corrector steps at each level.
        norm: "sample", or "batch" as published, which couples the samples of a batch.

    Raises:
        ValueError: if an option is unknown or out of range.

    Reference: Song et al. 2021 (Score-SDE), section 4.2, algorithms 2 to 5.
    """

    predictor: str = "reverse-diffusion"
    equation: str = "sde"
    steps_as: str = "integrated"
    count: int = 0
    corrector: str = "snr"
    snr: float = 0.16
    repeats: int = 1
    norm: str = "sample"
    name = "pc"
    order = 1

    def __post_init__(self) -> None:
        check_choice("corrector", self.corrector, ("snr", "annealed"))
        _ = self._predictor, self._corrector

    @property
    def _predictor(self) -> ScoreSDE:
        return ScoreSDE(self.predictor, self.equation, self.steps_as, self.count)

    @property
    def _corrector(self) -> Corrector:
        return Corrector(self.corrector, self.snr, self.repeats, self.norm)

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
        predictor, corrector, steps = self._predictor, self._corrector, len(points) - 1
        for t, s in pairwise(points):
            alpha = decay(t, s)
            if self.steps_as == "published":
                alpha = predictor.increment(path, t, s, steps).keep ** 2
            z = corrector.correct(ask, z, t, alpha, noise)
            x0 = ask(z, t.t)
            z = _step(predictor.update(path, t, s, steps), z, x0, noise)
            if not on_step(z, s.t, x0):
                break
        return z


def _step(update: Update, z: Tensor, x0: Tensor, noise: Callable[[Tensor], Tensor]) -> Tensor:
    mean = update.x * z + update.x0 * x0
    return mean + update.noise * noise(z) if update.noise else mean


SOLVERS = {
    "pc": Listed(
        LangevinCorrected, "Song et al. 2021, predictor–corrector", "2n", "the best samples at 1000 steps"
    ),
}
