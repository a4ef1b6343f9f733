"""Solvers that draw noise: published posteriors, and the distribution that they sample."""

import math

import pytest
import torch
from tests.core.solver_problems import Mixture, kappa_grid

from fewstep.core import grids, paths, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers import DPMSolverPP, FirstOrder, Heun


def test_ancestral_is_the_ddpm_posterior():
    betas = torch.linspace(1e-3, 0.2, 20, dtype=torch.float64)
    path = paths.VP.from_betas(betas)
    abar = torch.cumprod(1 - betas, 0)
    plan = solvers.get("ddpm").compile(path, [float(t) for t in range(19, -2, -1)])
    for k, t in enumerate(range(19, 0, -1)):
        row = {term.kind: term.coefficient for term in plan.rows[k + 1].terms}
        before, now, beta = abar[t - 1], abar[t], betas[t]
        assert row["d"] == pytest.approx(float(before.sqrt() * beta / (1 - now)), rel=1e-11)
        assert row["x"] == pytest.approx(float((1 - beta).sqrt() * (1 - before) / (1 - now)), rel=1e-11)
        assert row["n"] == pytest.approx(float((beta * (1 - before) / (1 - now)).sqrt()), rel=1e-11)
    assert [term.kind for term in plan.rows[-1].terms] == ["d"]
    large = FirstOrder(1.0, "large").compile(path, [float(t) for t in range(19, -2, -1)])
    for small_row, large_row, t in zip(plan.rows[1:-1], large.rows[1:-1], range(19, 0, -1), strict=True):
        assert large_row.terms[:2] == small_row.terms[:2]
        assert large_row.terms[2].coefficient == pytest.approx(float(betas[t].sqrt()), rel=1e-11)
    assert large.rows[-1] == plan.rows[-1]


def test_ancestral_is_the_resshift_posterior_and_free_of_y():
    path = paths.ResShift(steps=4)
    plan = solvers.get("ancestral").compile(path, (3.0, 2.0, 1.0, 0.0, -1.0))
    eta = [path.coefficients(float(t))[1] for t in range(4)]
    for k, t in enumerate((3, 2, 1)):
        row = {term.kind: term.coefficient for term in plan.rows[k + 1].terms}
        assert set(row) == {"x", "d", "n"}
        assert row["x"] == pytest.approx(eta[t - 1] / eta[t], rel=1e-12)
        assert row["d"] == pytest.approx((eta[t] - eta[t - 1]) / eta[t], rel=1e-12)
        variance = path.kappa**2 * eta[t - 1] / eta[t] * (eta[t] - eta[t - 1])
        assert row["n"] == pytest.approx(variance**0.5, rel=1e-12)


def test_sde_with_infinite_first_step_forgets_the_start():
    plan = DPMSolverPP(2, eta=1.0).compile(paths.RectifiedFlow(), (1.0, 0.5, 0.0))
    assert {term.kind: term.coefficient for term in plan.rows[1].terms} == {"d": 0.5, "n": 0.5}


STOCHASTIC = {
    "ancestral": FirstOrder(1.0),
    "ancestral half": FirstOrder(0.5),
    "dpmpp-1 sde": DPMSolverPP(1, eta=1.0),
    "dpmpp-2m sde": DPMSolverPP(2, eta=1.0),
    "dpmpp-2m sde taylor": DPMSolverPP(2, "taylor", eta=0.7),
    "dpmpp-3m sde": DPMSolverPP(3, eta=1.0),
    "heun churn": Heun(churn=10.0),
}


def output_variance(solver, path, grid, data):
    """Variance of the result on Gaussian data, exactly: it is affine in the start and in every draw."""
    draws = solver.compile(path, grid).draws
    unit = torch.eye(draws + 2, dtype=torch.float64)  # row 0: nothing, row 1: the start, then one row a draw
    columns = iter(unit[:, 2:].T.unsqueeze(-1))
    x = path.coefficients(grid[0])[2] * unit[:, 1:2]
    got = sample(data.denoiser(path), path, solver, grid=grid, x=x, noise=lambda like: next(columns))
    offset = got[0]
    return offset.item(), (got[1:] - offset).square().sum().item()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_solvers_keep_mean_and_variance(name):
    """On N(m, s²) data the bias of the variance vanishes with the order of the solver."""
    m, s = 0.7, 0.6
    one = torch.ones(1, dtype=torch.float64)
    data = Mixture(m * one[:, None], s * one, one)
    path, solver = paths.EDM(), STOCHASTIC[name]
    bias = []
    for steps in (40, 160):
        mean, variance = output_variance(solver, path, kappa_grid(path, 80.0, 0.002, steps, clean=True), data)
        assert abs(mean - m) < 0.02
        bias.append(abs(variance / s**2 - 1))
    assert bias[-1] < (0.1 if solver.order == 1 else 0.01)
    order = min(solver.order, 2)  # as for the order of convergence above
    assert math.log2(bias[0] / bias[-1]) / 2 > order - 0.35, bias


def energy_distance(p, q):
    """2·E|p - q| - E|p - p'| - E|q - q'| of two sets of points."""
    n, m = len(p), len(q)
    within = torch.pdist(p).sum() * 2 / (n * (n - 1)) + torch.pdist(q).sum() * 2 / (m * (m - 1))
    return (2 * torch.cdist(p, q).mean() - within).item()


@pytest.mark.parametrize("name", ["ancestral", "dpmpp-2m sde"])
def test_stochastic_solvers_sample_the_mixture(name):
    """Energy distance to exact draws, against its spread over pairs of exact sets of the same size."""
    k, j = torch.arange(3.0)[:, None], torch.arange(6.0)
    mean = 1.5 * torch.cos(1.7 * (k + 1) + 0.9 * j * (k + 2)).double()
    data = Mixture(mean, torch.tensor([0.3, 0.4, 0.5]).double(), torch.tensor([0.2, 0.3, 0.5]).double())
    generator = torch.Generator().manual_seed(5)
    sets = [data.draw(1000, (6,), generator) for _ in range(9)]
    spread = [energy_distance(sets[2 * i], sets[2 * i + 1]) for i in range(4)]
    path = paths.EDM()
    got = sample(
        data.denoiser(path), path, STOCHASTIC[name], 40, "logsnr", shape=(1000, 6), dtype=torch.float64
    )
    limit = sum(spread) / 4 + 6 * torch.tensor(spread).std().item()
    assert energy_distance(got, sets[8]) < limit
    assert energy_distance(got[:, :3].repeat(1, 2), sets[8]) > limit  # the measure sees a wrong distribution


def test_heun_churn_does_not_leave_the_path():
    path = paths.RectifiedFlow()
    plan = Heun(churn=1e9).compile(path, grids.uniform(path, 5))
    assert plan.rows[0].t == 1.0
    assert all(isinstance(row.t, float) and row.t <= 1.0 for row in plan.rows)
    assert plan.draws == 4  # none at a = 0
