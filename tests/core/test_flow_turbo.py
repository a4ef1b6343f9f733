"""FlowTurbo: the published chains, its calls, its order, and the refiner."""

import itertools
import math

import pytest
import torch
from tests.core.goldens import Golden, assert_relative
from tests.core.solver_problems import kappa_grid, smooth_mixture, start_noise

from fewstep.core import Denoiser, grids, paths, sample, solvers
from fewstep.core.solvers.flow_turbo import FlowTurbo, RefinedFlowTurbo

GOLDEN = Golden("misc_official")
FLOW = paths.RectifiedFlow()


def velocity_network(mixture):
    """The exact velocity noise − data; their clock, 1 − t, is clamped to [1e-6, 1 − 1e-6]."""

    def net(x, t):
        u = (t / 1000).clamp(1e-6, 1 - 1e-6).double()
        x0 = mixture.x0(x, 1 - u, u)
        u = u.reshape(-1, *[1] * (x.ndim - 1))
        return (x - (1 - u) * x0) / u - x0

    return Denoiser(net, FLOW, "velocity")


@GOLDEN.each(lambda case: case["kind"] == "flowturbo")
def test_official_chain(case):
    """Their time runs from noise to data with v = data − noise; the refiner is 0.1·tanh(x − v)."""
    counts = {name: case[name] for name in ("n_heun", "n_pseudo", "n_refine")}
    steps = sum(counts.values())
    solver = RefinedFlowTurbo(lambda x, t, v: -0.1 * torch.tanh(x + v), **counts)
    states = []
    sample(
        velocity_network(GOLDEN.mixture()),
        solver=solver,
        grid=[1 - i / steps for i in range(steps)] + [0.0],
        x=GOLDEN.z,
        on_step=lambda info: states.append(info.x.clone()),
    )
    assert_relative(torch.stack(states), GOLDEN.of(case, "out.traj"), 1e-9)


@GOLDEN.each(lambda case: case["kind"] == "flowturbo")
def test_the_plan_takes_the_same_network_blocks(case):
    """Up to the first refiner block the plan form gives their states as well."""
    counts = {name: case[name] for name in ("n_heun", "n_pseudo")}
    steps, blocks = sum(case[name] for name in ("n_heun", "n_pseudo", "n_refine")), sum(counts.values())
    got = sample(
        velocity_network(GOLDEN.mixture()),
        solver=FlowTurbo(**counts),
        grid=[1 - i / steps for i in range(blocks + 1)],
        x=GOLDEN.z,
    )
    wanted = GOLDEN.of(case, "out.traj")
    assert_relative(got, wanted[wanted.shape[0] - 1 - case["n_refine"]], 1e-9)


def test_correcting_at_the_clean_end_is_as_published():
    """With last="correct" a chain of Heun blocks is Heun's method to the very end, for a velocity network."""
    mixture = GOLDEN.mixture()
    net = velocity_network(mixture)
    grid = (1.0, 0.6, 0.3, 0.0)
    got = sample(net, solver=FlowTurbo(3, 0, "correct"), grid=grid, x=GOLDEN.z)
    x = GOLDEN.z
    for t, s in itertools.pairwise(grid):
        first = net.predict(x, t)
        second = net.predict(x + (s - t) * first, s)
        x = x + 0.5 * (s - t) * (first + second)
    assert_relative(got, x, 1e-9)  # at sigma = 0 the velocity of the clamped time loses digits
    with pytest.raises(ValueError, match="does not determine eps at t=0"):
        sample(mixture.denoiser(FLOW), FLOW, FlowTurbo(last="correct"), 3, "uniform", x=GOLDEN.z)


@pytest.mark.parametrize("path", [paths.EDM(), FLOW], ids=["edm", "flow"])
def test_order_of_convergence(path):
    mixture, x = smooth_mixture(), start_noise()
    fine = kappa_grid(path, 5.0, 0.1, 640)
    scale = path.coefficients(fine[0])[0]
    exact = sample(mixture.denoiser(path), path, "heun", grid=fine, x=5.0 * scale * x)
    errors = []
    for steps in (20, 80):
        grid = kappa_grid(path, 5.0, 0.1, steps)
        got = sample(mixture.denoiser(path), path, "flow-turbo", grid=grid, x=5.0 * scale * x)
        errors.append((got - exact).square().mean().sqrt().item())
    assert abs(math.log2(errors[0] / errors[1]) / 2 - 2.0) < 0.15, errors


@pytest.mark.parametrize(
    ("n_heun", "n_pseudo", "calls"), [(1, None, 9), (3, None, 11), (3, 5, 11), (8, 0, 15)]
)
def test_calls(n_heun, n_pseudo, calls):
    plan = FlowTurbo(n_heun, n_pseudo).compile(FLOW, grids.uniform(FLOW, 8))
    assert plan.nfe == calls
    assert plan.steps == 8
    inner = FlowTurbo(n_heun, n_pseudo).compile(FLOW, grids.uniform(FLOW, 8, final="t_min"))
    assert inner.nfe == calls + (n_pseudo == 0)


def still(x, t, velocity):
    return torch.zeros_like(x)


def test_a_refiner_that_adds_nothing_keeps_the_velocity():
    """Then a refiner block is a plain step with the last velocity, whatever the path."""
    for path in (paths.VP.linear(), FLOW):
        grid = kappa_grid(path, 4.0, 0.2, 4)
        states = []
        sample(
            smooth_mixture().denoiser(path),
            path,
            RefinedFlowTurbo(still, n_refine=2),
            grid=grid,
            x=start_noise(),
            on_step=lambda info, path=path, states=states: states.append(
                info.x / sum(path.coefficients(float(info.t)))
            ),
        )
        u = [path.coefficients(t)[2] / sum(path.coefficients(t)) for t in grid]
        rates = [(states[i] - states[i - 1]) / (u[i + 1] - u[i]) for i in (2, 3)]
        assert (rates[0] - rates[1]).abs().max() < 1e-12


def test_the_network_is_not_asked_in_refiner_blocks():
    calls, asked = [], []
    denoise = smooth_mixture().denoiser(FLOW)

    def counted(x, t):
        calls.append(t)
        return denoise(x, t)

    def refiner(x, t, v):
        asked.append(t)
        return torch.zeros_like(x)

    solver = RefinedFlowTurbo(refiner, n_heun=2, n_pseudo=3, n_refine=2)
    grid = grids.uniform(FLOW, 7)
    sample(counted, FLOW, solver, grid=grid, x=start_noise())
    assert calls == [grid[0], grid[1], grid[1], grid[2], grid[3], grid[4], grid[5]]
    assert asked == [grid[5], grid[6], grid[6], grid[7]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FlowTurbo(n_heun=0), "n_heun must be at least 1, not 0"),
        (lambda: FlowTurbo(n_pseudo=-1), "n_pseudo must not be negative, it is -1"),
        (lambda: solvers.get("flow-turbo", last="skip"), "last must be 'predict' or 'correct', not 'skip'"),
        (lambda: RefinedFlowTurbo(still, n_refine=0), "n_refine must be at least 1, not 0"),
        (lambda: FlowTurbo(2, 3).compile(FLOW, grids.uniform(FLOW, 4)), "must fill the 4 steps"),
        (lambda: _sampled(RefinedFlowTurbo(still, 2, 2, 1)), "must fill the 3 steps"),
        (lambda: _sampled(RefinedFlowTurbo(still, n_refine=4)), "must fill the 0 steps"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _sampled(solver):
    return sample(smooth_mixture().denoiser(FLOW), FLOW, solver, 4, "uniform", x=start_noise())
