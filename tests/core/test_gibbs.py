"""DMCMC: the chain, its levels, its denoising runs and what they sample."""

import math
from itertools import pairwise

import pytest
import torch
from tests.core.solver_problems import Mixture, smooth_mixture, start_noise
from tests.core.test_solvers_stochastic import energy_distance

from fewstep.core import paths, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers.gibbs import LangevinGibbs, noise_levels

SMOOTH = smooth_mixture()
K, J = torch.arange(3.0)[:, None], torch.arange(6.0)
DATA = Mixture(
    1.5 * torch.cos(1.7 * (K + 1) + 0.9 * J * (K + 2)).double(),
    torch.tensor([0.3, 0.4, 0.5]).double(),
    torch.tensor([0.2, 0.3, 0.5]).double(),
)
LEVELS = noise_levels(count=200)


def exact_levels(x):
    """The most likely noise level of x = x0 + kappa·eps, all levels equally likely before."""
    variance = LEVELS[None, :, None] ** 2 + DATA.std**2
    gap = (x.flatten(1)[:, None] - DATA.mean).square().sum(-1)[:, None]
    each = DATA.weight.log() - 0.5 * gap / variance - 0.5 * DATA.mean.shape[1] * variance.log()
    return LEVELS[each.logsumexp(-1).argmax(1)]


def test_levels_are_geometric():
    levels = noise_levels(50.0, 0.01, 1000)
    assert levels.shape == (1000,)
    assert float(levels[0]) == pytest.approx(50.0)
    assert float(levels[-1]) == pytest.approx(0.01 * 5000**0.001)
    gaps = levels.log().diff()
    assert (gaps - gaps[0]).abs().max() < 1e-12


def test_one_turn_is_langevin_then_the_level_and_the_cleanest_visit_is_denoised():
    """With a linear denoiser and recorded draws the whole round can be written down."""
    draws = [start_noise(2, (3,), seed) for seed in range(4)]
    found = iter([0.9, 0.5, 0.8])
    levels = []

    def classify(x):
        levels.append(x.clone())
        return torch.full((2,), next(found), dtype=torch.float64)

    solver = LangevinGibbs(
        eta=0.3, skip=2, burn_in=0, first_steps=1, sigma_min=0.01, last_level=0.0, classify=classify
    )
    z = 80.0 * start_noise(2, (3,), 9)
    recorded = iter(draws)
    ball = lambda x, t: x / (1 + torch.as_tensor(t).view(-1, 1) ** 2)  # noqa: E731
    got = sample(ball, paths.EDM(), solver, grid=(80.0, 0.0), x=z, noise=lambda like: next(recorded))
    x = z / (1 + 80.0**2) + 0.5 * draws[0]
    assert (levels[0] - x).abs().max() < 1e-12
    for kappa, draw, seen in zip((0.9, 0.5), draws[1:], levels[1:], strict=False):
        x = x + 0.15 * (x / (1 + kappa**2) - x) / kappa**2 + math.sqrt(0.3) * draw
        assert (seen - x).abs().max() < 1e-12
    assert (got - levels[1] / (1 + 0.25)).abs().max() < 1e-12  # level 0.5, one Euler step to 0


def test_denoising_from_the_samples_own_levels_is_heun_on_their_own_grids():
    """Against the compiled solver, sample by sample, on the Karras grid from each level."""
    path, seen = paths.EDM(), []
    kappa = torch.tensor([2.0, 0.7, 5.0], dtype=torch.float64)
    classify = lambda x: seen.append(x.clone()) or kappa  # noqa: E731
    solver = LangevinGibbs(eta=1e-24, burn_in=0, first_steps=2, last_level=0.0, classify=classify)
    got = sample(SMOOTH.denoiser(path), path, solver, 6, x=80.0 * start_noise(3, seed=6))
    for i, level in enumerate(kappa.tolist()):
        roots = torch.linspace(level ** (1 / 7), 0.01 ** (1 / 7), 6, dtype=torch.float64)
        grid = (*(roots**7).tolist(), 0.0)
        wanted = sample(SMOOTH.denoiser(path), path, "heun", grid=grid, x=seen[0][i : i + 1])
        assert (got[i] - wanted[0]).abs().max() < 1e-10


