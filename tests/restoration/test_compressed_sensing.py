"""Compressed sensing: the operator, its files, and what is refused."""

import math

import numpy as np
import pytest
import torch

from fewstep.restoration.compressed_sensing import (
    BlockSensing,
    Measurement,
    groups,
    measure,
    rows_of,
    sensing_matrix,
)


def operator(ratio: float = 0.25, size: tuple[int, int] = (16, 24), block: int = 8) -> BlockSensing:
    order = torch.randperm(math.prod(size), generator=torch.Generator().manual_seed(3))
    return BlockSensing(sensing_matrix(ratio, block).double(), order, size)


def test_rows_are_rounded_up():
    assert [rows_of(ratio) for ratio in (0.0001, 0.1, 0.25, 0.3, 0.5, 1.0)] == [1, 103, 256, 308, 512, 1024]


def test_the_matrix_is_orthonormal_and_repeats():
    matrix = sensing_matrix(0.3, 8).double()
    assert matrix.shape == (64, 20)
    torch.testing.assert_close(matrix.T @ matrix, torch.eye(20).double(), rtol=0, atol=1e-6)
    assert torch.equal(sensing_matrix(0.3, 8), sensing_matrix(0.3, 8))
    assert not torch.equal(sensing_matrix(0.3, 8), sensing_matrix(0.3, 8, seed=1))
    # A larger ratio adds measurements to those of a smaller one.
    assert torch.equal(sensing_matrix(0.5, 8)[:, :20], sensing_matrix(0.3, 8))


def test_adjoint():
    a = operator()
    x = torch.randn(2, 3, 16, 24, dtype=torch.float64)
    y = torch.randn(2, 3, 6, 16, dtype=torch.float64)
    torch.testing.assert_close((a.forward(x) * y).sum(), (x * a.adjoint(y)).sum(), rtol=1e-12, atol=0)


def test_measurements_mix_pixels_of_the_whole_image():
    one = torch.zeros(1, 1, 16, 24, dtype=torch.float64)
    one[0, 0, 5, 7] = 1
    a = operator()
    block = int(a.inverse[5 * 24 + 7]) // 64
    expected = a.matrix[int(a.inverse[5 * 24 + 7]) % 64]
    torch.testing.assert_close(a.forward(one)[0, 0, block], expected)
    others = [i for i in range(6) if i != block]
    assert not a.forward(one)[0, 0, others].any()


def test_projection_gives_the_nearest_consistent_image():
    torch.manual_seed(0)
    a = operator()
    truth, x = torch.rand(2, 2, 1, 16, 24, dtype=torch.float64)
    y = a.forward(truth)
    projected = a.consistent(x, y)
    # The matrix is rounded to float32, so its columns are orthonormal to about 1e-7.
    torch.testing.assert_close(a.forward(projected), y, rtol=0, atol=1e-6)
    torch.testing.assert_close((projected - x), a.gram(projected - x), rtol=0, atol=1e-6)
    torch.testing.assert_close(a.project(x), a.gram(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 32), (100, 7)])
def test_any_size_is_measured(size):
    image = torch.rand(2, 3, *size)
    taken = measure(image, 0.1)
    blocks = math.ceil(size[0] / 32) * math.ceil(size[1] / 32)
    assert taken.values.shape == (2, 3, blocks, 103)
    assert (taken.height, taken.width) == size
    full = measure(image, 1.0)
    back = full.sensing.adjoint(full.values)[..., : size[0], : size[1]]
    torch.testing.assert_close(back, image, rtol=0, atol=1e-5)


def test_seeds_choose_the_permutation():
    image = torch.rand(1, 1, 32, 64)
    assert torch.equal(measure(image, 0.1, seed=4).values, measure(image, 0.1, seed=4).values)
    assert not torch.equal(measure(image, 0.1, seed=4).values, measure(image, 0.1, seed=5).values)


