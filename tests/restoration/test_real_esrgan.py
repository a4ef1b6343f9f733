"""The second-order degradation and its kernels against their formulas and published constants."""

import math

import numpy as np
import pytest
from scipy import ndimage, stats

from fewstep.restoration.degradations import Jpeg, RealEsrgan, degradation
from fewstep.restoration.degradations.kernels import KernelMix, blur, draw_beta, gaussian, plateau, sinc
from fewstep.restoration.degradations.real_esrgan import Stage, add_noise, compress, resize, soften


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def moments(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of a kernel as a distribution over (column, row) offsets."""
    y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]] - (kernel.shape[0] - 1) / 2
    places = np.stack([x.ravel(), y.ravel()])
    mean = places @ kernel.ravel()
    return mean, (places * kernel.ravel()) @ places.T - np.outer(mean, mean)


def scene(height: int = 64, width: int = 48) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 3), np.cos(y / 4), np.sin((x + y) / 5)], axis=-1)
    return (128 + 90 * waves).astype(np.uint8)


@pytest.mark.parametrize("sigma", [(1.0, 1.0), (3.0, 1.2), (0.8, 2.5)])
@pytest.mark.parametrize("angle", [0.0, 0.6, -2.1])
def test_gaussian_has_the_covariance_it_states(sigma, angle):
    kernel = gaussian(41, sigma, angle)
    mean, covariance = moments(kernel)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    assert kernel.sum() == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(mean, 0, atol=1e-12)
    np.testing.assert_allclose(covariance, turn @ np.diag(np.square(sigma)) @ turn.T, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("beta", [0.8, 1.0, 2.0, 4.0])
def test_generalised_gaussian_has_its_second_moment(beta):
    """E[x²] = σ²/2 · 2^(1/β) Γ(2/β)/Γ(1/β) in the plane."""
    sigma = 4.0
    _, covariance = moments(gaussian(161, (sigma, sigma), beta=beta))
    expected = sigma**2 / 2 * 2 ** (1 / beta) * math.gamma(2 / beta) / math.gamma(1 / beta)
    np.testing.assert_allclose(np.diag(covariance), expected, rtol=5e-3)


def test_plateau_is_half_as_high_at_one_spread():
    for beta in (1.0, 1.5, 2.0):
        kernel = plateau(21, (3.0, 5.0), beta=beta)
        assert kernel.sum() == pytest.approx(1.0)
        assert kernel[10, 13] == pytest.approx(kernel[10, 10] / 2)
        assert kernel[15, 10] == pytest.approx(kernel[10, 10] / 2)
        steep = kernel[10, 12] / kernel[10, 10]
        assert steep == pytest.approx(1 / (1 + (2 / 3) ** (2 * beta)))


def test_sinc_passes_low_and_stops_high_frequencies():
    cutoff = math.pi / 2
    response = np.abs(np.fft.rfft(sinc(61, cutoff).sum(axis=0), 512))
    omega = np.arange(257) * 2 * math.pi / 512
    assert response[0] == pytest.approx(1.0)
    assert np.abs(response[omega < 0.7 * cutoff] - 1).max() < 0.1
    assert response[omega > 1.3 * cutoff].max() < 0.1
    assert np.interp(cutoff, omega, response) == pytest.approx(0.5, abs=0.1)
    assert sinc(21, cutoff).min() < 0, "it rings"


def test_kernel_mix_draws_what_it_states():
    kernels = [KernelMix()(rng(seed)) for seed in range(600)]
    sides = [len(kernel) for kernel in kernels]
    assert sorted(set(sides)) == list(range(3, 20, 2))
    assert stats.chisquare(np.bincount(sides)[3::2]).pvalue > 1e-3
    np.testing.assert_allclose([kernel.sum() for kernel in kernels], 1.0)
    negative = np.mean([kernel.min() < -1e-9 for kernel in kernels])
    assert 0.03 < negative < 0.15, "a tenth are sinc filters, of which the least show no lobe"
    symmetric = np.mean([np.abs(kernel - kernel.T).max() < 1e-12 for kernel in kernels])
    assert symmetric == pytest.approx(0.1 + 0.9 * 0.69, abs=0.09), "round ones"
    assert KernelMix(side=(5, 5), sinc=1.0)(rng()).min() < KernelMix(side=(5, 5), sinc=0.0)(rng()).min()


def test_betas_lie_on_both_sides_of_one():
    betas = np.array([draw_beta(rng(seed), (0.5, 4.0)) for seed in range(400)])
    assert betas.min() >= 0.5
    assert betas.max() <= 4.0
    assert np.mean(betas < 1) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("size", [(40, 31), (5, 7), (1, 1)])
def test_blur_is_a_correlation_with_mirrored_borders(size):
    image = rng(1).uniform(0, 255, (3, *size)).astype(np.float32)
    kernel = rng(2).uniform(0, 1, (9, 9))
    kernel /= kernel.sum()
    expected = [ndimage.correlate(channel.astype(float), kernel, mode="mirror") for channel in image]
    out = blur(image, kernel)
    assert out.dtype == np.float32
    assert out.shape == image.shape
    np.testing.assert_allclose(out, np.stack(expected), atol=1e-3)


def test_resizes_keep_a_flat_image_and_use_three_rules():
    flat = np.full((3, 24, 36), 93.0, np.float32)
    ramp = np.broadcast_to(np.arange(36, dtype=np.float32) ** 2, (3, 24, 36))
    results = set()
    for seed in range(20):
        np.testing.assert_allclose(resize(flat, (11, 50), rng(seed)), 93.0, rtol=1e-5)
        results.add(resize(ramp, (12, 16), rng(seed)).tobytes())
    assert len(results) == 3


def test_sizes_of_the_first_round():
    image, stage = np.zeros((3, 100, 100), np.float32), Stage(blur=0.0)
    factors = np.array([soften(stage, image, (100, 100), rng(seed)).shape[1] for seed in range(500)]) / 100
    assert factors.min() >= 0.15
    assert factors.max() <= 1.5
    for expected, share in ((0.7, factors < 0.99), (0.2, factors > 1.0)):
        assert share.mean() == pytest.approx(expected, abs=0.08)


def test_noise_of_a_round_is_gaussian_or_shot_and_may_be_grey():
    bright = np.full((3, 60, 60), 120.0, np.float32)
    kept = Stage(gaussian=1.0, noise=(20, 20), grey=1.0)
    noise = np.subtract(add_noise(kept, bright, rng()), bright)
    np.testing.assert_allclose(noise, noise[:1].repeat(3, axis=0))
    assert noise.std() == pytest.approx(20, rel=0.05)
    coloured = add_noise(Stage(gaussian=1.0, noise=(20, 20), grey=0.0), bright, rng()) - bright
    assert abs(np.mean(coloured[0] * coloured[1])) < 0.1 * 20**2
    dark = add_noise(Stage(gaussian=0.0, poisson=(1, 1)), np.zeros((3, 9, 9), np.float32), rng())
    assert dark.max() == 0, "no light, no shot noise"
    full = add_noise(Stage(gaussian=1.0, noise=(30, 30)), np.full((3, 9, 9), 250.0, np.float32), rng())
    assert full.max() == 255.0


def test_compress_is_the_jpeg_of_that_quality():
    image = scene()
    out = compress(Stage(jpeg=(35, 35)), image.transpose(2, 0, 1).astype(np.float32), rng())
    np.testing.assert_array_equal(out.transpose(1, 2, 0).astype(np.uint8), Jpeg(35, 35)(image, rng()).lq)


def test_constants_of_the_journal_version():
    made = RealEsrgan()
    first, second = made.first, made.second
    assert (made.scale, made.second_order, made.final_sinc) == (4, 0.5, 0.8)
    assert (first.blur, second.blur) == (1.0, 0.8)
    assert (first.kernels.sigma, second.kernels.sigma) == ((0.2, 3.0), (0.2, 1.5))
    assert first.kernels.shares == second.kernels.shares == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    assert (first.resize, first.factor) == ((0.2, 0.7, 0.1), (0.15, 1.5))
    assert (second.resize, second.factor) == ((0.3, 0.4, 0.3), (0.3, 1.2))
    assert (first.noise, first.poisson, second.noise, second.poisson) == (
        (1.0, 30.0),
        (0.05, 3.0),
        (1.0, 25.0),
        (0.05, 2.5),
    )
    assert first.jpeg == second.jpeg == (30, 95)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("size", [(64, 48), (8, 8), (4, 100)])
def test_result_is_smaller_by_the_scale(scale, size):
    for seed in range(8):
        made = RealEsrgan(scale)(scene(*size), rng(seed))
        assert made.lq.shape == (size[0] // scale, size[1] // scale, 3)
        assert made.lq.dtype == np.uint8
        assert made.level is None
        assert made.mask is None


def test_without_harm_it_only_reduces():
    """No blur, no resize, no noise, the best JPEG: what is left is the picture at a quarter of its size."""
    gentle = Stage(blur=0.0, resize=(0.0, 0.0, 1.0), gaussian=1.0, noise=(0, 0), jpeg=(95, 95))
    made = RealEsrgan(4, gentle, gentle, second_order=0.0, final_sinc=0.0)
    smooth = np.repeat(np.repeat(scene(32, 24) // 4 + 96, 4, axis=0), 4, axis=1)
    small = smooth.reshape(32, 4, 24, 4, 3).mean(axis=(1, 3))
    for seed in range(6):
        assert np.abs(made(smooth, rng(seed)).lq - small).mean() < 4


def test_it_keeps_brightness_and_colour_on_average():
    image = scene(96, 96)
    means = [RealEsrgan()(image, rng(seed)).lq.mean(axis=(0, 1)) for seed in range(40)]
    np.testing.assert_allclose(np.mean(means, axis=0), image.mean(axis=(0, 1)), atol=3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": 0}, "scale must be an integer of at least 1, got 0"),
        ({"second_order": 1.2}, "second_order must lie within 0 … 1"),
        ({"first": {"resize": (0.5, 0.4, 0.0)}}, "resize must be 3 probabilities"),
        ({"first": {"factor": (1.2, 1.5)}}, "factor must reach from at most 1"),
        ({"first": {"jpeg": (30, 120)}}, r"\(low, high\)"),
        ({"first": 3}, "first must be a dictionary of fields, got 3"),
        ({"second": {"blurs": 1}}, "'blurs' is no field of 'second', which has kernels, blur"),
        ({"first": {"noise": [5, 1]}}, "noise must be"),
        ({"second": {"kernels": {"side": (4, 8)}}}, "side must be odd"),
        ({"second": {"kernels": {"shares": [0.5, 0.1, 0.1, 0.1, 0.1, 0.0]}}}, "shares must be 6 numbers"),
        ({"second": {"kernels": {"beta_plateau": (1.5, 2)}}}, "beta_plateau must reach"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        degradation("real_esrgan", **fields)


def test_a_dictionary_replaces_single_fields():
    made = degradation("real_esrgan", second={"noise": [0, 5], "kernels": {"sigma": [0.2, 0.5]}})
    assert isinstance(made, RealEsrgan)
    assert made.first == Stage()
    assert (made.second.noise, made.second.factor) == ((0, 5), (0.3, 1.2))
    assert (made.second.kernels.sigma, made.second.kernels.side) == ((0.2, 0.5), (3, 13))


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match=r"multiples of scale 4, got 63 × 48"):
        RealEsrgan()(scene(63, 48), rng())
    with pytest.raises(ValueError, match="side must be odd"):
        gaussian(4, (1.0, 1.0))
