"""Momentum samplers: the published trajectories, their own rules, orders, bad input."""

import math

import pytest
import torch
from tests.core.goldens import Golden, assert_relative, official_path
from tests.core.solver_problems import kappa_grid, smooth_mixture, start_noise
from tests.core.test_solvers import reference

from fewstep.core import paths, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers import DPMSolverPP
from fewstep.core.solvers.momentum import Momentum, velocity_weights
from fewstep.core.solvers.unipc import UniPC
from fewstep.core.solvers.unipc_momentum import DPMSolverPPHeavyBall, UniPCHeavyBall

GOLDEN = Golden("momentum_official")
MIXTURE = smooth_mixture()


@GOLDEN.each()
def test_momentum_official(case):
    path = official_path("discrete_sd")
    # the last step of the published wrapper goes to index 0 of the table, not to the clean end
    grid = (*GOLDEN.of(case, "out.timesteps").double().tolist(), 0.0)
    solver = Momentum(case["method"].lower(), case["order"])
    states = []
    got = sample(
        GOLDEN.mixture().denoiser(path),
        path,
        solver,
        grid=grid,
        x=GOLDEN.z,
        on_step=lambda info: states.append(info.x.clone()),
    )
    assert_relative(got, GOLDEN.of(case, "out.x"), 1e-9)
    assert_relative(torch.stack(states), GOLDEN.of(case, "out.traj"), 1e-9)


def test_every_case_is_used():
    assert GOLDEN.unused() == []


PUBLISHED_WEIGHTS = {  # Wizadwongsa et al. 2024, times beta
    2: lambda b: [(2 + b) / 2, -(2 - b) / 2],
    3: lambda b: [(18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12],
    5: lambda b: [
        (1650 + 251 * b) / 720,
        -(3420 - 646 * b) / 720,
        (2880 - 264 * b) / 720,
        -(1380 - 106 * b) / 720,
        (270 - 19 * b) / 720,
    ],
}


@pytest.mark.parametrize("count", PUBLISHED_WEIGHTS)
@pytest.mark.parametrize("beta", [0.25, 0.8, 1.0])
def test_weights_of_the_velocities_are_the_published_ones(count, beta):
    published = [w / beta for w in PUBLISHED_WEIGHTS[count](beta)]
    assert velocity_weights(count, beta) == pytest.approx(published, rel=1e-13)


@pytest.mark.parametrize("kind", ["hb", "nt", "ghvb"])
def test_a_whole_order_has_no_momentum(kind):
    path, grid = paths.VP.linear(), (1.0, 0.8, 0.6, 0.4, 0.2, 1e-3)
    found = Momentum(kind, 3.0).compile(path, grid).rows
    assert found == Momentum("ghvb", 3.0).compile(path, grid).rows
    assert len(found) == len(grid)


SLOPES = {
    "hb-1.8": (solvers.get("hb"), 1),
    "nt-2.5": (Momentum("nt", 2.5), 1),
    "ghvb-0.5": (Momentum("ghvb", 0.5), 1),
    "ghvb-1.8": (Momentum("ghvb", 1.8), 2),
    "ghvb-2.5 data": (Momentum("ghvb", 2.5, form="data"), 2),
    "unipc-hb": (UniPCHeavyBall(), 1),
    "unipc-hb official": (UniPCHeavyBall(momentum="official"), 1),
    "dpmpp-2m-hb": (DPMSolverPPHeavyBall(), 1),
}


@pytest.fixture(scope="module")
def exact():
    return reference(paths.EDM(), 5.0, 0.1, 5.0 * start_noise())


@pytest.mark.parametrize("name", SLOPES)
def test_order_of_convergence(name, exact):
    solver, order = SLOPES[name]
    assert solver.order == order
    path, errors = paths.EDM(), []
    for steps in (40, 160):
        grid = kappa_grid(path, 5.0, 0.1, steps)
        got = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=5.0 * start_noise())
        errors.append((got - exact).square().mean().sqrt().item())
    assert abs(math.log2(errors[0] / errors[1]) / 2 - order) < 0.15, errors


def test_stated_orders_without_momentum():
    assert [Momentum("ghvb", order).order for order in (1.0, 2.0, 5.0)] == [1, 2, 2]
    assert UniPCHeavyBall(beta=1.0, lower_order_final=False).order == 3
    assert DPMSolverPPHeavyBall(beta=1.0).order == 2


GRID = (1.0, 0.85, 0.7, 0.5, 0.3, 0.1, 0.0)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("path", [paths.VP.cosine(t_max=1.0), paths.RectifiedFlow()], ids=["cosine", "flow"])
def test_beta_1_is_the_solver_without_momentum(order, path):
    def run(solver):
        return sample(MIXTURE.denoiser(path), path, solver, grid=GRID, x=start_noise())

    heavy = UniPCHeavyBall(order, beta=1.0)
    assert (run(heavy) - run(UniPC(order))).abs().max() < 1e-13
    assert (run(DPMSolverPPHeavyBall(1.0)) - run(DPMSolverPP(2))).abs().max() < 1e-13


