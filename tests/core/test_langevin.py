"""Langevin steps and predictor–corrector sampling: what they keep, what they couple, what they refuse."""

import math

import pytest
import torch
from tests.core.solver_problems import Mixture, smooth_mixture, start_noise
from tests.core.test_solvers import WithoutY

from fewstep.core import paths
from fewstep.core.sample import sample
from fewstep.core.solvers.base import Level
from fewstep.core.solvers.langevin import Corrector, Langevin, decay
from fewstep.core.solvers.score_sde import ScoreSDE
from fewstep.core.solvers.score_sde_pc import LangevinCorrected

MIXTURE = smooth_mixture()
EDM = paths.EDM()


def normal_noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return lambda like: torch.randn(like.shape, dtype=like.dtype, generator=generator)


@pytest.mark.parametrize("rule", ["annealed", "snr"])
def test_a_step_is_the_formula(rule):
    z, level, draw = start_noise(3), Level(0.5, 0.8, 0.6), start_noise(3, seed=9)
    ask = lambda z, t: 0.3 * z  # noqa: E731
    score = (0.8 * 0.3 * z - z) / 0.36
    got = Corrector(rule, snr=0.2).correct(ask, z, level, 0.9, lambda like: draw)
    for i in range(3):
        size = 2 * 0.9 * (0.2 * 0.6) ** 2
        if rule == "snr":
            size = 2 * 0.9 * (0.2 * draw[i].norm() / score[i].norm()) ** 2
        wanted = z[i] + size * score[i] + math.sqrt(2 * size) * draw[i]
        assert (got[i] - wanted).abs().max() < 1e-12


@pytest.mark.parametrize(("rule", "snr", "most"), [("annealed", 0.4, 0.0), ("snr", 0.2, 0.012)])
def test_many_steps_reach_and_keep_the_law(rule, snr, most):
    """From far away to N(m, s²) blurred by sigma: mean and variance, up to the bias of the step size."""
    one = torch.ones(1, dtype=torch.float64)
    data = Mixture(0.7 * torch.ones(1, 64, dtype=torch.float64), 0.6 * one, one)
    level = Level(0.5, 1.0, 0.5)
    ask = data.denoiser(paths.EDM())
    z = torch.full((200, 64), 3.0, dtype=torch.float64)
    z = Corrector(rule, snr=snr, repeats=120).correct(ask, z, level, 1.0, normal_noise(1))
    variance = 0.6**2 + 0.5**2
    step = 2 * snr**2 * (0.25 if rule == "annealed" else variance)
    error = math.sqrt(2 / z.numel())
    biased = variance / (1 - 0.5 * step / variance)  # of an explicit step on a normal law
    assert abs(z.mean() - 0.7) < 5 * math.sqrt(variance / z.numel())
    assert abs(z.var() / biased - 1) < 5 * error + most
    assert z.var() > 1.02 * variance * (1 - 5 * error)


@pytest.mark.parametrize(
    "solver",
    [
        LangevinCorrected(),
        LangevinCorrected(corrector="annealed"),
        Langevin(),
        Langevin("annealed", repeats=3),
    ],
    ids=["pc", "pc-annealed", "langevin", "langevin-annealed"],
)
def test_a_sample_does_not_depend_on_its_batch_mates(solver):
    x = EDM.start(start_noise(4))
    x[0] *= 5.0
    options = {"solver": solver, "steps": 12}
    together = sample(MIXTURE.denoiser(EDM), EDM, x=x, seed=3, **options)
    alone = sample(MIXTURE.denoiser(EDM), EDM, x=x[2:], seed=5, **options)
    assert (together[2:] - alone).abs().max() < 1e-10


def test_the_official_norm_couples_the_batch():
    x = EDM.start(start_noise(4))
    options = {"solver": LangevinCorrected(norm="batch"), "steps": 12}
    together = sample(MIXTURE.denoiser(EDM), EDM, x=x, seed=3, **options)
    alone = sample(MIXTURE.denoiser(EDM), EDM, x=x[2:], seed=5, **options)
    assert (together[2:] - alone).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("predictor", "equation"), [("euler-maruyama", "sde"), ("reverse-diffusion", "ode"), ("ancestral", "sde")]
)
def test_without_a_corrector_it_is_the_predictor(predictor, equation):
    x, grid = EDM.start(start_noise()), (80.0, 10.0, 2.0, 0.3, 0.0)
    pair = LangevinCorrected(predictor, equation, repeats=0), ScoreSDE(predictor, equation)
    denoise = MIXTURE.denoiser(EDM)
    got, plain = (sample(denoise, EDM, solver, grid=grid, x=x, noise=normal_noise(2)) for solver in pair)
    assert (got - plain).abs().max() < 1e-10


