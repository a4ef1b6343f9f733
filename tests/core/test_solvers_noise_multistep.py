"""DEIS, rhoRK, iPNDM, PNDM, FON, BDIA: orders, integrals, ends of a path, invariances, bad input."""

import math
from fractions import Fraction

import numpy
import pytest
import torch
from tests.core.solver_problems import kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths, solvers
from fewstep.core.grids.deis import deis_rho, deis_t
from fewstep.core.sample import sample
from fewstep.core.solvers.base import levels
from fewstep.core.solvers.bdia import BDIA
from fewstep.core.solvers.deis import DEIS
from fewstep.core.solvers.ipndm import IPNDM, equal_step_weights
from fewstep.core.solvers.pndm import FON, PNDM
from fewstep.core.solvers.runge_kutta import TABLEAUX, RungeKutta

MIXTURE = smooth_mixture()
EDM, VP = paths.EDM(), paths.VP.linear()
FULL = {
    "rho-ab": DEIS(3, "kappa", clean_step="full"),
    "t-ab": DEIS(2, "t", clean_step="full"),
    "lambda-ab": DEIS(2, "lambda", clean_step="full"),
    "ipndm": IPNDM(clean_step="full"),
    "plms": PNDM(4, "improved-euler", clean_step="full"),
    "fon": FON(clean_step="full"),
}


@pytest.fixture(scope="module")
def exact():
    """The solution from kappa 5 to 0.1 on EDM, to 3e-9 by small steps of fourth order."""
    grid = kappa_grid(EDM, 5.0, 0.1, 160)
    return sample(MIXTURE.denoiser(EDM), EDM, "rho-rk4", grid=grid, x=5.0 * start_noise())


def error(solver, path, steps, exact):
    grid = kappa_grid(path, 5.0, 0.1, steps)
    first, last = path.coefficients(grid[0])[0], path.coefficients(grid[-1])[0]
    got = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=5.0 * first * start_noise()) / last
    return (got - exact).square().mean().sqrt().item()


# With three or four estimates the first-order start is what counts from many steps on: rho-ab-2 comes down
# from order 3 (2.55, 2.45, 2.31, 2.19 at 80, 160, 320, 640 steps), ipndm up from below.
FINE = {"rho-ab-2": (80, 160, 0.5), "rho-ab-3": (80, 160, 0.25), "t-ab-2": (80, 160, 0.15)}
FINE |= {"ipndm-3": (80, 160, 0.15), "ipndm-4": (80, 160, 0.15)}
FINE |= {"rho-midpoint2": (80, 160, 0.15), "rho-rk4": (20, 80, 0.15)}
NAMES = [
    *(f"rho-ab-{r}" for r in range(4)),
    *(f"lambda-ab-{r}" for r in range(4)),
    *(f"t-ab-{r}" for r in range(4)),
    *(f"ipndm-{terms}" for terms in (1, 2, 3, 4)),
    *(f"rho-{name}" for name in TABLEAUX if name != "euler"),
    *("s-pndm", "f-pndm", "plms", "fon", "bdia"),
]


@pytest.mark.parametrize("name", NAMES)
def test_order_of_convergence(name, exact):
    path = VP if name.startswith(("t-ab", "fon", "f-pndm", "bdia")) else EDM
    coarse, fine, tolerance = FINE.get(name, (40, 80, 0.15))
    ratio = error(name, path, coarse, exact) / error(name, path, fine, exact)
    slope = math.log(ratio) / math.log(fine / coarse)
    assert abs(slope - solvers.get(name).order) < tolerance


@pytest.mark.parametrize(("solver", "order"), [(BDIA(0.5), 1), (PNDM(3), 2), (FON("official"), 1)])
def test_order_of_options(solver, order, exact):
    assert solver.order == order
    slope = math.log2(error(solver, VP, 40, exact) / error(solver, VP, 80, exact))
    # the published FON stays at the error of its difference quotient
    assert abs(slope - order) < 0.15 or (isinstance(solver, FON) and slope < order)


@pytest.mark.parametrize("path", [VP, paths.VP.cosine(), EDM], ids=["linear", "cosine", "edm"])
def test_integrals_over_time(path):
    """sum_j w_j·t_j^k = int t^k dkappa for k = 0, 1, 2, by parts: t^k·kappa - k·int t^(k-1)·kappa dt."""
    points = levels(path, (0.9, 0.6, 0.35, 0.2))
    *before, t, s = points
    w = DEIS(2, "t").weights(path, [t, *before[::-1]], s)
    x, share = numpy.polynomial.legendre.leggauss(60)
    times = 0.5 * (s.t + t.t) + 0.5 * (s.t - t.t) * x
    a, _, sigma = path.evaluate(torch.from_numpy(times))
    area = 0.5 * (s.t - t.t) * share * (sigma / a).numpy()
    for k in range(3):
        wanted = s.t**k * s.sigma / s.a - t.t**k * t.sigma / t.a
        wanted -= k * float((area * times ** max(k - 1, 0)).sum())
        got = sum(weight * node.t**k for weight, node in zip(w, [t, *before[::-1]], strict=True))
        assert abs(got - wanted) < 1e-13 * max(1.0, t.sigma / t.a)


