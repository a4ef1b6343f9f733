"""What every listed solver must do: its order, and the invariances that the path form promises."""

import math

import pytest
import torch
from tests.core.solver_problems import PLANNED, Asked, kappa_grid, smooth_mixture, start_noise

from fewstep.core import Plan, grids, paths, predictions, solvers
from fewstep.core.sample import sample

MIXTURE = smooth_mixture()
MADE = {name: entry.make() for name, entry in solvers.listed().items()}
DRAWS = {
    name for name in PLANNED if MADE[name].compile(paths.EDM(), kappa_grid(paths.EDM(), 5.0, 0.1, 12)).draws
} | {"pc", "langevin", "dmcmc"}
BY_TOLERANCE = {"dpm-12", "dpm-23", "dpmpp-12", "dpmpp-23", "ode45"}

# The first (or last) step of order 1 shows only on fine grids: until then the order of the other steps does.
SHOWS_LATE = {
    "t-ab-2", "t-ab-3", "rho-ab-2", "rho-ab-3", "deis", "lms", "ipndm-3", "ipndm-4", "unipc-2", "ghvb",
}  # fmt: skip

# Rules that by their nature read more of a path than sigma/a, so that equal noise levels give other steps.
READ_THE_CLOCK = {
    "t-ab-1", "t-ab-2", "t-ab-3", "deis",  # polynomials in t
    "f-pndm", "fon", "edm",  # inner calls at a fraction of the time
    "reverse-diffusion", "euler-maruyama", "pc", "ir-sde", "ir-ode",  # increments of the SDE in t
    "evodiff",  # mixes with t/t_max
    "ts-ddim", "ts-s-pndm", "ts-f-pndm",  # look a time up
    "langevin",  # its step follows alpha
    "bdia", "bdia-ddim",  # mix two states of different scale
    "dpm-12", "dpm-23", "dpmpp-12", "dpmpp-23",  # control their error in the state's own scale
}  # fmt: skip


def measured(solver, path, steps, exact):
    grid = kappa_grid(path, 5.0, 0.1, steps)
    first, last = path.coefficients(grid[0])[0], path.coefficients(grid[-1])[0]
    got = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=5.0 * start_noise() * first) / last
    return (got - exact).square().mean().sqrt().item()


@pytest.fixture(scope="module")
def exact():
    """Classical Runge-Kutta on d(z/a)/d(log kappa) = kappa·eps."""

    def slope(state, u):
        return state - MIXTURE.x0(state, 1.0, math.exp(u))

    state, u, steps = 5.0 * start_noise(), math.log(5.0), 2000
    h = (math.log(0.1) - u) / steps
    for _ in range(steps):
        k1 = slope(state, u)
        k2 = slope(state + 0.5 * h * k1, u + 0.5 * h)
        k3 = slope(state + 0.5 * h * k2, u + 0.5 * h)
        k4 = slope(state + h * k3, u + h)
        state, u = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), u + h
    return state


@pytest.mark.parametrize("name", [n for n in MADE if n not in DRAWS | BY_TOLERANCE])
def test_order_of_convergence(name, exact):
    """The slope from 40 to 160 steps, or further on, is within 0.15 of what the solver states."""
    # evodiff's published last step fits one end, sigma = 0.002, and converges nowhere else
    solver = solvers.get(name, lower_order_final=False) if name == "evodiff" else MADE[name]
    first = 640 if name in SHOWS_LATE else 40
    coarse, fine = (measured(solver, paths.EDM(), steps, exact) for steps in (first, 4 * first))
    slope = math.log2(coarse / fine) / 2
    assert abs(slope - solver.order) < 0.15, (slope, coarse, fine)


@pytest.mark.parametrize("name", [n for n in MADE if n not in READ_THE_CLOCK])
def test_same_noise_levels_give_the_same_trajectory(name):
    found = []
    for path in (paths.EDM(), paths.VP.linear(), paths.VP.cosine(), paths.RectifiedFlow()):
        grid = kappa_grid(path, 20.0, 0.02, 7)
        first, last = path.coefficients(grid[0])[0], path.coefficients(grid[-1])[0]
        x = 20.0 * first * start_noise()
        found.append(sample(MIXTURE.denoiser(path), path, MADE[name], grid=grid, x=x, seed=3) / last)
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-10


@pytest.mark.parametrize("name", PLANNED)
def test_what_the_network_predicts_does_not_matter(name):
    path = paths.VP.linear()
    grid = kappa_grid(path, 10.0, 0.05, 6, clean=True)
    x = 2.0 * start_noise()
    plain = sample(MIXTURE.denoiser(path), path, MADE[name], grid=grid, x=x)
    for prediction in ("x0", "eps", "v", "score", "velocity"):
        asked = Asked(MIXTURE.denoiser(path), path, predictions.get(prediction))
        got = sample(asked, solver=MADE[name], grid=grid, x=x)
        assert (
            got - plain
        ).abs().max() < 1e-12 * 100  # 100: condition of D at kappa = 10, and of the weights
        assert len(asked.calls) == MADE[name].compile(path, grid).nfe


@pytest.mark.parametrize("name", MADE)
def test_a_sample_does_not_depend_on_its_batch_mates(name):
    path = paths.EDM()
    grid = kappa_grid(path, 5.0, 0.1, 6)
    x = 5.0 * start_noise(batch=3)
    together = sample(MIXTURE.denoiser(path), path, MADE[name], grid=grid, x=x, seed=(4, 5, 6))
    for i in range(3):
        alone = sample(MIXTURE.denoiser(path), path, MADE[name], grid=grid, x=x[i : i + 1], seed=(4 + i,))
        assert (alone[0] - together[i]).abs().max() < 1e-12


@pytest.mark.parametrize("name", PLANNED)
def test_plan_counts_its_calls_and_survives_json(name):
    path = paths.VP.linear()
    plan = MADE[name].compile(path, grids.logsnr(path, 7))
    assert Plan.from_json(plan.to_json()) == plan
    calls = 0

    def denoise(x, t):
        nonlocal calls
        calls += 1
        return MIXTURE.denoiser(path)(x, t)

    sample(denoise, path, plan, x=start_noise())
    assert calls == plan.nfe


@pytest.mark.parametrize("name", MADE)
def test_few_steps_and_a_table_are_no_problem(name):
    """One step, two steps, a table of 1000 betas and one with zero terminal SNR: finite, right shape."""
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    for path in (paths.VP.from_betas(betas), paths.VP.from_betas(paths.zero_terminal_snr(betas))):
        for steps in (1, 2, 5):
            got = sample(MIXTURE.denoiser(path), path, MADE[name], steps, "trailing", x=start_noise())
            assert torch.isfinite(got).all()
            assert got.shape == (4, 3, 2, 2)


@pytest.mark.parametrize("name", MADE)
def test_line_of_the_table_is_complete(name):
    entry = solvers.listed()[name]
    assert name == name.lower()
    assert entry.paper
    assert entry.calls
    assert entry.shines
    assert "Reference:" in (type(MADE[name]).__doc__ or "")