def test_order_of_calls_and_their_number():
    """Corrector before predictor, at the same time; one call more at the end of plain Langevin sampling."""
    grid = (80.0, 10.0, 1.0, 0.0)
    times = []
    denoise = MIXTURE.denoiser(EDM)
    watched = lambda x, t: times.append(t) or denoise(x, t)  # noqa: E731
    sample(watched, EDM, LangevinCorrected(repeats=2), grid=grid, x=EDM.start(start_noise()))
    assert times == [80.0] * 3 + [10.0] * 3 + [1.0] * 3
    times.clear()
    sample(watched, EDM, Langevin(repeats=2), grid=grid, x=EDM.start(start_noise()))
    assert times == [80.0] * 2 + [10.0] * 2 + [1.0] * 3


@pytest.mark.parametrize("name", ["pc", "langevin"])
def test_with_y_it_equals_the_plain_path_on_z(name):
    path, y = paths.OUVE(), start_noise(seed=1)
    x = path.start(start_noise(), y)
    b = path.coefficients(1.0)[1]
    grid = (1.0, 0.7, 0.4, 0.1, 0.0)
    got = sample(MIXTURE.denoiser(path, y), path, name, grid=grid, x=x, y=y, noise=normal_noise(3))
    plain = WithoutY(path)
    wanted = sample(MIXTURE.denoiser(path), plain, name, grid=grid, x=x - b * y, noise=normal_noise(3))
    assert (got - wanted).abs().max() < 1e-10


@pytest.mark.parametrize("path", [paths.RectifiedFlow(), paths.VP.cosine(t_max=1.0)], ids=["flow", "cosine"])
def test_pure_noise_is_left_alone(path):
    """alpha = r² = 0 at a = 0, where the law is exact already; D alone ends at sigma = 0."""
    points = [Level(t, *path.coefficients(t)[::2]) for t in (1.0, 0.5)]
    assert decay(*points) == 0.0
    for name in ("pc", "langevin"):
        got = sample(MIXTURE.denoiser(path), path, name, 6, shape=(2, 3, 2, 2), dtype=torch.float64)
        assert got.isfinite().all()


def test_a_score_of_zero_waits():
    z = torch.zeros(2, 5)
    got = Corrector().correct(lambda z, t: z, z, Level(1.0, 1.0, 1.0), 1.0, torch.ones_like)
    assert torch.equal(got, z)


def test_stopping_returns_the_state_reached():
    seen = []
    options = {"x": EDM.start(start_noise()), "steps": 8}
    for solver in (LangevinCorrected(), Langevin(repeats=2)):
        seen.clear()
        got = sample(
            MIXTURE.denoiser(EDM),
            EDM,
            solver,
            on_step=lambda info: seen.append(info.x.clone()) or info.step < 3,
            **options,
        )
        assert len(seen) == 3
        assert torch.equal(got, seen[-1])


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Corrector, {"rule": "ula"}, "rule must be 'snr' or 'annealed', not 'ula'"),
        (Langevin, {"snr": 0.0}, "snr must be a finite number above 0, not 0.0"),
        (Langevin, {"repeats": -1}, "repeats must not be negative, it is -1"),
        (Langevin, {"norm": "mean"}, "norm must be 'sample' or 'batch', not 'mean'"),
        (LangevinCorrected, {"corrector": "none"}, "corrector must be 'snr' or 'annealed', not 'none'"),
        (LangevinCorrected, {"predictor": "heun"}, "rule must be one of euler-maruyama, .*; not 'heun'"),
        (LangevinCorrected, {"steps_as": "own"}, "steps_as must be one of integrated, .*; not 'own'"),
    ],
)
def test_bad_options(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
