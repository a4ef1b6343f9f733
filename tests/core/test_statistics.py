"""Model statistics: analytic derivatives, all kinds of paths, the file; and the solver that uses them."""

import math
from typing import Any

import pytest
import torch
from tests.core import gm_a
from tests.core.solver_problems import Mixture, kappa_grid, smooth_mixture, start_noise

from fewstep.core import Denoiser, paths, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers.dpm_v3 import DPMSolverV3, PixelDPMSolverV3
from fewstep.core.statistics import ModelStatistics, estimate_statistics

EDM = paths.EDM()
SMALL = smooth_mixture()
DATA = SMALL.draw(64, (3, 2, 2), torch.Generator().manual_seed(3))


def estimate(path: Any = EDM, mixture=SMALL, data: Any = DATA, **options: Any):
    options = {"intervals": 12, "samples": 64} | options
    return estimate_statistics(mixture.denoiser(path), path, data, **options)


def equal(one, other, tolerance):
    for name in "lsb":
        a, b = getattr(one, name), getattr(other, name)
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1.0), name


def test_one_dimension_agrees_with_analytic_derivatives():
    """One pixel: J is a number, so l has no error of the random signs; f' is differentiated automatically."""
    values = ([[-0.7], [0.6]], [0.3, 0.5], [0.4, 0.6])
    mixture = Mixture(*(torch.tensor(value, dtype=torch.float64) for value in values))
    data = mixture.draw(200, (1,), torch.Generator().manual_seed(0))
    got = estimate(mixture=mixture, data=data, intervals=60, samples=200, batch=200, seed=5, step=2e-4)
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    lam = got.half_log_snr

    def denoised(y, u):
        return mixture.x0(y, 1.0, torch.exp(-u))

    def moving(u):
        """ybar, D, and the rates of D by ybar and along the trajectory."""
        y = data + torch.exp(-u) * noise
        d = denoised(y, u)
        by_y = torch.func.jvp(lambda v: denoised(v, u), (y,), (torch.ones_like(y),))[1]
        along = torch.func.jvp(denoised, (y, u), (d - y, torch.ones_like(u)))[1]
        return y, d, by_y, along

    every = [moving(u) for u in lam]
    slope = torch.stack([1.0 - by_y.mean() for _, _, by_y, _ in every])
    turn = torch.gradient(slope, spacing=(lam,), edge_order=2)[0]
    assert (got.l[:, 0] - slope).abs().max() < 1e-12
    for i in (1, 15, 30, 45, 59):
        y, d, _, along = every[i]
        f, rate = (1 - slope[i]) * y - d, (1 - slope[i]) * (d - y) - along - turn[i] * y
        s = ((f * rate).mean() - f.mean() * rate.mean()) / (f.square().mean() - f.mean() ** 2)
        b = rate.mean() - s * f.mean()
        assert abs(got.s[i, 0] - s) < 2e-5 * max(1.0, abs(s)), i
        assert abs(got.b[i, 0] - b) < 2e-5 * max(1.0, abs(b)), i


def test_gaussian_data_have_closed_form_statistics():
    """l = kappa²/(v + kappa²); f = −l·mean does not vary, so s = 0 and b = −l'·mean."""
    mean = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64)
    gauss = Mixture(mean[None], torch.tensor([0.5]).double(), torch.ones(1).double())
    data = gauss.draw(64, (3, 2, 2), torch.Generator().manual_seed(0))
    got = estimate(mixture=gauss, data=data, intervals=90)
    kappa2 = torch.exp(-2.0 * got.half_log_snr)[:, None, None, None]
    exact = kappa2 / (0.25 + kappa2)
    assert (got.l - exact).abs().max() < 1e-10
    assert got.s.abs().max() == 0.0
    assert (got.b - 2.0 * exact * (1.0 - exact) * mean.reshape(3, 2, 2)).abs().max() < 6e-3


@pytest.mark.parametrize("level", [2, 5, 7])
def test_gm_a_agrees_with_whole_jacobians(level):
    """Mean over pixels, where the random signs average out; the error is that of the draws."""
    got = gm_a.statistics(intervals=12, samples=1024)
    lam = got.half_log_snr[level]
    generator = torch.Generator().manual_seed(9)
    x0 = gm_a.MIXTURE.draw(300, (48,), generator)
    y = x0 + torch.exp(-lam) * torch.randn(300, 48, dtype=torch.float64, generator=generator)
    denoise = lambda v: gm_a.MIXTURE.x0(v[None], 1.0, torch.exp(-lam))[0]  # noqa: E731
    jacobian = torch.func.vmap(torch.func.jacrev(denoise))(y)
    exact = 1.0 - jacobian.diagonal(dim1=1, dim2=2).mean()
    assert abs(got.l[level].mean() - exact) < 0.02


