"""One More Step and zero terminal SNR: the published rule, the bias that it removes, the rescaled table."""

import pytest
import torch
from tests.core.goldens import Golden, official_path
from tests.core.solver_problems import start_noise

from fewstep.core import Denoiser, paths, sample
from fewstep.core.starts import GaussianModel, OneMoreStep

GOLDEN = Golden("misc_official")
MEAN, VARIANCE = 1.5, 0.25
TABLE = official_path("discrete_sd")


def model():
    """Data N(1.5, 0.25·I): what an ideal module says at zero signal is −mean."""
    mean = torch.full((3, 2, 2), MEAN, dtype=torch.float64)
    return GaussianModel(
        mean, torch.zeros(12, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64), VARIANCE
    )


def constant(value):
    return lambda x: torch.full_like(x, value)


@GOLDEN.each(lambda case: case["kind"] == "rescale_zero_terminal_snr")
def test_rescaled_betas(case):
    scaled = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    got = torch.tensor(paths.zero_terminal_snr(scaled), dtype=torch.float64)
    assert (got - GOLDEN.of(case, "out.betas")).abs().max() < 1e-9
    path = paths.VP.from_betas(got)
    assert path.coefficients(999.0) == (0.0, 0.0, 1.0)


def test_the_start_has_the_marginal_of_the_path():
    """Mean a_T·mean, standard deviation sigma_T: 4 standard errors of 200·12 values."""
    x = OneMoreStep(constant(-MEAN)).start(TABLE, (200, 3, 2, 2), dtype=torch.float64)
    a, _, sigma = TABLE.coefficients(999.0)
    assert abs(x.mean() - a * MEAN) < 4 * sigma / 2400**0.5
    assert abs(x.std() - sigma) < 4 * sigma / 4800**0.5


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_the_step_is_linear_in_its_draws(eta):
    draws = iter([start_noise(seed=1), start_noise(seed=2)])
    got = OneMoreStep(lambda x: 2 * x, eta=eta).start(
        TABLE, (4, 3, 2, 2), noise=lambda like: next(draws), dtype=torch.float64
    )
    a, _, sigma = TABLE.coefficients(999.0)
    kept = (1 - eta) ** 0.5 * start_noise(seed=1) + eta**0.5 * start_noise(seed=2)
    assert (got - (sigma * kept - a * 2 * start_noise(seed=1))).abs().max() < 1e-14


def test_it_removes_the_bias_of_starting_from_pure_noise():
    """On Gaussian data unit noise ends at mean·(1 − gain·a_T), One More Step at the mean."""
    gaussian = model()
    a, _, sigma = TABLE.coefficients(999.0)
    gain = (VARIANCE / (a * a * VARIANCE + sigma * sigma)) ** 0.5
    denoise = gaussian.denoiser(TABLE)
    noise = torch.randn(4000, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    noise -= noise.mean()  # the bias alone, without the noise of its estimate
    plain = sample(denoise, TABLE, "dpmpp-2m", 30, x=sigma * noise)
    started = OneMoreStep(constant(-MEAN), eta=0.0).start(
        TABLE, noise.shape, noise=lambda like: noise, dtype=torch.float64
    )
    corrected = sample(denoise, TABLE, "dpmpp-2m", 30, x=started)
    assert plain.mean().item() - MEAN == pytest.approx(-gain * a * MEAN, rel=0.03)
    assert abs(corrected.mean().item() - MEAN) < 1e-3
    assert gain * a * MEAN > 0.05


def test_guidance_of_its_own():
    oms = OneMoreStep(constant(-2.0), constant(-1.0), scale=3.0, eta=0.0)
    assert oms.nfe == 2
    assert OneMoreStep(constant(0.0)).nfe == 1
    a = TABLE.coefficients(999.0)[0]
    assert torch.allclose(oms.start(TABLE, (1, 1, 2), noise=torch.zeros_like), torch.full((1, 1, 2), a * 4.0))


def test_it_is_the_v_prediction_at_zero_signal():
    """On a rescaled table a v network asked at t_max gives the same estimate, x0 = −v."""
    zero = paths.VP.from_betas(paths.zero_terminal_snr(torch.linspace(1e-3, 0.05, 50, dtype=torch.float64)))
    denoise = Denoiser(lambda x, t: 0.3 * x - 0.7, zero, "v")
    x = start_noise()
    assert (denoise(x, zero.t_max) + (0.3 * x - 0.7)).abs().max() < 1e-14


def test_a_path_with_y():
    path, y = paths.OUVE(), start_noise(2, seed=3)
    a, b, sigma = path.coefficients(path.t_max)
    got = OneMoreStep(constant(-MEAN), eta=0.0).start(
        path, y.shape, y=y, noise=torch.ones_like, dtype=torch.float64
    )
    assert (got - (a * MEAN + b * y + sigma)).abs().max() < 1e-12


def test_seeds_and_batch_mates():
    oms = OneMoreStep(lambda x: 0.5 * x)
    whole = oms.start(TABLE, (3, 2, 4), seed=5)
    assert torch.equal(whole[2:], oms.start(TABLE, (1, 2, 4), seed=7))
    assert torch.equal(whole, oms.start(TABLE, (3, 2, 4), seed=[5, 6, 7]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneMoreStep(constant(0.0), eta=1.5), "eta must lie between 0 and 1, not 1.5"),
        (lambda: OneMoreStep(constant(0.0), scale=2.0), "null is missing: scale = 2.0"),
        (lambda: OneMoreStep(constant(0.0)).start(paths.ResShift(), (1, 1, 2)), "y is missing: ResShift"),
        (lambda: OneMoreStep(lambda x: x[:, :1]).start(TABLE, (1, 2, 2)), "module must return shape"),
        (lambda: OneMoreStep(constant(0.0)).start(TABLE, (2, 1), seed=[1]), "1 seeds for a batch of 2"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
