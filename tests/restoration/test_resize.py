"""Antialiased bicubic resizing against published numbers and its own algebra."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fewstep.restoration.resize import cubic, imresize, imresize_to, taps
from fewstep.restoration.rows import RowResizer

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "restoration" / "resshift_util.safetensors")


@pytest.mark.parametrize("scale", [0.25, 0.5, 4])
def test_agrees_with_the_published_implementation(scale):
    expected = GOLDEN[f"matlab.out_{scale}"]
    # The golden values are float32 of size one.
    np.testing.assert_allclose(imresize(GOLDEN["matlab.in"], scale), expected, rtol=0, atol=2.5e-7)


@pytest.mark.parametrize("scale", [0.25, 1 / 3, 0.7, 1, 1.5, 4])
def test_arrays_and_tensors_agree(scale):
    image = np.random.default_rng(0).random((17, 23, 3))
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    by_tensor = imresize(tensor, scale)[0].permute(1, 2, 0).numpy()
    # Only the memory layout differs; the sums are taken in the same order.
    np.testing.assert_allclose(imresize(image, scale), by_tensor, rtol=0, atol=1e-14)


@pytest.mark.parametrize("scale", [0.25, 0.4, 2, 3.3])
def test_constants_stay_and_lines_stay_lines_inside(scale):
    assert np.allclose(imresize(np.full((9, 11), 0.37), scale), 0.37, atol=1e-14)
    line = np.tile(np.arange(64.0), (3, 1))
    out = imresize(line, scale)[0]
    place = (np.arange(len(out)) + 0.5) / scale - 0.5
    inside = slice(len(out) // 3, 2 * len(out) // 3)
    # Keys' kernel reproduces polynomials of degree two at scale ≥ 1; stretched and renormalised it keeps
    # lines up to the asymmetry of its samples.
    tolerance = 1e-12 if scale >= 1 else 2e-2
    assert np.abs(out - place)[inside].max() < tolerance


def test_size_is_rounded_up_but_not_by_floating_point():
    assert imresize(np.zeros((10, 11)), 0.25).shape == (3, 3)
    assert imresize(np.zeros((30, 3)), 1 / 3).shape == (10, 1)
    assert imresize(np.zeros((10, 10)), 0.7).shape == (7, 7)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (2, 3)])
@pytest.mark.parametrize("scale", [0.25, 4])
def test_tiny_images(shape, scale):
    out = imresize(np.full(shape, 0.5), scale)
    assert np.allclose(out, 0.5)


def test_reduction_removes_what_the_grid_cannot_hold():
    stripes = np.tile(np.array([0.0, 1.0]), (16, 64))
    assert np.abs(imresize(stripes, 0.25)[:, 4:-4] - 0.5).max() < 1e-12


def test_weights_of_a_row_sum_to_one_and_indices_are_inside():
    for size, scale in ((1, 4.0), (7, 0.3), (50, 0.25), (12, 2.5)):
        indices, weights = taps(size, max(1, round(size * scale)), scale)
        assert indices.min() >= 0
        assert indices.max() < size
        np.testing.assert_allclose(weights.sum(axis=1), 1.0, atol=1e-14)


def test_kernel_is_keys_cubic():
    assert cubic(np.array([0.0, 1.0, 2.0, 2.5])).tolist() == [1.0, 0.0, 0.0, 0.0]
    assert cubic(np.array([0.5]))[0] == pytest.approx(0.5625)
    assert cubic(np.array([-1.5]))[0] == pytest.approx(-0.0625)


@pytest.mark.parametrize("out_rows", [3, 20, 41, 130])
@pytest.mark.parametrize("pieces", [[41], [1] * 41, [17, 3, 21]])
def test_rows_that_arrive_in_pieces_give_the_whole(out_rows, pieces):
    image = torch.rand(3, 41, 8, dtype=torch.float64)
    resizer = RowResizer(41, out_rows)
    out = torch.cat([resizer.push(part) for part in image.split(pieces, dim=1)], dim=1)
    assert torch.equal(out, imresize_to(image, (out_rows, 8)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: imresize(np.zeros((4, 4), np.uint8), 2), TypeError, "image.*uint8"),
        (lambda: imresize(np.zeros((4, 4)), 0), ValueError, "scale.*0"),
        (lambda: imresize(np.zeros((4, 4)), float("nan")), ValueError, "scale.*nan"),
        (lambda: imresize(np.zeros((0, 4)), 2), ValueError, "image.*0×4"),
        (lambda: imresize(np.zeros((1, 2, 3, 4)), 2), ValueError, "image.*\\(1, 2, 3, 4\\)"),
        (lambda: imresize("photo", 2), TypeError, "image"),  # pyright: ignore
        (lambda: imresize(torch.zeros(3), 2), ValueError, "image"),
        (lambda: imresize_to(np.zeros((4, 4)), (0, 3)), ValueError, "size.*\\(0, 3\\)"),
    ],
)
def test_bad_arguments_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call()