@pytest.mark.parametrize("path", [paths.VP.linear(), paths.VP.cosine(t_max=1.0), paths.RectifiedFlow()])
def test_statistics_do_not_depend_on_the_path(path):
    """Only on the half log-SNR; a = 0 at the start is cut off at the floor."""
    got = estimate(path, intervals=30)
    same = paths.EDM(sigma_min=math.exp(-got.last), sigma_max=math.exp(-got.first))
    equal(got, estimate(same, intervals=30), 1e-5)


def test_paths_with_a_degraded_input():
    path, y = paths.OUVE(), start_noise(64, seed=4)
    got = estimate_statistics(SMALL.denoiser(path, y), path, DATA, 12, 64, 64, y=y)
    same = paths.EDM(sigma_min=math.exp(-got.last), sigma_max=math.exp(-got.first))
    equal(got, estimate(same, batch=64), 1e-6)
    bound = Denoiser(lambda x, t, y: 0.5 * x + y, path, "x0").given(y=y)
    parts = estimate_statistics(bound, None, DATA, 4, 64, 16, y=y)
    equal(parts, estimate_statistics(bound, None, DATA, 4, 64, 64, y=y, derivative="difference"), 1.0)


class _NoForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()


def test_networks_without_forward_derivatives_are_differenced():
    def opaque(x, t):
        return SMALL.denoiser(EDM)(_NoForward.apply(x), t)

    exact = estimate()
    equal(estimate_statistics(opaque, EDM, DATA, 12, 64), exact, 1e-4)
    equal(estimate(derivative="difference"), exact, 1e-4)
    with pytest.raises(RuntimeError):
        estimate_statistics(opaque, EDM, DATA, 12, 64, derivative="forward")


def test_sampler_of_data_progress_and_single_precision():
    seen = []
    draw = lambda count, generator: SMALL.draw(count, (3, 2, 2), generator).float()  # noqa: E731
    single = estimate(data=draw, batch=24, progress=lambda *done: seen.append(done))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert single.l.dtype == torch.float64
    double = estimate(data=lambda count, generator: draw(count, generator).double(), batch=24)
    assert (single.l - double.l).abs().max() < 1e-3


def test_smoothing_averages_the_slope_of_l():
    rough, smooth = estimate(smoothing=0), estimate(smoothing=2)
    assert torch.equal(rough.l, smooth.l)
    assert not torch.equal(rough.b, smooth.b)


def test_round_trip_on_disk(tmp_path):
    path = paths.VP.linear(beta_max=10.0)
    for kept in (estimate(path), estimate(path, shared=True), ModelStatistics.degenerate(EDM, 7)):
        kept.save(tmp_path / "statistics.safetensors")
        loaded = ModelStatistics.load(tmp_path / "statistics.safetensors")
        assert (loaded.first, loaded.last, loaded.path) == (kept.first, kept.last, kept.path)
        equal(loaded, kept, 0.0)
    (tmp_path / "other").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        ModelStatistics.load(tmp_path / "other")


def spread(shared):
    """The same numbers, one for each pixel."""
    wide = (v[:, None, None, None].expand(-1, 3, 2, 2).clone() for v in (shared.l, shared.s, shared.b))
    return ModelStatistics(shared.first, shared.last, *wide)


@pytest.mark.parametrize("variant", ["exact", "official"])
def test_shared_statistics_make_a_plan_that_equals_the_steps(variant):
    shared = estimate(shared=True, intervals=60)
    assert shared.is_linear
    grid = kappa_grid(EDM, 60.0, 0.01, 7, clean=True)
    asked = SMALL.denoiser(EDM)
    plan, steps = (
        solvers.get("dpm-v3", statistics=known, variant=variant) for known in (shared, spread(shared))
    )
    assert isinstance(plan, DPMSolverV3)
    assert isinstance(steps, PixelDPMSolverV3)
    assert plan.compile(EDM, grid).nfe == 8
    states = [], []
    for solver, seen in zip((plan, steps), states, strict=True):
        x = 60.0 * start_noise()
        watch = lambda info, seen=seen: seen.append(info.x.clone())  # noqa: E731
        sample(asked, EDM, solver, grid=grid, x=x, on_step=watch)
    assert len(states[0]) == len(states[1]) == 8
    assert (torch.stack(states[0]) - torch.stack(states[1])).abs().max() < 1e-11


