"""DPM-Solver++: multistep exponential integrators in the denoised sample, orders 1 to 3, ODE and SDE."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from fewstep.core.solvers.base import Listed
from fewstep.core.solvers.dpm import DPMSolver


@dataclass(frozen=True)
class DPMSolverPP(DPMSolver):
    """Multistep DPM-Solver++ from time t to s, with lam = log(a/sigma) and h = lam_s − lam_t:

    z_s = sigma_s/sigma_t·e^(−eta·h)·z_t + a_s·H·(phi_1·m0 + c·D1 + c'·D2) + sigma_s·sqrt(1 − e^(−2·eta·h))·w,

    H = (1 + eta)·h, phi_k = phi_k(−H), D1 and D2 the divided differences of the denoised samples m0, m1, m2
    (newest first). Everything else is as in `DPMSolver`, which has the same options.

    Reference: Lu et al. 2022 (DPM-Solver++), algorithm 2, sections 4 and 5, appendix B.
    """

    form: ClassVar[str] = "data"


_PAPER = "Lu et al. 2022, DPM-Solver++"
SOLVERS = {
    "dpmpp-1": Listed(partial(DPMSolverPP, solver_order=1), _PAPER, "n", "DDIM in data form"),
    "dpmpp-2m": Listed(partial(DPMSolverPP, solver_order=2), f"{_PAPER}(2M)", "n", "the safe default"),
    "dpmpp-3m": Listed(partial(DPMSolverPP, solver_order=3), f"{_PAPER}(3M)", "n", "unguided, 15 calls on"),
    "dpmpp-2m-sde": Listed(
        partial(DPMSolverPP, solver_order=2, eta=1.0), f"{_PAPER}(2M) SDE", "n", "20 calls on, draws noise"
    ),
    "dpmpp-3m-sde": Listed(
        partial(DPMSolverPP, solver_order=3, correction="taylor", eta=1.0),
        "k-diffusion, DPM-Solver++(3M) SDE",
        "n",
        "30 calls on, draws noise",
    ),
}
