"""EDM's two published samplers, on a closed-form denoiser."""

import itertools
import math

import pytest
import torch
from tests.core.goldens import Golden, assert_relative
from tests.core.solver_problems import kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths
from fewstep.core.grids.edm import vp_betas
from fewstep.core.sample import sample
from fewstep.core.solvers import get

GOLDEN = Golden("edm_official")
MIXTURE = smooth_mixture()
VP_RANGE = tuple(math.sqrt(math.expm1(0.5 * 19.9 * t * t + 0.1 * t)) for t in (1e-3, 1.0))
RANGES = {"vp": VP_RANGE, "ve": (0.02, 100.0), "iddpm": (0.002, 81.0), "edm": (0.002, 80.0)}
GRIDS = {"vp": "edm-vp", "ve": "edm-ve", "iddpm": "edm-iddpm", "edm": "karras"}


def ablation(case):
    """(solver, path) of a case of the generalised sampler."""
    low, high = RANGES[case["discretization"]]
    beta_d, beta_min = vp_betas(low, high)
    solver = get(
        "edm",
        order=2 if case["solver"] == "heun" else 1,
        alpha=case["alpha"],
        schedule=case["schedule"],
        scaling=case["scaling"],
        beta_d=beta_d,
        beta_min=beta_min,
    )
    return solver, paths.EDM(sigma_min=low, sigma_max=high)


@GOLDEN.each(lambda case: case["kind"] == "ablation_sampler")
def test_ablation_sampler(case):
    """In the published frame the state is s·x; on our path it is x, and s = 1 at the clean end."""
    solver, path = ablation(case)
    grid = grids.get(GRIDS[case["discretization"]])(path, case["num_steps"])
    got = sample(GOLDEN.mixture().denoiser(path), path, solver, grid=grid, x=grid[0] * GOLDEN.z)
    # in ten steps the published code adds sqrt(4e-15) of noise that it does not record: churn 0 takes one of
    # its times through sigma(t) and back, which rounds upwards there
    noisy = (case["schedule"], case["discretization"], case["num_steps"]) == ("vp", "edm", 10)
    tolerance = 1e-7 if noisy else 1e-9
    assert_relative(got, GOLDEN.of(case, "out.x"), tolerance)
    assert solver.compile(path, grid).nfe == case["nfe"]


@GOLDEN.each(lambda case: case["kind"] == "edm_sampler")
@pytest.mark.parametrize("name", ["heun", "edm"])
def test_edm_sampler(case, name):
    path = paths.EDM()
    churn = case.get("S_churn", 0.0)
    limits = {"churn_min": 0.05, "churn_max": 50.0, "noise_scale": 1.003} if churn else {}
    grid = grids.karras(path, case["num_steps"])
    noise = GOLDEN.tensors.get(f"{case['name']}.in.noise", torch.empty(0))
    # the published code draws in every step, even where it adds nothing
    draws = iter([draw for draw, t in zip(noise, grid, strict=False) if 0.05 <= t <= 50.0])
    got = sample(
        GOLDEN.mixture().denoiser(path),
        path,
        get(name, churn=churn, **limits),
        grid=grid,
        x=80.0 * GOLDEN.z,
        noise=lambda like: next(draws),
    )
    assert_relative(got, GOLDEN.of(case, "out.x"), 1e-9)


def test_no_case_is_forgotten():
    assert GOLDEN.unused() == []


def problem(path, steps=8):
    grid = kappa_grid(path, 20.0, 0.02, steps)
    return MIXTURE.denoiser(path), grid, 20.0 * path.coefficients(grid[0])[0] * start_noise()


@pytest.mark.parametrize("path", [paths.VP.linear(), paths.RectifiedFlow(), paths.OUVE()])
@pytest.mark.parametrize(
    ("schedule", "scaling"), [("linear", "none"), ("vp", "vp"), ("ve", "none"), ("vp", "none")]
)
def test_a_frame_gives_the_same_trajectory_on_every_path(path, schedule, scaling):
    solver = get("edm", schedule=schedule, scaling=scaling, alpha=0.7)
    y = start_noise(seed=1) if path.uses_y else None
    high, low = (1.2, 0.06) if path.uses_y else (20.0, 0.02)
    found = []
    for where, shift in ((paths.EDM(), None), (path, y)):
        grid = kappa_grid(where, high, low, 8)
        (a, b, _), (a_end, b_end, _) = where.coefficients(grid[0]), where.coefficients(grid[-1])
        offset, end = (0.0, 0.0) if shift is None else (b * shift, b_end * shift)
        x = high * a * start_noise() + offset
        got = sample(MIXTURE.denoiser(where, shift), where, solver, grid=grid, x=x, y=shift)
        found.append((got - end) / a_end)
    assert (found[0] - found[1]).abs().max() < 1e-10


