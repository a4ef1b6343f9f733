"""Optimal boundary conditions: the search finds the best start, and the start lies where it should."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fewstep.core.noise import NoiseField, SampleNoise
from fewstep.core.weights import CheckpointError
from fewstep.restoration import Restorer
from fewstep.restoration.boundary import Boundary, boundary_beside, optimize_boundary
from fewstep.restoration.methods.base import RestorationModel
from fewstep.restoration.methods.resshift import ResShift
from fewstep.restoration.methods.resshift_config import ResShiftConfig
from fewstep.restoration.tiles import TileNoise


class Echo(RestorationModel):
    """Gives back its input plus a tenth of the start noise, and a thousandth of a step's."""

    solvers = ("echo",)
    state_channels = 3  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]
    pixel_bytes = 1  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    def __init__(self) -> None:
        super().__init__()
        self.config = ResShiftConfig(scale=1)
        self.weight = torch.nn.Parameter(torch.tensor(0.1))
        self.asked: list[tuple[int, ...]] = []

    def steps_of(self, mode, steps=None):
        return 2

    def restore(self, lq, *, noise=None, **options):  # pyright: ignore
        self.asked.append(tuple(lq.shape))
        assert noise is not None
        return (lq + self.weight * noise(lq) + 1e-3 * noise(lq)).detach()


def candidate(seed: int, shape: tuple[int, ...] = (1, 3, 8, 8)) -> Tensor:
    out = torch.empty(shape)
    SampleNoise([seed], 1).fill(out)
    return out


def references(target: Tensor, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(3, 8, 8, generator=generator) * 0.3 for _ in range(count)]
    return [(lq, lq + 0.1 * target) for lq in inputs]


@pytest.mark.parametrize("metric", ["squared", "absolute"])
def test_the_search_finds_the_start_that_the_references_were_made_with(metric):
    # Candidates come from seed + i, so number 13 of those from 20 on is seed 33.
    pairs = references(candidate(33)[0])
    found = optimize_boundary(Echo(), pairs, candidates=24, metric=metric, batch=3, seed=20)
    assert torch.equal(found.start, candidate(33)[0].half())
    assert list(found.losses) == sorted(found.losses)
    assert found.losses[0] < 0.1 * found.losses[1]


def test_bad_candidates_see_few_references():
    model = Echo()
    optimize_boundary(model, references(candidate(3)[0]), candidates=16, batch=8, halvings=2)
    # 16 candidates on 2 references, 8 on 2 more, 4 on the last 4.
    assert sum(shape[0] for shape in model.asked) == 16 * 2 + 8 * 2 + 4 * 4


def test_references_of_different_sizes_are_restored_apart():
    model, pairs = Echo(), references(candidate(1)[0], 3)
    pairs.insert(1, (torch.zeros(3, 4, 6), torch.zeros(3, 4, 6)))
    found = optimize_boundary(model, pairs, candidates=1, batch=4, halvings=0)
    assert model.asked == [(1, 3, 8, 8), (1, 3, 4, 6), (2, 3, 8, 8)]
    assert found.patch == (8, 8)


def test_own_metric_is_used():
    pairs = references(candidate(0)[0])
    found = optimize_boundary(
        Echo(), pairs, candidates=8, metric=lambda restored, truth: restored.flatten(1).mean(1), halvings=0
    )
    lowest = min(range(8), key=lambda i: float(candidate(i).half().mean()))
    assert torch.equal(found.start, candidate(lowest)[0].half())


def test_tiles_see_their_place_of_one_start_and_the_seed_draws_the_steps():
    start = torch.randn(2, 5, 7)
    boundary, field = Boundary(start), NoiseField(4, 2)
    places = [(0, 0), (3, 2)]
    noise = boundary.over(TileNoise(field, places, 2), places, 2)
    like = torch.zeros(2, 2, 6, 9)
    first, second = noise(like), noise(like)
    whole = boundary.crop((0, 0), (12, 13))
    assert torch.equal(first[0], whole[:, :6, :9])
    assert torch.equal(first[1], whole[:, 6:12, 4:13])
    # What steps draw does not depend on whether there is a boundary.
    assert torch.equal(second[1], field.crop(1, (6, 4), (6, 9)))


