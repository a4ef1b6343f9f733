"""Likelihood on data whose density is known, its estimates, and encoding and decoding."""

import math

import pytest
import torch
from tests.core.solver_problems import Asked, smooth_mixture, start_noise

from fewstep.core import Denoiser, paths, predictions
from fewstep.core.likelihood import density_change, log_likelihood
from fewstep.core.probability_flow import decode, encode
from fewstep.core.y_free import as_state

MIXTURE = smooth_mixture()
SHAPE = (3, 2, 2)
SIZE = 12


def log_density(x, a=1.0, sigma=0.0):
    """log p of a·x0 + sigma·eps."""
    variance = (a * MIXTURE.std) ** 2 + sigma**2
    gap = (x.flatten(1)[:, None] - a * MIXTURE.mean).square().sum(-1)
    each = -0.5 * (gap / variance + SIZE * (2 * math.pi * variance).log())
    return (MIXTURE.weight.log() + each).logsumexp(1)


def gaussian(x, sigma):
    return -0.5 * ((x / sigma).square() + math.log(2 * math.pi * sigma**2)).sum(1)


def data(count=5, seed=4):
    return MIXTURE.draw(count, SHAPE, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("path", "t"),
    [
        (paths.EDM(), None),
        (paths.VP.linear(), 1e-5),
        (paths.SubVP(), 1e-3),
        (paths.VE(sigma_min=1e-3), None),
        (paths.RectifiedFlow(), 1e-3),
        (paths.VP.cosine(t_max=1.0), 1e-4),
    ],
    ids=lambda value: type(value).__name__,
)
def test_exact_divergence_gives_the_density(path, t):
    """Within 1e-4 bits/dim of the density of the data, where the start has the law of the data."""
    x0 = data()
    a, _, sigma = path.coefficients(path.t_max)
    found = log_likelihood(MIXTURE.denoiser(path), path, x0, t=t, prior=lambda x: log_density(x, a, sigma))
    wanted = -log_density(x0) / SIZE / math.log(2)
    assert (found.bits_per_dim - wanted).abs().max() < 1e-4
    assert found.calls < 200


def test_the_default_prior_is_that_of_sampling():
    """A wide path hardly sees the difference to the law of the data."""
    path, x0 = paths.EDM(sigma_max=1e4), data()
    found = log_likelihood(MIXTURE.denoiser(path), path, x0)
    assert (found.bits_per_dim + log_density(x0) / SIZE / math.log(2)).abs().max() < 1e-4
    latent = found.latent.flatten(1)
    _, change = density_change(MIXTURE.denoiser(path), path, x0, path.t_min, path.t_max, rtol=1e-6, atol=1e-6)
    assert (found.nats - gaussian(latent, 1e4) - change).abs().max() < 1e-9


@pytest.mark.parametrize("name", ["x0", "eps", "v", "score", "velocity"])
def test_every_prediction_is_served(name):
    path, x0 = paths.VP.linear(), data(2)
    plain = log_likelihood(MIXTURE.denoiser(path), path, x0)
    asked = Asked(MIXTURE.denoiser(path), path, predictions.get(name))
    assert (log_likelihood(asked, path, x0).nats - plain.nats).abs().max() < 1e-7


def test_paths_with_the_same_noise_levels_agree():
    """The density is that of x0 + kappa·eps, whatever a is."""
    found = []
    for path in (paths.EDM(), paths.VP.linear(), paths.RectifiedFlow()):
        x0 = data()
        start, end = (float(path.time_at(-math.log(kappa))) for kappa in (0.01, 20.0))
        a, b = path.coefficients(start)[0], path.coefficients(end)[0]
        _, change = density_change(MIXTURE.denoiser(path), path, a * x0, start, end)
        found.append(change + SIZE * math.log(a / b))
    assert (found[1] - found[0]).abs().max() < 1e-8
    assert (found[2] - found[0]).abs().max() < 1e-8


def test_with_y_it_is_the_density_on_the_plain_frame():
    path, x0, y = paths.OUVE(), data(2), start_noise(2, seed=5)
    a, b, sigma = path.coefficients(1.0)
    found = log_likelihood(
        MIXTURE.denoiser(path, y), path, x0, y=y, t=1e-4, prior=lambda x: log_density(x - b * y, a, sigma)
    )
    assert (found.nats - log_density(x0)).abs().max() / SIZE < 1e-4
    default = log_likelihood(MIXTURE.denoiser(path, y), path, x0, y=y, t=1e-4)
    gap = (found.latent - y).flatten(1)
    normal = gaussian(gap, path.start_weights()[1])
    change = found.nats - log_density(found.latent - b * y, a, sigma)
    assert (default.nats - normal - change).abs().max() < 1e-9