def test_the_linear_frame_is_heun_and_the_paths_own_is_its_velocity():
    """Euler in the time of a rectified flow follows x0 and noise along the straight line between them."""
    path = paths.RectifiedFlow()
    denoise, grid, x = problem(path)
    heun = sample(denoise, path, "heun", grid=grid, x=x)
    assert (sample(denoise, path, "edm", grid=grid, x=x) - heun).abs().max() < 1e-11
    state = start_noise()
    times = (1.0, 0.7, 0.4, 0.1, 0.0)
    for t, s in itertools.pairwise(times):
        x0 = denoise(state, t)
        state = state + (s - t) * (state - x0) / t  # dx/dt = noise − x0 = (x − x0)/t
    own = get("edm", order=1, schedule="path", scaling="path")
    got = sample(denoise, path, own, grid=times, x=start_noise())
    assert (got - state).abs().max() < 1e-12


@pytest.mark.parametrize("alpha", [0.5, 2.0 / 3.0, 1.0])
def test_second_order_for_every_place_of_the_second_stage(alpha):
    """Halving the steps divides the change by four."""
    path, states = paths.EDM(), []
    for steps in (40, 80, 160):
        grid = kappa_grid(path, 5.0, 0.1, steps)
        solver = get("edm", alpha=alpha)
        states.append(sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=5.0 * start_noise()))
    first, second = ((a - b).square().mean().sqrt() for a, b in itertools.pairwise(states))
    assert abs(math.log2(first / second) - 2.0) < 0.25  # the next order is still felt at alpha = 1/2


def test_churn_goes_back_to_a_higher_noise_level():
    """The distribution is checked for `heun`; here the variance that one draw adds, in each frame."""
    for options in ({}, {"schedule": "vp", "scaling": "vp"}):
        plan = get("edm", churn=4.0, noise_scale=2.0, **options).compile(paths.EDM(), (2.0, 1.0, 0.0))
        (draw,) = [term for term in plan.rows[1].terms if term.kind == "n"]
        higher = 2.0 * math.sqrt(2.0)
        assert plan.rows[1].t == pytest.approx(higher)
        assert draw.coefficient == pytest.approx(2.0 * math.sqrt(higher**2 - 4.0))


def test_grids_of_earlier_samplers():
    path = paths.EDM(sigma_min=0.01, sigma_max=50.0)
    for name in ("edm-vp", "edm-ve", "edm-iddpm"):
        times = grids.get(name)(path, 7)
        assert len(times) == 8
        assert times[-1] == 0.0
        assert 0.009 < times[-2] <= times[0] <= 50.0
        flow = grids.get(name)(paths.RectifiedFlow(), 5)
        assert len(flow) == 6
    low, high = (math.exp(-lam) for lam in (0.5, -2.0))
    beta_d, beta_min = vp_betas(low, high)
    for t, sigma in ((1e-3, low), (1.0, high)):
        assert math.sqrt(math.expm1(0.5 * beta_d * t * t + beta_min * t)) == pytest.approx(sigma, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: get("edm", order=3), "order must be 1 or 2, not 3"),
        (lambda: get("edm", alpha=0.0), r"alpha must lie in \(0, 1\], not 0.0"),
        (lambda: get("edm", schedule="cosine"), "schedule must be one of linear, vp, ve, path, not 'cosine'"),
        (lambda: get("edm", scaling="path"), "scaling must be 'none' or 'vp', and 'path' for the schedule"),
        (lambda: get("edm", beta_d=-1.0), "beta_d must be positive and beta_min finite"),
        (lambda: get("edm", churn=-1.0), "churn and noise_scale must not be negative"),
        (lambda: vp_betas(2.0, 1.0), "sigma_min must lie between 0 and sigma_max"),
        (lambda: vp_betas(1.0, 2.0, 1.0), "epsilon must lie between 0 and 1"),
        (lambda: grids.get("edm-iddpm")(paths.EDM(), 2000), "this table has"),
        (lambda: grids.get("edm-vp")(paths.EDM(), 0), "steps must be at least 1"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
