"""Gaussian teleportation: the jump, the denoiser, the model file, and `Teleported` around every solver."""

import math
from dataclasses import replace

import pytest
import torch
from tests.core.goldens import Golden
from tests.core.solver_problems import kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths, sample, solvers
from fewstep.core.solvers.teleported import Teleported
from fewstep.core.starts import GaussianModel
from fewstep.core.weights import CheckpointError

SHAPE = (3, 2, 2)
PATHS = {
    "edm": paths.EDM(),
    "vp": paths.VP.linear(),
    "cosine to pure noise": paths.VP.cosine(t_max=1.0),
    "table": paths.VP.from_betas(torch.linspace(1e-4, 0.02, 100)),
    "sub-vp": paths.SubVP(),
    "flow": paths.RectifiedFlow(),
    "resshift": paths.ResShift(),
    "ouve": paths.OUVE(),
    "mean-reverting": paths.MeanReverting(),
    "rddm": paths.RDDM(),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def covariance(rank=4, rest=0.05, seed=0):
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(12, rank, dtype=torch.float64, generator=generator)
    return factor @ factor.T + rest * torch.eye(12, dtype=torch.float64)


def gaussian(**options):
    mean = start_noise(1, seed=3)[0]
    return GaussianModel.from_moments(mean, covariance(**options), rank=options.get("rank", 4))


def y_of(path):
    return start_noise(5, seed=7) if path.uses_y else None


def times(path):
    """A noisy, a middle and a nearly clean time of a path."""
    return path.t_max, 0.5 * (path.t_max + path.t_min), path.t_min


@each_path
def test_the_jump_carries_one_marginal_into_the_next(path):
    """The map is linear, symmetric and takes N(a·mean, a²·C + sigma²·I) at s to that at t: to 1e-12."""
    model, cov, eye = gaussian(), covariance(), torch.eye(12, dtype=torch.float64)
    for s, t in ((times(path)[0], times(path)[1]), (times(path)[1], times(path)[2]), times(path)[1::-1]):
        (a_s, _, sigma_s), (a_t, _, sigma_t) = path.coefficients(s), path.coefficients(t)
        origin = model.carried((a_s * model.mean)[None], (a_s, sigma_s), (a_t, sigma_t))
        assert (origin - a_t * model.mean).abs().max() < 1e-12
        columns = eye.reshape(12, *SHAPE) + a_s * model.mean
        matrix = (model.carried(columns, (a_s, sigma_s), (a_t, sigma_t)) - origin).flatten(1)
        moved = matrix @ (a_s**2 * cov + sigma_s**2 * eye) @ matrix.T
        assert (moved - (a_t**2 * cov + sigma_t**2 * eye)).abs().max() < 1e-12 * 20
        assert (matrix - matrix.T).abs().max() < 1e-12


@each_path
def test_the_jump_solves_the_probability_flow_ode(path):
    """d(z/a)/d(kappa) = eps along the jump, with eps from the Gaussian's own denoiser."""
    model, y = gaussian(), y_of(path)
    s, t, _ = times(path)
    x = start_noise(5) + (0.0 if y is None else path.coefficients(s)[1] * y)

    def scaled(time):
        a, b, _ = path.coefficients(time)
        return (model.jump(x, path, s, time, y) - (0.0 if y is None else b * y)) / a

    a, b, sigma = path.coefficients(t)
    state = model.jump(x, path, s, t, y)
    x0 = model.denoiser(path, y)(state, t)
    eps = (state - a * x0 - (0.0 if y is None else b * y)) / sigma
    step = 1e-4 * (path.t_max - path.t_min)
    kappa = [path.coefficients(u)[2] / path.coefficients(u)[0] for u in (t + step, t - step)]
    rate = (scaled(t + step) - scaled(t - step)) / (kappa[0] - kappa[1])
    assert (rate - eps).abs().max() < 1e-5 * eps.abs().max()


@each_path
def test_jumps_compose_and_return(path):
    model, y = gaussian(), y_of(path)
    first, middle, last = times(path)
    x = start_noise(5)
    direct = model.jump(x, path, first, last, y)
    twice = model.jump(model.jump(x, path, first, middle, y), path, middle, last, y)
    assert (direct - twice).abs().max() < 1e-12
    assert (
        model.jump(direct, path, last, first, y) - x
    ).abs().max() < 1e-9  # the way back amplifies rounding


def test_data_without_leftover_variance_reach_the_clean_end():
    """At sigma = 0 a direction with variance v arrives at sqrt(v)·noise, one without at the mean."""
    model = GaussianModel.from_moments(torch.zeros(12).double(), covariance(rest=0.0), rank=4)
    assert model.rest == 0.0
    got = model.jump(start_noise(5).flatten(1), paths.RectifiedFlow(), 1.0, 0.0)
    wanted = start_noise(5).flatten(1) @ (model.basis * model.variance.sqrt()) @ model.basis.T
    assert (got - wanted).abs().max() < 1e-12
    denoise = model.denoiser(paths.RectifiedFlow())
    assert (denoise(got, 0.0) - got).abs().max() < 1e-12
    with pytest.raises(ValueError, match="sigma = 0, where a direction without variance is lost"):
        model.jump(got, paths.RectifiedFlow(), 0.0, 1.0)


def test_one_time_per_sample():
    model, path = gaussian(), paths.VP.linear()
    x, t = start_noise(5), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    got = model.denoiser(path)(x, t)
    for i, time in enumerate(t.tolist()):
        assert (model.denoiser(path)(x[i : i + 1], time) - got[i]).abs().max() < 1e-14


@pytest.mark.parametrize("count", [8, 300], ids=["fewer samples than dimensions", "more"])
def test_moments_of_data(count):
    x0 = start_noise(count, seed=5) @ torch.tensor([[1.0, 0.7], [0.0, 0.2]], dtype=torch.float64) + 2.0
    model = GaussianModel.from_data(x0)
    wanted = torch.cov(x0.flatten(1).T)
    left = torch.eye(12).double() - model.basis @ model.basis.T
    got = model.basis * model.variance @ model.basis.T + model.rest * left
    assert torch.allclose(model.mean, x0.mean(0), atol=1e-12)
    assert (got - wanted).abs().max() < 1e-10
    assert model.variance.numel() == min(count - 1, 12)
    short = GaussianModel.from_data(x0, rank=2)
    assert torch.allclose(short.variance, model.variance[:2], rtol=1e-12)
    total = short.variance.sum() + 10 * short.rest
    assert abs(total - wanted.trace()) < 1e-10  # what is left is shared, not lost


def test_draws_have_the_moments():
    model = gaussian()
    drawn = model.draw(20_000, torch.Generator().manual_seed(1)).flatten(1)
    # 4 standard errors of a sample mean and covariance
    assert (drawn.mean(0) - model.mean.flatten()).abs().max() < 4 * (covariance().max() / 20_000) ** 0.5
    assert (torch.cov(drawn.T) - covariance()).abs().max() < 4 * covariance().max() * (2 / 20_000) ** 0.5


def test_saved_and_loaded(tmp_path):
    model = gaussian()
    model.save(tmp_path / "data.safetensors")
    other = GaussianModel.load(tmp_path / "data.safetensors")
    assert torch.equal(other.basis, model.basis)
    assert torch.equal(other.variance, model.variance)
    assert torch.equal(other.mean, model.mean)
    assert other.rest == model.rest
    (tmp_path / "junk.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="empty"):
        GaussianModel.load(tmp_path / "junk.safetensors")


@pytest.mark.parametrize("path", [paths.EDM(), paths.ResShift()], ids=["edm", "resshift"])
@pytest.mark.parametrize("name", solvers.names())
def test_any_solver_goes_on_after_the_jump(name, path):
    """`Teleported` equals the jump by hand and then the solver, with the same draws."""
    mixture, model, y = smooth_mixture(), gaussian(), start_noise(seed=2)
    y = y if path.uses_y else None
    grid = grids.get("uniform")(path, 4) if path.uses_y else kappa_grid(path, 4.0, 0.1, 5, clean=True)
    x, denoise, solver = start_noise(), mixture.denoiser(path, y), solvers.get(name)
    noise = [start_noise(seed=s) for s in range(20, 60)]
    draw = lambda left: lambda like: next(left)  # noqa: E731
    teleported = Teleported(solver, model, until=path.half_log_snr(grid[2]))
    got = sample(denoise, path, teleported, grid=grid, x=x, y=y, noise=draw(iter(noise)))
    jumped = model.jump(x, path, grid[0], grid[2], y)
    wanted = sample(denoise, path, solver, grid=grid[2:], x=jumped, y=y, noise=draw(iter(noise)))
    assert (got - wanted).abs().max() < 1e-11


def test_gaussian_data_are_sampled_exactly_in_one_call():
    model, path = gaussian(), paths.EDM()
    x = 80.0 * start_noise()
    calls = []

    def denoise(x, t):
        calls.append(t)
        return model.denoiser(path)(x, t)

    grid = (80.0, 0.01, 0.002)
    got = sample(denoise, path, Teleported(solvers.get("ddim"), model), grid=grid, x=x)
    exact = model.jump(x, path, 80.0, 0.002)
    assert calls == [0.01]
    assert (got - exact).abs().max() < 1e-3  # one Euler step from 0.01 to 0.002
    assert (sample(denoise, path, "ddim", grid=grid, x=x) - exact).abs().max() > 0.05


GOLDEN = Golden("gm_accuracy")


def gm_a():
    """The golden mixture and the Gaussian with its mean and covariance."""
    mix = GOLDEN.mixture()
    mean = (mix.weight[:, None] * mix.mean).sum(0)
    spread = (mix.mean - mean) * mix.weight[:, None].sqrt()
    within = (mix.weight * mix.std**2).sum() * torch.eye(48, dtype=torch.float64)
    return mix, GaussianModel.from_moments(mean.reshape(3, 4, 4), spread.T @ spread + within, rank=5)


def errors(got, wanted):
    return (got - wanted).flatten(1).square().mean(1).sqrt()


@pytest.mark.parametrize(("sigma", "wanted"), [(10.0, 5e-4), (4.0, 7e-3), (2.0, 4e-2)])
def test_the_jump_on_a_mixture_is_as_good_as_measured(sigma, wanted):
    mix, model = gm_a()
    path, x = paths.EDM(), 80.0 * GOLDEN.z
    got = model.jump(x, path, 80.0, sigma)
    fine = kappa_grid(path, 80.0, sigma, 60)
    exact = sample(mix.denoiser(path), path, "heun", grid=(80.0, *fine[1:-1], sigma), x=x)
    relative = ((got - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)).median()
    assert 0.5 * wanted < relative < 2 * wanted


@pytest.mark.parametrize(("steps", "sigma"), [(5, 2.0), (10, 4.0), (20, 10.0)])
def test_teleporting_beats_the_same_budget_without(steps, sigma):
    mix, model = gm_a()
    path, x = paths.EDM(), 80.0 * GOLDEN.z
    exact = GOLDEN.tensors["out.edm80_to_1e-6"]
    plain = solvers.get("dpmpp-2m")
    teleported = Teleported(plain, model, until=-math.log(sigma))
    got = sample(mix.denoiser(path), path, teleported, steps, teleported.grid("logsnr"), x=x)
    without = sample(mix.denoiser(path), path, plain, steps, x=x)
    assert errors(got, exact).median() < 0.75 * errors(without, exact).median()


def test_stopping_and_steps_are_reported():
    seen = []
    solver = Teleported(solvers.get("dpmpp-2m"), gaussian(), until=0.0)
    grid = kappa_grid(paths.EDM(), 80.0, 0.1, 10)

    def stop(info):
        seen.append(info.t)
        return len(seen) < 2

    got = sample(
        smooth_mixture().denoiser(paths.EDM()), paths.EDM(), solver, grid=grid, x=start_noise(), on_step=stop
    )
    left = solver.remaining(paths.EDM(), grid)
    assert left[0] <= 1.0 + 1e-6 < grid[grid.index(left[0]) - 1]
    assert seen == list(left[1:3])
    assert got.shape == start_noise().shape


def test_gradients_flow_through_the_jump():
    x = start_noise().requires_grad_()
    solver = Teleported(solvers.get("dpmpp-2m"), gaussian(), until=0.0)
    path = paths.EDM()
    sample(
        smooth_mixture().denoiser(path), path, solver, steps=4, grid=solver.grid("logsnr"), x=x, grad=True
    ).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


BASIS = torch.eye(4)
TELEPORTED = Teleported(solvers.get("ddim"), gaussian(), 9.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianModel(torch.zeros(4), BASIS[:, :2], torch.ones(3)), r"variance \(rank,\)"),
        (lambda: GaussianModel(torch.zeros(5), BASIS, torch.ones(4)), "do not fit"),
        (lambda: GaussianModel(torch.zeros(4), BASIS, -torch.ones(4)), "not be negative"),
        (lambda: GaussianModel(torch.zeros(4), 2 * BASIS, torch.ones(4)), "orthonormal"),
        (lambda: GaussianModel.from_data(torch.zeros(1, 4)), "at least two samples"),
        (lambda: GaussianModel.from_data(start_noise(), rank=0), "rank must be at least 1, not 0"),
        (lambda: GaussianModel.from_moments(torch.zeros(3), BASIS), r"shape \(3, 3\)"),
        (lambda: GaussianModel.from_moments(torch.zeros(4), -BASIS), "semi-definite"),
        (lambda: gaussian().jump(start_noise(), paths.ResShift(), 3.0, 1.0), "y is missing"),
        (lambda: gaussian().denoiser(paths.ResShift()), "y is missing"),
        (lambda: replace(TELEPORTED, until=math.nan), "until must be a number"),
        (lambda: replace(TELEPORTED, until=None).grid("logsnr"), "until must be set"),
        (lambda: TELEPORTED.remaining(paths.EDM(), (1.0, 0.5, 0.0)), "leaves 1 of the 3"),
        (lambda: TELEPORTED.grid("karras")(paths.EDM(), 4), "half_log_snr must lie between -4.38203 and"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(("name", "value"), [("solver", "ddim"), ("gaussian", None)])
def test_other_kinds_are_refused(name, value):
    with pytest.raises(TypeError, match=name):
        replace(TELEPORTED, **{name: value})