def test_full_precision_under_autocast():
    a = BlockSensing(sensing_matrix(0.25, 8), torch.randperm(128), (8, 16))
    x = torch.rand(1, 1, 8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert a.forward(x.bfloat16()).dtype == torch.float32
        assert torch.equal(a.forward(x), BlockSensing(a.matrix, a.permutation, a.size).forward(x))
        assert a.adjoint(a.forward(x)).dtype == torch.float32


def test_a_measurement_survives_its_file(tmp_path):
    image = torch.rand(2, 3, 40, 50)
    taken = measure(image, 0.25, seed=9)
    taken.save(tmp_path / "photo.npz")
    back = Measurement.load(tmp_path / "photo.npz")
    assert torch.equal(back.values, taken.values)
    assert torch.equal(back.sensing.matrix, taken.sensing.matrix)
    assert torch.equal(back.sensing.permutation, taken.sensing.permutation)
    assert (back.sensing.size, back.height, back.width) == ((64, 64), 40, 50)


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.01, float("nan")])
def test_ratios_out_of_range(ratio):
    with pytest.raises(ValueError, match=r"ratio must lie in \(0, 1\], got"):
        measure(torch.zeros(1, 1, 32, 32), ratio)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.full((1, 1, 32, 32), float("nan")), "image must be finite"),
        (torch.zeros(1, 1, 0, 32), "image must have shape"),
    ],
)
def test_images_that_cannot_be_measured(image, message):
    with pytest.raises(ValueError, match=message):
        measure(image, 0.1)


def test_operators_and_values_that_do_not_fit():
    matrix = sensing_matrix(0.25, 8)
    with pytest.raises(ValueError, match="multiple of 64 pixels"):
        BlockSensing(matrix, torch.arange(100), (10, 10))
    with pytest.raises(ValueError, match="127 places"):
        BlockSensing(matrix, torch.arange(127), (8, 16))
    with pytest.raises(ValueError, match="more columns than rows"):
        BlockSensing(matrix.T, torch.arange(64), (8, 8))
    sensing = BlockSensing(matrix, torch.arange(128), (8, 16))
    with pytest.raises(ValueError, match=r"values must have shape \(batch, channels, 2, 16\)"):
        Measurement(torch.zeros(1, 1, 3, 16), sensing, 8, 16)
    with pytest.raises(ValueError, match="values must be finite"):
        Measurement(torch.full((1, 1, 2, 16), float("inf")), sensing, 8, 16)
    with pytest.raises(ValueError, match="height and width"):
        Measurement(torch.zeros(1, 1, 2, 16), sensing, 9, 16)
    with pytest.raises(ValueError, match="block must be at least 1"):
        sensing_matrix(0.5, 0)


def broken_file(kind: str, path) -> None:
    """A file that is no measurement."""
    taken = measure(torch.rand(1, 1, 32, 32), 0.1)
    if kind == "text":
        path.write_text("not a zip file")
    elif kind == "cut":
        taken.save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "entry missing":
        np.savez(path, values=taken.values.numpy())
    elif kind == "pickle":
        np.savez(path, values=np.array([{}], dtype=object), matrix=1, permutation=1, size=1)
    elif kind == "permutation":
        values, matrix = taken.values.numpy(), taken.sensing.matrix.numpy()
        order, size = np.zeros(1024, np.int32), np.array([32, 32, 32, 32])
        np.savez(path, values=values, matrix=matrix, permutation=order, size=size)


@pytest.mark.parametrize("kind", ["absent", "text", "cut", "entry missing", "pickle", "permutation"])
def test_files_that_hold_no_measurement(kind, tmp_path):
    path = tmp_path / "photo.npz"
    broken_file(kind, path)
    with pytest.raises(ValueError, match=r"photo\.npz is not a measurement"):
        Measurement.load(path)


def test_groups_cover_every_pixel_once():
    seen = np.zeros((1030, 700), int)
    for rows, columns in groups(1030, 700, 512):
        assert rows.stop - rows.start <= 512
        assert columns.stop - columns.start <= 512
        seen[rows, columns] += 1
    assert (seen == 1).all()
    assert len(groups(512, 512, 512)) == 1
