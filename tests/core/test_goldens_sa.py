"""SA-Solver: the trajectories of diffusers, the law of its draws, the orders of its ODE, bad input."""

import math

import pytest
import torch
from tests.core.goldens import Golden, assert_relative, stable_diffusion_path
from tests.core.solver_problems import kappa_grid, smooth_mixture, start_noise
from tests.core.test_solvers import reference

from fewstep.core import paths, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers.sa import PUBLISHED_INTERVAL, SASolver

DIFFUSERS = Golden("diffusers_schedulers")
MIXTURE = smooth_mixture()


@DIFFUSERS.each(lambda case: case["scheduler"] == "SASolverScheduler")
def test_sa_solver_of_diffusers(case):
    path = stable_diffusion_path()
    times = DIFFUSERS.of(case, "out.timesteps").tolist()
    # the peer draws in every step, also where tau = 0 and nothing is added
    draws = iter([n for n, t in zip(DIFFUSERS.of(case, "in.noise"), times, strict=True) if 200 <= t <= 800])
    got = sample(
        DIFFUSERS.mixture().denoiser(path),
        path,
        "sa-solver",
        grid=(*times, 0.0),
        x=DIFFUSERS.z,
        noise=lambda like: next(draws),
    )
    assert_relative(got, DIFFUSERS.of(case, "out.x"), 2e-5)
    assert next(draws, None) is None


def test_the_interval_is_that_of_the_published_times():
    path = stable_diffusion_path()
    kappa = [math.exp(-path.half_log_snr(t)) for t in (199.0, 200.0, 800.0, 801.0)]
    assert kappa[0] < PUBLISHED_INTERVAL[0] < kappa[1]
    assert kappa[2] < PUBLISHED_INTERVAL[1] < kappa[3]


ORDERS = {
    (1, 0): 1,
    (2, 0): 2,
    (3, 0): 2,
    (1, 1): 1,
    (1, 2): 2,
    (2, 2): 2,
    (2, 3): 3,
    (3, 4): 3,
    (4, 4): 3,
}


@pytest.fixture(scope="module")
def exact():
    return reference(paths.EDM(), 5.0, 0.1, 5.0 * start_noise())


@pytest.mark.parametrize("orders", ORDERS, ids=str)
def test_order_of_the_ode(orders, exact):
    solver = SASolver(*orders, tau=0.0, lower_order_final=False)
    assert solver.order == ORDERS[orders]
    path = paths.EDM()
    errors = []
    for steps in (40, 160):
        grid = kappa_grid(path, 5.0, 0.1, steps)
        got = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=5.0 * start_noise())
        errors.append((got - exact).square().mean().sqrt().item())
    assert abs(math.log2(errors[0] / errors[1]) / 2 - solver.order) < 0.15, errors


@pytest.mark.parametrize("form", ["data", "noise"])
@pytest.mark.parametrize("orders", [(1, 0), (2, 2), (3, 4)], ids=str)
def test_variance_on_gaussian_data(form, orders):
    """On Gaussian data all is linear: unit impulses at the start and at each draw give the exact variance."""
    path, spread = paths.VP.linear(), 0.6
    solver = SASolver(*orders, tau=lambda kappa: 1.0 + 0.2 * math.sin(kappa), form=form)

    def denoise(z, t):
        a, _, sigma = path.coefficients(float(t))
        return a * spread**2 / (a**2 * spread**2 + sigma**2) * z

    gaps = []
    for steps in (40, 80):
        grid = kappa_grid(path, 20.0, 0.05, steps)
        impulses = iter(torch.eye(steps + 1).double()[1:])
        a, _, sigma = path.coefficients(grid[0])
        x = math.hypot(a * spread, sigma) * torch.eye(steps + 1).double()[0].reshape(1, -1)
        got = sample(
            denoise, path, solver, grid=grid, x=x, noise=lambda like, rest=impulses: next(rest)[None].to(like)
        )
        a, _, sigma = path.coefficients(grid[-1])
        gaps.append(abs(got.square().sum().item() / (a**2 * spread**2 + sigma**2) - 1.0))
    limit, shrinks = (0.2, 0.6) if orders == (1, 0) else (0.03, 0.4)
    assert gaps[0] < limit
    assert gaps[1] < shrinks * gaps[0]


def test_without_noise_and_with_the_exact_rules_it_is_unipc():
    path = paths.RectifiedFlow()
    grid = kappa_grid(path, 20.0, 0.02, 8, clean=True)
    for order in (1, 2, 3):
        found = []
        for solver in (
            SASolver(order, order + 1, tau=0.0, variant="exact"),
            solvers.get(f"unipc-{order}", variant="vary"),
        ):
            rows = solver.compile(path, grid).rows
            found.append([{term[:2]: term.coefficient for term in row.terms} for row in rows])
        for ours, other in zip(*found, strict=True):
            assert ours == pytest.approx(other, rel=1e-12)


def test_tau_may_be_a_function_of_the_noise_level():
    path = paths.EDM()
    grid = (80.0, 10.0, 2.0, 0.6, 0.1, 0.0)
    asked = []
    plan = SASolver(tau=lambda kappa: asked.append(kappa) or float(kappa > 1.0)).compile(path, grid)
    assert set(asked) == set(grid[:-1])
    assert plan.draws == 3
    assert SASolver(tau=1.0).compile(path, grid).draws == 2
    assert SASolver(tau=0.0).compile(path, grid).draws == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"predictor_order": 5}, "predictor_order must be 1, 2, 3 or 4, not 5"),
        ({"corrector_order": -1}, "corrector_order must be 0, 1, 2, 3 or 4, not -1"),
        ({"tau": -0.5}, "tau must be at least 0, not -0.5"),
        ({"interval": (2.0, 1.0)}, r"interval must be \(low, high\) .*not \(2.0, 1.0\)"),
        ({"form": "x0"}, "form must be 'data' or 'noise', not 'x0'"),
        ({"variant": "bh1"}, "variant must be 'official' or 'exact', not 'bh1'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        solvers.get("sa-solver", **options)


def test_a_bad_value_of_the_function_is_named():
    with pytest.raises(ValueError, match=r"tau must be at least 0, not -1\.0"):
        SASolver(tau=lambda kappa: -1.0).compile(paths.EDM(), (80.0, 1.0, 0.0))