@pytest.mark.parametrize(("probe", "spread"), [("rademacher", 1.0), ("gaussian", 2.0)])
def test_hutchinson_is_unbiased(probe, spread):
    """Mean over 64 independent estimates, against its own standard error."""
    path, x0 = paths.EDM(), data(1)
    exact = log_likelihood(MIXTURE.denoiser(path), path, x0).nats
    many = x0.expand(64, *SHAPE)
    found = log_likelihood(MIXTURE.denoiser(path), path, many, "hutchinson", probe=probe, rtol=1e-5).nats
    assert (found.mean() - exact).abs() < 4 * found.std() / 8
    assert 0.01 < found.std() < 3 * spread
    averaged = log_likelihood(
        MIXTURE.denoiser(path), path, many[:16], "hutchinson", probe=probe, probes=16, rtol=1e-5
    ).nats
    assert averaged.std() < 0.5 * found.std()


def test_a_sample_does_not_depend_on_its_batch_mates():
    path, x0 = paths.VP.linear(), data(3)
    for divergence in ("exact", "hutchinson"):
        together = log_likelihood(MIXTURE.denoiser(path), path, x0, divergence, seed=7).nats
        alone = log_likelihood(MIXTURE.denoiser(path), path, x0[2:], divergence, seed=9).nats
        assert (together[2:] - alone).abs().max() < 1e-9


def test_dequantisation_offset():
    """Uniform data on 256 levels have 8 bits/dim; the width of a level moves between the conventions."""
    path, x0 = paths.EDM(), data(2)
    plain = log_likelihood(MIXTURE.denoiser(path), path, x0)
    eight = log_likelihood(MIXTURE.denoiser(path), path, x0, bin_width=2 / 256)
    assert (eight.bits_per_dim - plain.bits_per_dim - 7.0).abs().max() < 1e-12
    assert (plain.bits_per_dim + plain.nats / SIZE / math.log(2)).abs().max() < 1e-12


@pytest.mark.parametrize(
    "path", [paths.VP.linear(), paths.EDM(), paths.RectifiedFlow(), paths.OUVE()], ids=str
)
def test_encode_and_decode_are_inverse(path):
    x0 = data()
    y = start_noise(5, seed=1) if path.uses_y else None
    denoise = MIXTURE.denoiser(path, y)
    latent = encode(denoise, path, x0, y=y, rtol=1e-9, atol=1e-9)
    back = decode(denoise, path, latent, y=y, rtol=1e-9, atol=1e-9)
    assert (back - x0).abs().max() < 1e-6
    sigma = path.coefficients(path.t_max)[2]
    assert 0.6 * sigma < (latent if y is None else latent - y).std() < 1.7 * (sigma + 1)


def test_a_network_in_float32_with_a_bound_y():
    path = paths.OUVE()
    net = torch.nn.Conv2d(3, 3, 3, padding=1)
    y = torch.rand(2, 3, 4, 4)
    denoise = Denoiser(lambda x, t: net(x), path, "x0").given(y=y)
    x0 = torch.rand(2, 3, 4, 4)
    found = log_likelihood(denoise, path, x0, "hutchinson", rtol=1e-4, atol=1e-4)
    assert found.nats.dtype is torch.float32
    assert found.nats.isfinite().all()
    assert not found.nats.requires_grad
    latent = encode(denoise, path, x0, rtol=1e-5, atol=1e-5)
    assert (decode(denoise, path, latent, rtol=1e-5, atol=1e-5) - x0).abs().max() < 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence": "trace"}, "divergence must be 'exact' or 'hutchinson', not 'trace'"),
        ({"probe": "uniform"}, "probe must be 'rademacher', 'gaussian' or a tensor, not 'uniform'"),
        ({"probes": 0}, "probes must be at least 1, not 0"),
        ({"bin_width": 0.0}, "bin_width must be a finite number above 0, not 0.0"),
        ({"t": 0.0}, "t must lie below t_max = 80 and have sigma > 0, not 0.0"),
        ({"t": 80.0}, "t must lie below t_max = 80 and have sigma > 0, not 80.0"),
        ({"rtol": -1.0}, "rtol must be a finite number above 0, not -1.0"),
        ({"divergence": "hutchinson", "probe": torch.zeros(3)}, r"probe must have the shape \(5, 3, 2, 2\)"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(MIXTURE.denoiser(paths.EDM()), paths.EDM(), data(), **options)


def test_bad_data():
    with pytest.raises(TypeError, match=r"data must be a floating-point tensor, not torch\.int64"):
        as_state(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="y is missing: OUVE uses the degraded input"):
        log_likelihood(MIXTURE.denoiser(paths.OUVE()), paths.OUVE(), data())
