"""From a photograph in memory to a restored one: any size, any tiles, any kind of pixels."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from fewstep.core.noise import NoiseField
from fewstep.restoration import Restorer
from fewstep.restoration.canvas import canvas
from fewstep.restoration.images import ImageError, Picture, read
from fewstep.restoration.pipeline import as_picture
from fewstep.restoration.resize import imresize_to
from fewstep.restoration.rows import RowWriter, from_signed, to_signed
from fewstep.restoration.tiles import TileNoise, Tiling, restore_into

PHOTO = data.astronaut()[60:130, 150:255]


@pytest.fixture(scope="module")
def restorer(tiny_model) -> Restorer:
    return Restorer(tiny_model, device="cpu", dtype="float32")


def levels(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first.astype(int) - second.astype(int)).max())


@pytest.mark.parametrize("mode", ["faithful", "detailed"])
def test_it_is_the_model_on_the_whole_image(restorer, tiny_model, mode):
    lq = to_signed(PHOTO)[None]
    point = {"faithful": "mean", "detailed": "sample"}[mode]
    noise = NoiseField(5, 3).window((0, 0))
    expected = from_signed(tiny_model.restore(lq, mode=point, noise=noise)[0], np.dtype(np.uint8))
    result = restorer(PHOTO, mode=mode, seed=5)
    # Float sums may be taken in another order when progress is watched: a rounding may fall the other way.
    # Float sums may be taken in another order when progress is watched: a rounding may fall the other way.
    assert levels(result.pixels, expected.transpose(1, 2, 0)) <= 1
    assert (result.pixels != expected.transpose(1, 2, 0)).mean() < 1e-3
    assert (result.pixels != expected.transpose(1, 2, 0)).mean() < 1e-3
    assert result.calls == (1 if mode == "faithful" else 4)
    assert result.seconds > 0


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("tile", [16, 25, 48])
@pytest.mark.parametrize("mode", ["faithful", "detailed"])
def test_tiles_do_not_change_the_result(restorer, tiny_model, mode, tile, turned):
    photo = PHOTO.swapaxes(0, 1) if turned else PHOTO
    whole = restorer(photo, mode=mode, tile=0, seed=3)
    # Every call looks `reach` pixels further, so this pad makes tiles exact but for the order of float sums.
    pad = tiny_model.reach * (1 if mode == "faithful" else 4)
    tiled = restorer(photo, mode=mode, tile=tile, tile_pad=pad, seed=3)
    assert tiled.calls > whole.calls
    assert levels(tiled.pixels, whole.pixels) <= 1
    assert (tiled.pixels != whole.pixels).mean() < 1e-3


def test_tiles_without_surroundings_do_change_it(restorer):
    """The test above can fail: without a pad the borders of tiles show."""
    whole = restorer(PHOTO, tile=0)
    assert levels(restorer(PHOTO, tile=16, tile_pad=0).pixels, whole.pixels) > 1


def test_seeds(restorer):
    first, again, other = (restorer(PHOTO[:20, :20], mode="detailed", seed=s).pixels for s in (1, 1, 2))
    assert (first == again).all()
    assert levels(first, other) > 3


def test_several_samples_and_their_average(restorer):
    small = PHOTO[:20, :24]
    several = restorer(small, mode="detailed", samples=3, seed=7)
    assert len(several.pictures) == 3
    assert several.seeds == (7, 8, 9)
    for k, picture in enumerate(several.pictures):
        assert (picture.pixels == restorer(small, mode="detailed", seed=7 + k).pixels).all()
    average = restorer(small, mode="detailed", samples=3, seed=7, average=True)
    mean = np.mean([p.pixels.astype(np.float64) for p in several.pictures], axis=0)
    # Rounding of the samples and of their mean.
    assert np.abs(average.pixels - mean).max() <= 1.0
    assert len(average.pictures) == 1
    assert average.calls == several.calls == 12


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (37, 1), (2, 3), (5, 64), (33, 31)])
@pytest.mark.parametrize("mode", ["faithful", "detailed"])
def test_any_size(restorer, shape, mode):
    image = np.resize(PHOTO, (*shape, 3))
    for tile in (0, 16):
        out = restorer(image, mode=mode, tile=tile).pixels
        assert out.shape == (4 * shape[0], 4 * shape[1], 3)


def test_grey_is_restored_as_equal_channels(restorer):
    grey = PHOTO[:, :, 1]
    single = restorer(grey, mode="detailed").pixels
    triple = restorer(np.repeat(grey[:, :, None], 3, axis=2), mode="detailed").pixels
    assert single.shape == (280, 420, 1)
    assert np.abs(single[:, :, 0] - triple.mean(axis=2)).max() <= 1.0


def test_alpha_is_restored_as_grey(restorer):
    alpha = data.camera()[100:170, 200:305]
    image = np.dstack([PHOTO, alpha])
    out = restorer(image, seed=4)
    assert (out.pixels[:, :, :3] == restorer(PHOTO, seed=4).pixels).all()
    assert (out.pixels[:, :, 3] == restorer(alpha, seed=4).pixels[:, :, 0]).all()
    assert out.calls == 2
    opaque = restorer(np.dstack([PHOTO, np.full_like(alpha, 200)]))
    assert (opaque.pixels[:, :, 3] == 200).all()
    assert opaque.calls == 1


def test_sixteen_bits_and_floats_keep_their_depth(restorer):
    eight = restorer(PHOTO).pixels
    sixteen = restorer(PHOTO.astype(np.uint16) * 257)
    assert sixteen.pixels.dtype == np.uint16
    # 257 levels of 16 bits are one of 8.
    assert np.abs(sixteen.pixels / 257 - eight).max() <= 0.51
    assert len(np.unique(sixteen.pixels % 257)) > 200
    single = restorer(PHOTO / 255)
    assert single.pixels.dtype == np.float32
    assert np.abs(single.pixels * 255 - eight).max() <= 0.51


@pytest.mark.parametrize("scale", [1, 2, 2.5, 6, 0.5])
@pytest.mark.parametrize("tile", [0, 24])
def test_other_enlargements_are_resized_from_the_models(restorer, scale, tile):
    out = restorer(PHOTO / 255, scale=scale, tile=tile, tile_pad=24)
    size = (max(1, round(70 * scale)), max(1, round(105 * scale)))
    assert out.pixels.shape == (*size, 3)
    full = restorer(PHOTO / 255, tile=0).pixels.astype(np.float64)
    expected = np.clip(imresize_to(full, size), 0, 1)
    # The values before clipping to [0, 1] differ from those after it.
    inside = (full.min() > 0) and (full.max() < 1)
    assert np.abs(out.pixels - expected).max() < (1e-5 if inside else 0.1)


def test_progress_counts_calls_up_to_the_end(restorer):
    seen: list[tuple[int, int]] = []
    image = np.dstack([PHOTO, data.camera()[:70, :105]])
    result = restorer(
        image, mode="detailed", tile=32, tile_pad=8, samples=2, on_progress=lambda *s: seen.append(s)
    )
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert {total for _, total in seen} == {result.calls}
    assert seen[-1] == (result.calls, result.calls)


def test_inputs_of_every_kind_give_the_same(restorer, tmp_path):
    file = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(file)
    kinds = [PHOTO, file, str(file), file.read_bytes(), Image.open(file), read(file), Picture(PHOTO)]
    results = [restorer(kind).pixels for kind in kinds]
    assert all((result == results[0]).all() for result in results)
    with pytest.raises(TypeError, match="image"):
        as_picture([[1, 2]])  # pyright: ignore[reportArgumentType]


def test_saving(restorer, tmp_path):
    one = restorer(PHOTO[:16, :16])
    assert one.save(tmp_path / "a.png") == [tmp_path / "a.png"]
    assert (read(tmp_path / "a.png").pixels == one.pixels).all()
    two = restorer(PHOTO[:16, :16], samples=2)
    assert [p.name for p in two.save(tmp_path / "b.png")] == ["b-1.png", "b-2.png"]
    assert one.image.size == (64, 64)
    with pytest.raises(ImageError, match="no-such-folder"):
        one.save(tmp_path / "no-such-folder" / "a.png")


def test_saved_and_loaded_model_is_the_same(restorer, tiny_folder):
    loaded = Restorer.from_pretrained(tiny_folder, device="cpu")
    assert (loaded(PHOTO).pixels == restorer(PHOTO).pixels).all()


def test_bfloat16_is_close(tiny_model, restorer):
    half = Restorer(tiny_model, device="cpu", dtype="bfloat16")
    difference = half(PHOTO).pixels.astype(int) - restorer(PHOTO).pixels
    # Three digits of bfloat16 over a few layers.
    assert np.abs(difference).mean() < 2


def test_out_of_memory_halves_the_tiles_and_goes_on(tiny_model, restorer, monkeypatch):
    real, sizes = type(tiny_model).restore, []

    def limited(self, lq, **options):
        sizes.append(lq.shape[-1] * lq.shape[-2] * len(lq))
        if sizes[-1] > 40 * 40:
            raise torch.OutOfMemoryError("out of memory")
        return real(self, lq, **options)

    expected = restorer(PHOTO, tile=0).pixels
    monkeypatch.setattr(type(tiny_model), "restore", limited)
    with pytest.warns(RuntimeWarning, match="memory"):
        out = restorer(PHOTO, tile=48, tile_pad=6)
    assert max(sizes) > 40 * 40 >= sizes[-1]
    assert levels(out.pixels, expected) <= 1


def test_noise_of_tiles_is_a_crop_of_one_field():
    field = NoiseField(3, 2)
    noise = TileNoise(field, [(0, 0), (5, 7)], ratio=4)
    like = torch.zeros(2, 2, 12, 16)
    first, second = noise(like), noise(like)
    whole = [field.crop(k, (0, 0), (60, 60)) for k in range(2)]
    for draw, tiles in zip(whole, (first, second), strict=True):
        assert torch.equal(tiles[0], draw[:, :12, :16])
        assert torch.equal(tiles[1], draw[:, 20:32, 28:44])


def test_rows_are_finished_in_order_along_the_short_side():
    """A long strip is cut across, so that few values wait for their neighbours."""
    waiting = []

    def function(tiles, places):
        waiting.append(places)
        return torch.nn.functional.interpolate(tiles, scale_factor=4)

    source = np.zeros((20, 500, 1), np.uint8)
    target = np.ones((80, 2000, 1), np.uint8)
    restore_into(target, source, function, Tiling(32, 8, 8), 4)
    assert (target == 0).all()
    assert [column for group in waiting for _, column in group] == sorted(
        column for group in waiting for _, column in group
    )


def test_automatic_tiles_follow_the_budget():
    assert Tiling.choose((500, 500), reach=20, pixel_bytes=4000, budget=1e9).tile == 0
    large = Tiling.choose((5000, 5000), reach=20, pixel_bytes=4000, budget=1e9)
    assert large.tile % 64 == 0
    window = large.tile + 2 * large.pad
    assert window**2 * 4000 <= 1e9
    # Unfinished rows of the result, in float32.
    assert window * 4 * 5000 * 4 * 12 < 1e9
    assert Tiling.choose((10**7, 5), reach=20, pixel_bytes=4000).tile >= 384
    assert Tiling.choose((5000, 5000), pixel_bytes=10**6, budget=1e9).tile == 64
    small = Tiling.choose((5000, 5000), tile=64, reach=20, pixel_bytes=4000, budget=1e9)
    assert 1 < small.batch <= 16


def test_large_results_live_in_a_file(monkeypatch):
    monkeypatch.setattr("fewstep.restoration.canvas._IN_MEMORY", 1000)
    large = canvas((40, 50, 3), np.dtype(np.uint16))
    assert isinstance(large, np.memmap)
    large[:] = 7
    assert large.sum() == 42000
    assert not isinstance(canvas((10, 10, 3), np.dtype(np.uint8)), np.memmap)


def test_values_survive_the_way_to_the_network_and_back():
    for dtype in (np.uint8, np.uint16):
        values = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).reshape(1, -1, 1)
        assert (from_signed(to_signed(values), np.dtype(dtype)).transpose(1, 2, 0) == values).all()
    beyond = torch.tensor([[[-1.5, 1.5]]])
    target = np.zeros((1, 2, 1), np.uint8)
    RowWriter(target, (1, 2)).write(beyond)
    assert target.ravel().tolist() == [0, 255]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "sharp"}, "mode.*faithful or detailed.*'sharp'"),
        ({"steps": 0}, "steps.*0"),
        ({"steps": 9, "mode": "detailed"}, "steps.*4.*9"),
        ({"samples": 0}, "samples.*0"),
        ({"scale": 0}, "scale.*0"),
        ({"scale": float("nan")}, "scale.*nan"),
        ({"tile": 3}, "tile.*3"),
        ({"tile": "big"}, "tile.*'big'"),
        ({"tile_pad": -1, "tile": 32}, "tile_pad.*-1"),
    ],
)
def test_bad_settings_are_named(restorer, options, words):
    with pytest.raises(ValueError, match=words):
        restorer(PHOTO, **options)


def test_a_solver_without_fresh_noise_gives_another_sample_from_the_same_start(tiny_model):
    image = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    restorer = Restorer(tiny_model, device="cpu")
    drawn, ode, again = (
        restorer(image, mode="detailed", solver=solver, seed=2).pixels
        for solver in ("ancestral", "ddim", "ddim")
    )
    assert np.array_equal(ode, again)
    assert not np.array_equal(drawn, ode)
    # One call has no step left in which they could differ.
    first, second = (restorer(image, solver=solver, seed=2).pixels for solver in ("ancestral", "ddim"))
    assert np.array_equal(first, second)


def test_an_unknown_solver_is_refused_with_the_known_ones(tiny_model):
    with pytest.raises(ValueError, match="ancestral, ddim, dpmpp-2m, dpmpp-3m, got 'magic'"):
        Restorer(tiny_model, device="cpu")(np.zeros((8, 8, 3), np.uint8), solver="magic")
