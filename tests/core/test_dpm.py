"""The DPM-Solver family: orders of convergence, invariances, budgets, draws, and its grids."""

import math
from itertools import pairwise

import pytest
import torch
from scipy.stats import beta as beta_distribution
from tests.core.goldens import Golden, stable_diffusion_path
from tests.core.solver_problems import Asked, Mixture, kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths, predictions, solvers
from fewstep.core.plan import Plan
from fewstep.core.sample import sample
from fewstep.core.solvers import DPMSolverPP
from fewstep.core.solvers.dpm import DPMSolver
from fewstep.core.solvers.dpm_ancestral import DPMSolverPPSDE
from fewstep.core.solvers.dpm_fast import FastSingleStep
from fewstep.core.solvers.exponential import lagrange_weights
from fewstep.core.solvers.singlestep import SingleStep

MIXTURE = smooth_mixture()
PATHS = {"edm": paths.EDM(), "vp": paths.VP.linear(), "flow": paths.RectifiedFlow()}


def multistep(order, correction="midpoint", variant="official"):
    return [make(order, correction, variant, lower_order_below=0) for make in (DPMSolver, DPMSolverPP)]


FIXED = [
    *multistep(1),
    *multistep(2),
    *multistep(2, "taylor"),
    *multistep(3),
    *multistep(3, variant="exact"),
    *(SingleStep(o, f, c) for o in (2, 3) for f in ("noise", "data") for c in ("midpoint", "taylor")),
    *(FastSingleStep(3, f) for f in ("noise", "data")),
    FastSingleStep(2, nodes="grid"),
    DPMSolverPPSDE(eta=0.0),
]


def on_edm(x, t):
    return MIXTURE.x0(x, 1.0, t)


@pytest.fixture(scope="module")
def exact():
    return sample(
        on_edm,
        paths.EDM(),
        SingleStep(3, "data", "taylor"),
        grid=kappa_grid(paths.EDM(), 5.0, 0.1, 240),
        x=5.0 * start_noise(),
    )


@pytest.mark.parametrize("solver", FIXED, ids=str)
def test_order_of_convergence(solver, exact):
    path, errors = paths.EDM(), []
    # steps with two or three calls come sooner to their slope
    pair = (24, 72) if isinstance(solver, SingleStep | DPMSolverPPSDE) else (40, 160)
    for steps in pair:
        grid = kappa_grid(path, 5.0, 0.1, steps)
        got = sample(on_edm, path, solver, grid=grid, x=5.0 * start_noise())
        errors.append((got - exact).square().mean().sqrt().item())
    slope = math.log(errors[0] / errors[1]) / math.log(pair[1] / pair[0])
    assert abs(slope - solver.order) < 0.15, (slope, errors)


def test_the_exact_third_order_step_is_that_of_the_lagrange_polynomial():
    grid = kappa_grid(paths.EDM(), 5.0, 0.1, 4)
    lam = [-math.log(sigma) for sigma in grid]
    for solver in multistep(3, variant="exact"):
        plan = solver.compile(paths.EDM(), grid)
        got = {term.index: term.coefficient for term in plan.rows[-1].terms if term.kind in "de"}
        h = lam[4] - lam[3]
        nodes = [(lam[j] - lam[3]) / h for j in (3, 2, 1)]
        sign, z = (h, -h) if solver.form == "data" else (-grid[4] * h, h)
        for index, weight in zip((3, 2, 1), lagrange_weights(nodes, z), strict=True):
            assert got[index] == pytest.approx(sign * weight, rel=1e-12)


INVARIANT = [*FIXED, SingleStep(2, eta=0.7), solvers.get("dpmpp-sde"), DPMSolver(2, eta=1.0)]


