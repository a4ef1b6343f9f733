"""PSNR, SSIM and sharpness against closed forms and against each other."""

import math

import numpy as np
import pytest
from skimage import data

from fewstep.restoration.metrics import CONVENTIONS, luma_full, luma_studio, psnr, score, sharpness, ssim
from fewstep.restoration.resize import imresize

PHOTO = data.astronaut()[100:260, 80:240]


def noisy(sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, PHOTO.shape)
    return np.clip(np.rint(PHOTO + noise), 0, 255).astype(np.uint8)


def test_psnr_of_a_constant_error():
    truth = np.full((20, 20), 100, np.uint8)
    assert psnr(truth + np.uint8(5), truth) == pytest.approx(20 * math.log10(255 / 5))
    assert psnr(truth, truth) == math.inf


def test_luma_ranges():
    ends = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    np.testing.assert_allclose(luma_studio(ends), [[16.0, 235.0]], atol=1e-12)
    np.testing.assert_allclose(luma_full(ends), [[0.0, 255.0]], atol=1e-12)
    green = np.array([[[0, 255, 0]]], np.uint8)
    assert luma_studio(green)[0, 0] == pytest.approx(16 + 128.553)
    # Grey pictures count as equal colours.
    np.testing.assert_allclose(luma_studio(ends[:, :, 0]), luma_studio(ends), atol=1e-12)


def test_conventions_differ_by_the_range_of_their_luma():
    grey = np.repeat(PHOTO[:, :, :1], 3, axis=2)
    other = np.clip(grey.astype(int) + 8, 0, 247 + 8).astype(np.uint8)
    values = {name: score(other, grey, name).psnr for name in CONVENTIONS}
    # The same error is 219/255 as large in studio-range luma.
    assert values["y"] - values["rgb"] == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)
    assert values["ycrcb"] == pytest.approx(values["rgb"], abs=1e-9)


def test_eight_bit_conventions_round_and_the_float_one_does_not():
    shifted = PHOTO.astype(np.float64) + 0.4
    assert score(shifted, PHOTO.astype(np.float64), "rgb").psnr == math.inf
    expected = 20 * math.log10(255 / 0.4)
    assert score(shifted, PHOTO.astype(np.float64), "ycrcb").psnr == pytest.approx(expected)


def test_ssim_by_its_definition():
    """One 11×11 image has one window: the formula can be written out."""
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 255, (2, 11, 11))
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / np.outer(line, line).sum()
    mean_x, mean_y = (window * x).sum(), (window * y).sum()
    var_x, var_y = (window * x * x).sum() - mean_x**2, (window * y * y).sum() - mean_y**2
    cov = (window * x * y).sum() - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (
        (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    )
    assert ssim(x, y) == pytest.approx(expected, abs=1e-12)


def test_scores_fall_with_noise_and_equal_images_are_perfect():
    scores = [score(noisy(sigma), PHOTO, "rgb") for sigma in (5, 15, 30)]
    assert scores[0].psnr > scores[1].psnr > scores[2].psnr
    assert scores[0].ssim > scores[1].ssim > scores[2].ssim
    # White noise of 15/255, some of it clipped.
    assert scores[1].psnr == pytest.approx(20 * math.log10(255 / 15), abs=0.6)
    assert score(PHOTO, PHOTO, "y").ssim == pytest.approx(1.0)


def test_border_is_cut():
    framed = PHOTO.copy()
    framed[:4] = 0
    framed[:, -4:] = 255
    assert score(framed, PHOTO, "y", border=4).psnr == math.inf
    assert score(framed, PHOTO, "y", border=3).psnr < 60


def test_sharpness_says_soft_and_busy():
    soft = imresize(imresize(PHOTO.astype(np.float64), 0.25), 4)
    assert sharpness(soft, PHOTO) < 0.8
    assert sharpness(PHOTO, PHOTO) == 1.0
    assert sharpness(noisy(20), PHOTO) > 1.2
    flat = np.zeros((8, 8))
    assert sharpness(flat, flat) == 1.0
    assert sharpness(np.eye(8), flat) == math.inf


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: score(PHOTO, PHOTO, "lab"), "convention.*y, rgb, ycrcb.*'lab'"),
        (lambda: score(PHOTO[1:], PHOTO), "restored.*shape"),
        (lambda: score(PHOTO, PHOTO, "y", border=80), "border.*80"),
        (lambda: score(PHOTO, PHOTO, "y", border=-1), "border.*-1"),
        (lambda: score(PHOTO[:8], PHOTO[:8]), "11×11"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