def test_on_edm_time_is_kappa():
    grid = grids.karras(EDM, 8)
    a, b = (DEIS(3, variable).compile(EDM, grid) for variable in ("t", "kappa"))
    for row, other in zip(a.rows, b.rows, strict=True):
        for term, twin in zip(row.terms, other.terms, strict=True):
            assert term[:2] == twin[:2]
            assert term.coefficient == pytest.approx(twin.coefficient, rel=1e-11)


def test_equal_step_weights_are_the_textbook_ones():
    wanted = {1: "1", 2: "3/2 -1/2", 3: "23/12 -16/12 5/12", 4: "55/24 -59/24 37/24 -9/24"}
    for count, text in wanted.items():
        assert equal_step_weights(count) == pytest.approx(
            [float(Fraction(w)) for w in text.split()], abs=1e-14
        )


@pytest.mark.parametrize("name", TABLEAUX)
def test_tableaux_fulfil_the_order_conditions(name):
    order, rows, b = TABLEAUX[name]
    count = len(b)
    matrix = numpy.zeros((count, count))
    for i, row in enumerate(rows, start=1):
        matrix[i, : len(row)] = row
    b, c = numpy.array(b), matrix.sum(1)
    sums = {
        1: [(b.sum(), 1)],
        2: [(b @ c, 1 / 2)],
        3: [(b @ c**2, 1 / 3), (b @ matrix @ c, 1 / 6)],
        4: [
            (b @ c**3, 1 / 4),
            (b @ (c * (matrix @ c)), 1 / 8),
            (b @ matrix @ c**2, 1 / 12),
            (b @ matrix @ matrix @ c, 1 / 24),
        ],
    }
    for k in range(1, order + 1):
        for got, wanted in sums[k]:
            assert got == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize("name", FULL)
def test_full_last_step_is_another_one_and_finite(name):
    path, full = paths.RectifiedFlow(), FULL[name]
    grid = grids.uniform(path, 6)
    plain = solvers.get(full.name) if full.name in solvers.names() else type(full)(4, "improved-euler")
    calls = full.compile(path, grid).nfe
    assert calls == plain.compile(path, grid).nfe
    results = [sample(MIXTURE.denoiser(path), path, s, grid=grid, x=start_noise()) for s in (full, plain)]
    difference = (results[0] - results[1]).abs().max()
    assert difference < 1.0
    assert (difference == 0.0) == (name == "lambda-ab")


def test_lower_order_at_the_end_with_few_steps():
    grid = kappa_grid(EDM, 10.0, 0.1, 6)
    for few, wanted in ((0, [0, 1, 2, 3, 3, 3, 3]), (10, [0, 1, 2, 3, 3, 2, 1])):
        plan = DEIS(2, lower_order_below=few).compile(EDM, grid)
        assert [sum(term.kind == "e" for term in row.terms) for row in plan.rows] == wanted


@pytest.mark.parametrize(
    ("name", "nfe"),
    [("s-pndm", 11), ("f-pndm", 19), ("plms", 11), ("fon", 19), ("rho-kutta3", 30), ("deis", 10)],
)
def test_network_calls(name, nfe):
    assert solvers.get(name).compile(VP, kappa_grid(VP, 10.0, 0.1, 10)).nfe == nfe


def test_stride_of_the_grid_changes_nothing():
    path = paths.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    grid = [900.0 - 100.0 * i for i in range(10)]
    for start in ("improved-euler", "runge-kutta"):
        a, b = (
            sample(MIXTURE.denoiser(path), path, PNDM(4, start, stride=stride), grid=grid, x=start_noise())
            for stride in (None, 100.0)
        )
        assert (a - b).abs().max() < 1e-13


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DEIS(4), "degree must be 0, 1, 2 or 3, not 4"),
        (lambda: DEIS(1, "time"), "variable must be one of t, kappa, lambda; not 'time'"),
        (lambda: DEIS(1, "t", "best"), "quadrature must be 'exact' or 'official', not 'best'"),
        (lambda: DEIS(1, "lambda", "official"), "belongs to variable 't' or 'kappa'"),
        (lambda: DEIS(clean_step="none"), "clean_step must be one of 'ddim', 'full', not 'none'"),
        (lambda: DEIS(lower_order_below=-1), "lower_order_below must not be negative, it is -1"),
        (lambda: IPNDM(5), "terms must be 1, 2, 3 or 4, not 5"),
        (lambda: PNDM(1), "terms must be 2, 3 or 4, not 1"),
        (lambda: PNDM(4, "heun"), "start must be 'improved-euler' or 'runge-kutta', not 'heun'"),
        (lambda: PNDM(stride=0.0), "stride must be a finite number above 0 or None, not 0.0"),
        (lambda: FON("mine"), "variant must be 'exact' or 'official', not 'mine'"),
        (lambda: RungeKutta("rk5"), "tableau must be one of euler, .*rk4; not 'rk5'"),
        (lambda: deis_t(VP, 4, exponent=-1.0), "exponent must be a finite number above 0"),
        (lambda: deis_rho(VP, 0), "steps must be at least 1"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