def test_the_start_is_periodic_and_kept_in_half_precision():
    start = torch.randn(1, 3, 4)
    cropped = Boundary(start).crop((-2, -5), (9, 12))
    rows, columns = (torch.arange(9) - 2) % 3, (torch.arange(12) - 5) % 4
    assert torch.equal(cropped, start.half().float()[:, rows[:, None], columns])
    assert torch.equal(Boundary(start).crop((3, 4), (3, 4), dtype=torch.float64), start.half().double())


def test_tiled_and_whole_restorations_agree(tiny_model):
    lq = torch.rand(1, 3, 12, 10) * 2 - 1
    boundary = Boundary(torch.randn(3, 16, 16))

    def restored(part: Tensor, place: tuple[int, int]) -> Tensor:
        noise = boundary.over(TileNoise(NoiseField(0, 3), [place], 4), [place], 4)
        return tiny_model.restore(part, mode="mean", noise=noise)

    whole = restored(lq, (0, 0))
    tile = restored(lq[..., 2:, :], (2, 0))
    pad = tiny_model.reach
    assert torch.allclose(tile[..., 4 * pad :, :], whole[..., 4 * (2 + pad) :, :], atol=1e-6)


def test_it_is_saved_beside_a_checkpoint_and_found_there(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path)
    loaded = ResShift.from_pretrained(tmp_path)
    assert boundary_beside(tiny_model) is None
    assert boundary_beside(loaded) is None
    kept = Boundary(torch.randn(3, 8, 8), (0.5, 0.7))
    file = kept.save(tmp_path)
    assert file.stat().st_size < 3 * 8 * 8 * 2 + 300
    found = boundary_beside(loaded)
    assert found is not None
    assert torch.equal(found.start, kept.start)
    assert found.losses == (0.5, 0.7)
    Boundary(torch.zeros(1, 8, 8)).save(tmp_path)
    with pytest.raises(CheckpointError, match="1 channels"):
        boundary_beside(loaded)
    file.write_bytes(b"no tensors")
    with pytest.raises(CheckpointError):
        boundary_beside(loaded)


def test_bad_input_is_refused():
    pair = (torch.zeros(3, 4, 4), torch.zeros(3, 4, 4))
    with pytest.raises(ValueError, match="pairs must hold at least one"):
        optimize_boundary(Echo(), [])
    with pytest.raises(ValueError, match="metric must be one of 'squared', 'absolute'"):
        optimize_boundary(Echo(), [pair], metric="ssim")
    with pytest.raises(ValueError, match="batch and candidates"):
        optimize_boundary(Echo(), [pair], candidates=0)
    with pytest.raises(ValueError, match="not 1 times"):
        optimize_boundary(Echo(), [(torch.zeros(3, 4, 4), torch.zeros(3, 8, 8))])
    with pytest.raises(ValueError, match="solver must be one of 'echo'"):
        optimize_boundary(Echo(), [pair], solver="ddim")
    with pytest.raises(ValueError, match="start must be"):
        Boundary(torch.zeros(3, 0, 4))
    with pytest.raises(ValueError, match="start has 2 channels, the state has 3"):
        Boundary(torch.zeros(2, 4, 4)).over(torch.randn_like)(torch.zeros(1, 3, 4, 4))


def test_a_restorer_begins_with_the_start_beside_its_checkpoint(tmp_path, tiny_model):
    image = np.random.default_rng(0).integers(0, 255, (12, 20, 3)).astype(np.uint8)
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="start: no best start"):
        Restorer.from_pretrained(tmp_path, "cpu")(image, mode="detailed", start="best")
    start = torch.randn(tiny_model.state_channels, 16, 16, generator=torch.Generator().manual_seed(1))
    Boundary(start).save(tmp_path)
    restorer = Restorer.from_pretrained(tmp_path, "cpu")
    best = restorer(image, mode="detailed", solver="ddim", start="best").pixels
    drawn = restorer(image, mode="detailed", solver="ddim").pixels
    assert not np.array_equal(best, drawn)
    # The solver of an ODE draws nothing else.
    other = restorer(image, mode="detailed", solver="ddim", start="best", seed=5).pixels
    np.testing.assert_array_equal(best, other)
    tiled = restorer(image, mode="detailed", solver="ddim", start="best", tile=16, tile_pad=16).pixels
    assert np.abs(tiled.astype(int) - best).max() <= 1
    with pytest.raises(ValueError, match="samples: expected 1 with the best start"):
        restorer(image, samples=2, start="best")
    with pytest.raises(ValueError, match="start: expected drawn or best"):
        restorer(image, start="worst")
