"""DEIS: Adams-Bashforth methods whose polynomials live in time, in sigma/a or in log(a/sigma)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy
import torch

from fewstep.core.paths import Path
from fewstep.core.solvers.base import Level, Listed, check_choice
from fewstep.core.solvers.exponential import lagrange_weights
from fewstep.core.solvers.noise_multistep import NoiseMultistep, kappa

VARIABLES = {"t": "t-ab", "kappa": "rho-ab", "lambda": "lambda-ab"}
_GAUSS_NODES = 32
_RIEMANN_NODES = 10_000  # of the published code


@dataclass(frozen=True)
class DEIS(NoiseMultistep):
    """Diffusion exponential integrator: z_s = a_s/a_t·z_t + a_s·sum_j w_j·eps_j from time t to s, with

    w_j = int_{kappa_t}^{kappa_s} L_j(u(kappa)) dkappa,  kappa = sigma/a,

    L_j the Lagrange polynomials of the newest degree + 1 network calls in the variable u: time (tAB),
    kappa itself (rhoAB; k-diffusion and diffusers call it LMS), or lam = log(a/sigma) (lambda-AB, which
    diffusers calls DEIS). Degree 0 is DDIM. tAB depends on the clock of the path; the others do not.

    As the first step has degree 0, a chain is of order 2 at most; a higher degree lowers the error.

    Args:
        degree: of the polynomials, 0 to 3. The first steps use what there is: 0, 1, 2, …
        variable: "t", "kappa" or "lambda".
        quadrature: "exact" (closed form, or 32 Gauss-Legendre nodes a step for "t"), or "official": the left
            Riemann sum with 10 000 nodes of the published code, about 1e-4 off.

    Raises:
        ValueError: if an option is out of range.

    Reference: Zhang and Chen 2023 (DEIS), section 3.3, equations 14 and 15 (tAB), section 3.4 (rhoAB).
    """

    degree: int = 3
    variable: str = "t"
    quadrature: str = "exact"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.degree not in (0, 1, 2, 3):
            raise ValueError(f"degree must be 0, 1, 2 or 3, not {self.degree}")
        if self.variable not in VARIABLES:
            raise ValueError(f"variable must be one of {', '.join(VARIABLES)}; not {self.variable!r}")
        check_choice("quadrature", self.quadrature, ("exact", "official"))
        if self.quadrature == "official" and self.variable == "lambda":
            raise ValueError("quadrature 'official' belongs to variable 't' or 'kappa', not 'lambda'")

    @property
    def name(self) -> str:
        return f"{VARIABLES[self.variable]}-{self.degree}"

    @property
    def order(self) -> int:
        return min(self.degree + 1, 2)

    @property
    def estimates(self) -> int:
        return self.degree + 1

    def weights(self, path: Path, nodes: Sequence[Level], s: Level) -> list[float]:
        t = nodes[0]
        whole = kappa(s) - kappa(t)
        if len(nodes) == 1 and self.quadrature == "exact":
            return [whole]
        if self.variable == "lambda":
            if s.sigma == 0.0:  # lam is infinite there, and the polynomials with it
                return [whole, *[0.0] * (len(nodes) - 1)]
            h = s.half_log_snr - t.half_log_snr
            places = [(node.half_log_snr - t.half_log_snr) / h for node in nodes]
            return [-kappa(s) * h * w for w in lagrange_weights(places, h)]
        if self.variable == "kappa":
            places = [(kappa(node) - kappa(t)) / whole for node in nodes]
            if self.quadrature == "exact":
                return [whole * w for w in lagrange_weights(places, 0.0)]
            u = numpy.arange(_RIEMANN_NODES) / _RIEMANN_NODES
            return _integrals(places, u, numpy.full_like(u, whole / _RIEMANN_NODES))
        places = [(node.t - t.t) / (s.t - t.t) for node in nodes]
        rule = _gauss if self.quadrature == "exact" else _riemann
        return _integrals(places, *rule(path, t, s))


def _integrals(places: Sequence[float], u: numpy.ndarray, measure: numpy.ndarray) -> list[float]:
    """sum over the points u, with their share of dkappa, of each Lagrange polynomial of the places."""
    found = []
    for j, own in enumerate(places):
        others = [place for k, place in enumerate(places) if k != j]
        values = numpy.prod([(u - place) / (own - place) for place in others], axis=0)
        found.append(float(numpy.sum(values * measure)))
    return found


def _gauss(path: Path, t: Level, s: Level) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Gauss-Legendre points of (time − t)/(s − t) and their share of dkappa.

    The points are spread over asinh(kappa): time is a smooth function of it at small kappa, where time ~
    kappa² on VP paths, and at large kappa, where time is a function of log kappa.
    """
    x, weight = _legendre()
    ends = math.asinh(kappa(t)), math.asinh(kappa(s))
    half = 0.5 * (ends[1] - ends[0])
    v = ends[0] + half * (x + 1.0)
    times = path.time_at(torch.from_numpy(-numpy.log(numpy.sinh(v)))).numpy()
    return (times - t.t) / (s.t - t.t), weight * half * numpy.cosh(v)


@lru_cache(maxsize=1)
def _legendre() -> tuple[numpy.ndarray, numpy.ndarray]:
    x, weight = numpy.polynomial.legendre.leggauss(_GAUSS_NODES)
    return x, weight


@lru_cache(maxsize=64)  # shared by the degrees of one grid
def _riemann(path: Path, t: Level, s: Level) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Left Riemann points of (time − t)/(s − t) and kappa'(time)·dtime there."""
    u = numpy.arange(_RIEMANN_NODES) / _RIEMANN_NODES
    times = torch.from_numpy(t.t + u * (s.t - t.t))
    a, _, sigma = path.evaluate(times)
    rate_a, _, rate_sigma = path.derivatives_at(times)
    slope = (rate_sigma * a - sigma * rate_a) / (a * a)
    return u, slope.numpy() * (s.t - t.t) / _RIEMANN_NODES


_PAPER = "Zhang and Chen 2023, DEIS"

SOLVERS = {
    **{
        f"t-ab-{r}": Listed(partial(DEIS, degree=r, variable="t"), f"{_PAPER} tAB{r}", "n", shines)
        for r, shines in enumerate(
            ("DDIM", "ten calls on VP", "ten calls on VP", "ten to twenty calls on VP, as published")
        )
    },
    **{
        f"rho-ab-{r}": Listed(partial(DEIS, degree=r, variable="kappa"), f"{_PAPER} rhoAB{r}", "n", shines)
        for r, shines in enumerate(
            ("DDIM", "robust second order", "dense grids near the end", "dense grids near the end")
        )
    },
    **{
        f"lambda-ab-{r}": Listed(
            partial(DEIS, degree=r, variable="lambda"), f"{_PAPER} in log rho", "n", shines
        )
        for r, shines in enumerate(
            ("DDIM", "diffusers' DEIS of order 2", "diffusers' DEIS of order 3", "uniform log-SNR grids")
        )
    },
    "deis": Listed(partial(DEIS, degree=3, variable="t"), f"{_PAPER} tAB3", "n", "the paper's own choice"),
    "lms": Listed(
        partial(DEIS, degree=3, variable="kappa", clean_step="full"),
        "Adams-Bashforth in sigma/a, as in k-diffusion's LMS",
        "n",
        "Karras grids",
    ),
}