@pytest.mark.parametrize("momentum", ["exact", "official"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_with_heavy_ball_step_by_step(momentum, order):
    """The rule written out with tensors: corrected states, velocities in the units of each form."""
    path, grid, beta = paths.VP.linear(), (1.0, 0.8, 0.65, 0.5, 0.3, 0.15, 0.01), 0.6
    points = [path.coefficients(t) for t in grid]
    denoise = MIXTURE.denoiser(path)
    plain = UniPC(order)
    state, values, velocities = start_noise(), [denoise(start_noise(), grid[0])], {}

    def move(which, k, mean):
        """From the corrected state at grid[k] along the velocity of the predictor or of the corrector."""
        (a, _, sigma), (a_next, _, sigma_next) = points[k], points[k + 1]
        unit = sigma_next if momentum == "official" else 1.0
        old = velocities.get(which, mean / unit)
        new = (1 - beta) * old + beta * mean / unit
        if momentum == "official" and which == "predictor":
            new = mean / unit
        velocities[which] = new
        return sigma_next / sigma * state + (a_next - sigma_next * a / sigma) * unit * new

    for k in range(len(grid) - 1):
        count = min(order, k + 1, len(grid) - 1 - k)
        predicted = move("predictor", k, _mean(plain, path, grid, k, values, count, corrector=False))
        if k == len(grid) - 2:
            break
        values.append(denoise(predicted, grid[k + 1]))
        state = move("corrector", k, _mean(plain, path, grid, k, values, count, corrector=True))
    solver = UniPCHeavyBall(order, beta=beta, momentum=momentum)
    got = sample(denoise, path, solver, grid=grid, x=start_noise())
    assert (got - predicted).abs().max() < 1e-12


def _mean(plain, path, grid, k, values, count, corrector):
    """sum_j w_j·x0_j/sum_j w_j by the published system for bh2, newest value last in `values`."""
    lams = [path.half_log_snr(t) for t in grid]
    h = lams[k + 1] - lams[k]
    used = list(range(k - 1, k - count, -1)) + ([k + 1] if corrector else [])
    if not used:
        return values[k]
    r = torch.tensor([(lams[j] - lams[k]) / h for j in used], dtype=torch.float64)
    whole = math.expm1(-h)
    phi, right = whole / -h - 1.0, []
    for j in range(1, len(used) + 1):
        right.append(phi * math.factorial(j) / whole)
        phi = phi / -h - 1.0 / math.factorial(j + 1)
    powers = r ** torch.arange(len(used))[:, None]
    rho = torch.linalg.solve(powers, torch.tensor(right, dtype=torch.float64))
    rho = torch.full_like(rho, 0.5) if len(used) == 1 else rho
    return values[k] + sum(c / s * (values[j] - values[k]) for c, s, j in zip(rho, r, used, strict=True))


def test_the_published_units_do_not_reproduce_a_constant():
    path, grid = paths.VP.linear(), (1.0, 0.8, 0.6, 0.4, 0.2, 1e-3)
    a, _, sigma = path.coefficients(grid[-1])
    start = path.coefficients(grid[0])
    eps = start_noise()
    wanted = a * 0.7 + sigma * eps

    def result(momentum):
        solver = UniPCHeavyBall(momentum=momentum)
        x = start[0] * 0.7 + start[2] * eps
        return sample(lambda z, t: torch.full_like(z, 0.7), path, solver, grid=grid, x=x)

    assert (result("exact") - wanted).abs().max() < 1e-13
    assert (result("official") - wanted).abs().max() > 1e-4


@pytest.mark.parametrize("form", ["noise", "data"])
@pytest.mark.parametrize("clean_step", ["ddim", "full"])
def test_ends_are_finite_on_every_kind_of_path(form, clean_step):
    for path in (paths.VP.cosine(t_max=1.0), paths.RectifiedFlow(), paths.EDM()):
        grid = (path.t_max, *(path.t_max * f for f in (0.8, 0.5, 0.2, 0.05)), path.t_clean)
        for kind in ("hb", "nt", "ghvb"):
            plan = Momentum(kind, 2.5, form, clean_step).compile(path, grid)
            last = {(term.kind, term.index): term.coefficient for term in plan.rows[-1].terms}
            assert (last == {("d", len(grid) - 2): 1.0}) == (clean_step == "ddim")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Momentum("adam"), "kind must be 'hb' or 'nt' or 'ghvb', not 'adam'"),
        (
            lambda: solvers.get("ghvb", solver_order=5.5),
            "solver_order must be above 0 and at most 5, not 5.5",
        ),
        (lambda: solvers.get("hb", solver_order=0.0), "solver_order must be above 0 and at most 5, not 0.0"),
        (lambda: solvers.get("nt", form="eps"), "form must be 'data' or 'noise', not 'eps'"),
        (lambda: solvers.get("nt", clean_step="zero"), "clean_step must be .*not 'zero'"),
        (lambda: solvers.get("unipc-hb", beta=0.0), "beta must be above 0 and at most 1, not 0.0"),
        (lambda: solvers.get("unipc-hb", momentum="nt"), "momentum must be 'exact' or 'official', not 'nt'"),
        (lambda: solvers.get("unipc-hb", solver_order=5), "solver_order must be 1, 2, 3 or 4, not 5"),
        (lambda: solvers.get("dpmpp-2m-hb", beta=1.5), "beta must be above 0 and at most 1, not 1.5"),
        (lambda: DPMSolverPPHeavyBall(lower_order_below=-1), "lower_order_below must not be negative"),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