@pytest.mark.parametrize("solver", INVARIANT, ids=str)
def test_the_path_and_the_prediction_do_not_matter(solver):
    found = []
    for path in PATHS.values():
        grid = kappa_grid(path, 20.0, 0.02, 7)
        first, last = path.coefficients(grid[0])[0], path.coefficients(grid[-1])[0]
        x = 20.0 * first * start_noise()
        for denoise in (
            MIXTURE.denoiser(path),
            Asked(MIXTURE.denoiser(path), path, predictions.get("v")),
        ):
            draws = iter([start_noise(seed=s) for s in range(1, 20)])
            got = sample(denoise, path, solver, grid=grid, x=x, noise=lambda like, d=draws: next(d))
            found.append(got / last)
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-10


@pytest.mark.parametrize("solver", [*INVARIANT, FastSingleStep(denoise_to_zero=True)], ids=str)
def test_plans_survive_json_and_end_clean(solver):
    for path in (paths.RectifiedFlow(), paths.EDM(), paths.VP.cosine(t_max=1.0)):
        for steps in (1, 2, 3, 6, 7):
            grid = grids.uniform(path, steps)
            plan = solver.compile(path, grid)
            assert Plan.from_json(plan.to_json()) == plan
            assert [(term.kind, term.coefficient) for term in plan.rows[-1].terms] == [("d", 1.0)]
            if isinstance(solver, FastSingleStep):
                assert plan.nfe == steps


def test_fast_orders():
    fast = FastSingleStep()
    assert [fast.orders(n) for n in (1, 2, 3, 4, 5, 6, 9)] == [
        [1], [2], [2, 1], [3, 1], [3, 2], [3, 2, 1], [3, 3, 2, 1],
    ]  # fmt: skip
    assert [FastSingleStep(2).orders(n) for n in (3, 4)] == [[2, 1], [2, 2]]
    assert FastSingleStep(budget="fixed").orders(7) == [3, 3, 1]
    with pytest.raises(ValueError, match=r"budget \(2, 3\) makes 5 calls, the grid has 6 intervals"):
        FastSingleStep(budget=(2, 3)).compile(paths.EDM(), kappa_grid(paths.EDM(), 5.0, 0.1, 6))


def test_fast_asks_at_the_grid_or_equally_in_log_snr():
    path = paths.EDM()
    grid = grids.karras(path, 6, final="t_min")
    asked = {row.t for row in FastSingleStep(nodes="grid").compile(path, grid).rows if row.ask}
    assert asked == set(grid[:-1])
    outer = [float(row.t) for row in FastSingleStep().compile(path, grid).rows if row.step]  # type: ignore[arg-type]
    assert [math.log(a / b) for a, b in pairwise(outer)] == pytest.approx(
        [math.log(grid[0] / grid[-1]) / 3] * 3
    )


@pytest.mark.parametrize("make", [DPMSolver, DPMSolverPP])
def test_encode_leads_back(make):
    """The way back has the same rule; it is not the inverse map, but agrees with it as the steps vanish."""
    path, x, gaps = paths.VP.linear(), start_noise(), []
    for steps in (40, 160):
        solver, grid = make(2, lower_order_below=0), grids.logsnr(path, steps, final="t_min")
        y = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=x)
        back = sample(MIXTURE.denoiser(path), solver=solver.encode(path, grid), x=y)
        gaps.append((back - x).abs().max().item())
    assert gaps[1] < 1e-2
    assert gaps[1] < gaps[0] / 10
    with pytest.raises(ValueError, match="end it above, such as with final='t_min'"):
        make().encode(path, grids.logsnr(path, 4))
    with pytest.raises(ValueError, match="encode needs eta = 0"):
        make(eta=1.0).encode(path, grid)


