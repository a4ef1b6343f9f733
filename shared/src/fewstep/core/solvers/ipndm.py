"""iPNDM: Adams-Bashforth weights for equal steps, applied to the coefficient of a DDIM step."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from fewstep.core.paths import Path
from fewstep.core.solvers.base import Level, Listed
from fewstep.core.solvers.exponential import lagrange_weights
from fewstep.core.solvers.noise_multistep import NoiseMultistep, kappa


@dataclass(frozen=True)
class IPNDM(NoiseMultistep):
    """z_s = a_s/a_t·z_t + a_s·(kappa_s − kappa_t)·sum_j w_j·eps_j with the classical weights

    1;  3/2, −1/2;  23/12, −16/12, 5/12;  55/24, −59/24, 37/24, −9/24

    for one to four estimates, newest first. They are those of equal steps in any variable, so the formula
    is of second order on a smooth grid however many estimates it uses, and independent of the path's clock.

    Args:
        terms: number of estimates, 1 to 4. The first steps use what there is: 1, 2, 3, …

    Raises:
        ValueError: if an option is out of range.

    Reference: Zhang and Chen 2023 (DEIS), section 4 (iPNDM); Liu et al. 2022 (PNDM), equation 12.
    """

    terms: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.terms not in (1, 2, 3, 4):
            raise ValueError(f"terms must be 1, 2, 3 or 4, not {self.terms}")

    @property
    def name(self) -> str:
        return f"ipndm-{self.terms}"

    @property
    def order(self) -> int:
        return min(self.terms, 2)

    @property
    def estimates(self) -> int:
        return self.terms

    def weights(self, path: Path, nodes: Sequence[Level], s: Level) -> list[float]:
        whole = kappa(s) - kappa(nodes[0])
        return [whole * w for w in equal_step_weights(len(nodes))]


@lru_cache(maxsize=8)
def equal_step_weights(count: int) -> tuple[float, ...]:
    """The Adams-Bashforth weights of `count` equal steps, newest first; their sum is 1.

    Example:
        >>> [round(24 * w, 9) for w in equal_step_weights(4)]
        [55.0, -59.0, 37.0, -9.0]
    """
    return tuple(lagrange_weights([float(-j) for j in range(count)], 0.0))


SOLVERS = {
    f"ipndm-{terms}": Listed(
        partial(IPNDM, terms=terms), "Zhang and Chen 2023, iPNDM; Liu et al. 2022", "n", shines
    )
    for terms, shines in (
        (1, "DDIM"),
        (2, "robust second order"),
        (3, "five to fifteen calls"),
        (4, "five to fifteen calls, as published"),
    )
}