@pytest.mark.parametrize("path", [paths.EDM(), paths.VP.linear()], ids=["edm", "vp"])
@pytest.mark.parametrize("classify", [None, exact_levels], ids=["residual", "exact"])
def test_it_samples_the_mixture(path, classify):
    generator = torch.Generator().manual_seed(5)
    sets = [DATA.draw(1000, (6,), generator) for _ in range(9)]
    spread = torch.tensor([energy_distance(sets[2 * i], sets[2 * i + 1]) for i in range(4)])
    solver = LangevinGibbs(classify=classify)
    got = sample(DATA.denoiser(path), path, solver, 8, shape=(1000, 6), dtype=torch.float64)
    bound = spread.mean() + 6 * spread.std()
    assert energy_distance(got, sets[8]) < bound
    assert energy_distance(0.8 * got, sets[8]) > bound


def test_a_chain_gives_many_samples_for_few_calls():
    path, calls = paths.EDM(), []
    denoise = DATA.denoiser(path)
    watched = lambda x, t: calls.append(1) or denoise(x, t)  # noqa: E731
    solver = LangevinGibbs(skip=4, classify=exact_levels)
    rounds = solver.samples(watched, path, 80.0 * start_noise(150, (6,)), rounds=4, steps=5)
    counts, found = [], []
    for batch in rounds:
        counts.append(len(calls))
        found.append(batch)
    assert counts[0] == 39 + 20 + 4 + 10  # the first visit, the turns before, those between, the run
    assert [b - a for a, b in pairwise(counts)] == [14] * 3
    generator = torch.Generator().manual_seed(1)
    assert energy_distance(torch.cat(found), DATA.draw(600, (6,), generator)) < 0.03


def test_a_sample_does_not_depend_on_its_batch_mates():
    path = paths.RectifiedFlow()  # a = 0 at the start
    options = {"solver": LangevinGibbs(burn_in=3, churn=40.0), "steps": 4, "dtype": torch.float64}
    together = sample(SMOOTH.denoiser(path), path, shape=(3, 3, 2, 2), seed=4, **options)
    alone = sample(SMOOTH.denoiser(path), path, shape=(1, 3, 2, 2), seed=6, **options)
    assert (together[2:] - alone).abs().max() < 1e-9


def test_it_lives_on_paths_with_y_and_by_name():
    path, y = paths.OUVE(), start_noise(seed=1)
    got = sample(SMOOTH.denoiser(path, y), path, solvers.get("dmcmc", burn_in=2), 4, y=y)
    assert got.isfinite().all()
    solver = LangevinGibbs(burn_in=2)
    start = path.start(start_noise(seed=2), y)
    (batch,) = solver.samples(SMOOTH.denoiser(path, y), path, start, rounds=1, steps=4, y=y)
    assert batch.shape == y.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.0}, "eta must be a finite number above 0, not 0.0"),
        ({"skip": 0}, "skip must be at least 1, not 0"),
        ({"burn_in": -1}, "burn_in must be at least 0, not -1"),
        ({"last_level": -0.1}, "last_level must be a finite number of at least 0, not -0.1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LangevinGibbs(**options)


def test_bad_classifiers_and_rounds():
    path = paths.EDM()
    wrong = LangevinGibbs(classify=lambda x: x)
    with pytest.raises(ValueError, match=r"classify must return one level a sample, \(2,\), not \(2, 6\)"):
        sample(DATA.denoiser(path), path, wrong, 4, shape=(2, 6), dtype=torch.float64)
    with pytest.raises(ValueError, match="rounds must be at least 1, not 0"):
        next(LangevinGibbs().samples(DATA.denoiser(path), path, start_noise(2, (6,)), rounds=0))
    with pytest.raises(ValueError, match=r"sigma_min must lie between 0 and sigma_max = 50\.0, not 60\.0"):
        noise_levels(sigma_min=60.0)