def test_exact_degenerate_statistics_equal_the_closed_form():
    """Also beyond the range of the statistics, where they stay constant."""
    known = ModelStatistics.degenerate(paths.EDM(sigma_min=0.05, sigma_max=10.0), 100)
    grid = kappa_grid(EDM, 60.0, 0.01, 7)
    for options in ({}, {"c_pseudo": True, "p_pseudo": True}, {"corrector": "none"}, {"solver_order": 2}):
        results = [
            sample(
                SMALL.denoiser(EDM),
                EDM,
                solvers.get("dpm-v3", statistics=statistics, **options),
                grid=grid,
                x=60.0 * start_noise(),
            )
            for statistics in (None, known)
        ]
        assert (results[0] - results[1]).abs().max() < 1e-6


@pytest.mark.parametrize("path", [paths.VP.linear(), paths.RectifiedFlow(), paths.OUVE()])
def test_statistics_serve_every_path(path):
    """Same trajectory of z/a as on EDM's path; y plays no part; a sample does not see its batch mates."""
    solver = solvers.get("dpm-v3", statistics=estimate())
    y = start_noise(seed=1) if path.uses_y else None
    found = []
    for where, shift in ((EDM, None), (path, y)):
        grid = kappa_grid(where, 1.2, 0.06, 6)
        (a, b, _), (a_end, b_end, _) = where.coefficients(grid[0]), where.coefficients(grid[-1])
        x = 1.2 * a * start_noise() + (0.0 if shift is None else b * shift)
        got = sample(SMALL.denoiser(where, shift), where, solver, grid=grid, x=x, y=shift)
        found.append((got - (0.0 if shift is None else b_end * shift)) / a_end)
        if shift is None:
            alone = sample(SMALL.denoiser(where), where, solver, grid=grid, x=x[2:3])
            assert (alone / a_end - found[-1][2:3]).abs().max() < 1e-12
    assert (found[0] - found[1]).abs().max() < 1e-10


def test_half_corrector_corrects_the_noisier_half_of_the_time():
    path = paths.VP.linear()
    grid = (1.0, 0.8, 0.6, 0.51, 0.4, 0.2, 1e-3)
    rows = {}
    for kind in ("all", "half", "none"):
        rows[kind] = len(solvers.get("dpm-v3", corrector=kind).compile(path, grid).rows)
    assert rows == {"all": 7 + 4, "half": 7 + 2, "none": 7}


def test_statistics_that_do_not_fit_are_refused():
    per_pixel = spread(estimate(shared=True))
    solver = solvers.get("dpm-v3", statistics=per_pixel, variant="official")
    asked = SMALL.denoiser(EDM)
    with pytest.raises(ValueError, match=r"samples of shape \(3, 2, 2\), x has \(12,\)"):
        sample(asked, EDM, solver, grid=(1.0, 0.5), x=start_noise().flatten(1))
    with pytest.raises(ValueError, match="12 intervals are too coarse for this grid"):
        sample(asked, EDM, solver, grid=kappa_grid(EDM, 60.0, 0.01, 20), x=start_noise())
    wide = paths.EDM(sigma_max=200.0)
    with pytest.raises(ValueError, match=r"the statistics cover -4\.38"):
        sample(SMALL.denoiser(wide), wide, solver, grid=(200.0, 1.0), x=start_noise())


def test_bad_input_is_named():
    one = torch.ones(5, dtype=torch.float64)
    for make, message in (
        (lambda: ModelStatistics(1.0, 1.0, one, one, one), "first must lie below last"),
        (
            lambda: ModelStatistics(0.0, 1.0, one[:1], one[:1], one[:1]),
            "with 2 or more points",
        ),
        (lambda: ModelStatistics(0.0, 1.0, one, one, one * torch.inf), "b must hold finite"),
        (lambda: estimate_statistics(SMALL.denoiser(EDM), None, DATA), "path is missing"),
        (lambda: estimate_statistics(SMALL.denoiser(EDM), EDM), "data are missing"),
        (lambda: estimate(intervals=0), "intervals, samples and batch must be at least 1"),
        (lambda: estimate(step=0.9), "step must be positive and below half an interval"),
        (lambda: estimate(derivative="exact"), "derivative must be 'auto', 'forward' or 'difference'"),
        (lambda: estimate_statistics(SMALL.denoiser(EDM), paths.OUVE(), DATA), "y is missing: OUVE"),
        (PixelDPMSolverV3, "statistics are missing"),
        (lambda: DPMSolverV3(statistics=estimate()), "b = 0 for a plan; use PixelDPMSolverV3"),
        (lambda: DPMSolverV3(4), "solver_order must be 1, 2 or 3, not 4"),
        (lambda: DPMSolverV3(corrector="some"), "corrector must be 'all', 'half' or 'none', not 'some'"),
        (lambda: DPMSolverV3(variant="best"), "variant must be 'official' or 'exact', not 'best'"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
