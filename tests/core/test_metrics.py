"""Distances between samples, against closed forms, and pictures of samples."""

import io

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from fewstep.core.metrics import METRICS, frechet_distance, gaussian_distance, moments
from fewstep.core.pictures import grid_of, is_picture, png_bytes


def gaussian(seed, size=5):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, dtype=torch.float64, generator=generator)
    return torch.randn(size, dtype=torch.float64, generator=generator), root @ root.T


def test_the_gaussian_distance_is_that_of_the_general_matrix_root():
    (mean, covariance), (other_mean, other) = gaussian(0), gaussian(1)
    product = scipy.linalg.sqrtm(covariance.numpy() @ other.numpy())
    expected = float((mean - other_mean).square().sum() + covariance.trace() + other.trace())
    expected -= 2 * float(np.trace(np.asarray(product)).real)
    assert float(gaussian_distance(mean, covariance, other_mean, other)) == pytest.approx(expected, rel=1e-10)


def test_it_does_not_mind_covariances_without_full_rank():
    flat = torch.zeros(3, 3, dtype=torch.float64)
    flat[0, 0] = 4.0
    assert float(gaussian_distance(flat[1], flat, flat[1], torch.zeros_like(flat))) == pytest.approx(4.0)


def test_moments_are_numpys():
    x = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0))
    mean, covariance = moments(x)
    flat = x.double().numpy().reshape(50, -1)
    np.testing.assert_allclose(mean.numpy(), flat.mean(0), atol=1e-14)
    np.testing.assert_allclose(covariance.numpy(), np.cov(flat.T), atol=1e-14)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        moments(x[:1])


@pytest.mark.parametrize("name", METRICS)
def test_a_shift_is_seen(name):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2000, 2, generator=generator) for _ in range(2))
    same, moved = float(METRICS[name](x, y)), float(METRICS[name](x, y + 1))
    assert same < 0.1 < moved


def test_frechet_of_a_shift_is_its_square():
    x = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    assert float(frechet_distance(x, x + 0.5)) == pytest.approx(4 * 0.25, rel=1e-6)


def test_a_grid_has_its_samples_in_rows():
    samples = torch.linspace(-1, 1, 5)[:, None, None, None].expand(5, 1, 2, 3)
    sheet = grid_of(samples, columns=3)
    assert sheet.shape == (5, 11)
    assert [sheet[0, 0], sheet[0, 4], sheet[0, 8], sheet[3, 0], sheet[3, 4]] == [0, 64, 128, 191, 255]
    assert (sheet[2] == 255).all()
    assert grid_of(torch.full((1, 3, 2, 2), torch.nan)).max() == 0


def test_a_png_is_enlarged_and_readable():
    picture = np.arange(6, dtype=np.uint8).reshape(2, 3)
    read = np.asarray(Image.open(io.BytesIO(png_bytes(picture, enlarge=2))))
    np.testing.assert_array_equal(read[::2, ::2], picture)
    assert read.shape == (4, 6)


def test_vectors_are_no_pictures():
    assert not is_picture((2,))
    assert not is_picture((2, 4, 4))
    with pytest.raises(ValueError, match="samples must be"):
        grid_of(torch.zeros(3, 2))