@pytest.mark.parametrize(
    "solver",
    [
        DPMSolver(2, eta=1.0),
        DPMSolver(3, "taylor", eta=0.5),
        SingleStep(2, "noise", eta=1.0),
        SingleStep(2, eta=0.5),
        DPMSolverPPSDE(),
    ],
    ids=str,
)
def test_draws_keep_the_variance(solver):
    """On N(0.7, 0.6²) the result is affine in start and draws, and the bias of its variance vanishes."""
    one, bias = torch.ones(1, dtype=torch.float64), []
    data, path = Mixture(0.7 * one[:, None], 0.6 * one, one), paths.EDM()
    for steps in (25, 100):
        grid = kappa_grid(path, 80.0, 0.002, steps, clean=True)
        unit = torch.eye(solver.compile(path, grid).draws + 2, dtype=torch.float64)
        draws = iter(unit[:, 2:].T.unsqueeze(-1))
        got = sample(
            data.denoiser(path),
            path,
            solver,
            grid=grid,
            x=80.0 * unit[:, 1:2],
            noise=lambda like, d=draws: next(d),
        )
        assert abs(got[0].item() - 0.7) < 1e-2
        bias.append(abs((got[1:] - got[0]).square().sum().item() / 0.36 - 1.0))
    assert math.log2(bias[0] / bias[1]) / 2 > solver.order - 0.35, bias


def test_sigma_grids():
    path, edm = stable_diffusion_path(), paths.EDM(sigma_min=0.02)
    assert grids.get("exponential")(edm, 5) == pytest.approx(grids.logsnr(edm, 5), rel=1e-12)
    ramp = [0.02 * (80.0 / 0.02) ** ((1 - i / 3) ** 2) for i in range(4)]
    assert grids.get("exponential")(edm, 4, rho=2.0)[:-1] == pytest.approx(ramp, rel=1e-12)  # type: ignore[call-arg]
    share = beta_distribution.ppf([1.0, 0.75, 0.5, 0.25, 0.0], 0.6, 0.6)
    ratio = [path.coefficients(t)[2] / path.coefficients(t)[0] for t in grids.get("beta")(path, 5)[:-1]]
    assert ratio == pytest.approx((ratio[-1] + share * (ratio[0] - ratio[-1])).tolist(), rel=1e-9)
    golden = Golden("diffusers_schedulers")
    for name, option in (("lu", "use_lu_lambdas"), ("exponential", "use_exponential_sigmas")):
        case = next(c for c in golden.cases if c["config"].get(option) and "DPMSolver" in c["scheduler"])
        times = grids.get(name)(path, case["steps"])
        if name == "lu":
            assert list(times[:-1]) == golden.of(case, "out.timesteps").tolist()
        else:
            wanted = -golden.of(case, "out.sigmas")[:-1].log()
            got = torch.tensor([path.half_log_snr(t) for t in times[:-1]])
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    assert grids.get("lu")(paths.ResShift(), 4) == (3, 2, 1, 0, -1)
    assert grids.get("beta")(path, 5, quantity="time") == (*(999 * share // 1), -1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.get("dpm-2m", solver_order=4), "solver_order must be 1, 2 or 3, not 4"),
        (lambda: DPMSolver(noise_scale=-1.0), "noise_scale must be at least 0, not -1.0"),
        (lambda: SingleStep(4), "order must be 1, 2 or 3, not 4"),
        (lambda: SingleStep(form="x0"), "form must be 'data' or 'noise', not 'x0'"),
        (lambda: SingleStep(r2=0.5), "r2 is not used at order 2"),
        (lambda: SingleStep(3, r1=0.7), "0 < r1 < r2 < 1, they are 0.7, 0.6"),
        (lambda: SingleStep(eta=2.0), r"eta must lie in \[0, 1\], not 2.0"),
        (lambda: FastSingleStep(4), "solver_order must be 1, 2 or 3, not 4"),
        (lambda: FastSingleStep(budget="slow"), "budget must be 'fast' or 'fixed', not 'slow'"),
        (lambda: FastSingleStep(budget=(4,)), r"budget must hold orders 1, 2 or 3, it is \(4,\)"),
        (lambda: FastSingleStep(nodes="time"), "nodes must be 'logsnr' or 'grid', not 'time'"),
        (lambda: DPMSolverPPSDE(r=1.0), "r must lie between 0 and 1, not 1.0"),
        (lambda: grids.get("beta")(paths.EDM(), 3, quantity="x"), "quantity must be 'ratio' or 'time'"),  # type: ignore[call-arg]
        (lambda: grids.get("exponential")(paths.EDM(), 3, rho=0.0), "rho must be a finite number above 0"),  # type: ignore[call-arg]
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
