"""Noise estimates, uncertainty, consistency, masks: what users have beside the picture."""

import numpy as np
import pytest
import torch
from skimage import data
from tests.restoration.tiny_models import make_tiny

from fewstep.restoration import Restorer
from fewstep.restoration.consistency import Reduction, make_consistent
from fewstep.restoration.images import Picture
from fewstep.restoration.methods.idm import IDM, IDMConfig, to_planes
from fewstep.restoration.quality import Spread, colours_of, estimate_level, uncertainty_picture
from fewstep.restoration.resize import imresize_to
from fewstep.restoration.rows import to_signed

PHOTO = data.astronaut()[60:130, 150:255]


@pytest.fixture(scope="module")
def enlarger(tiny_model) -> Restorer:
    return Restorer(tiny_model, device="cpu", dtype="float32")


@pytest.mark.parametrize("sigma", [0, 8, 25, 40])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
def test_the_noise_of_a_smooth_image_is_estimated(sigma, kind):
    slope = np.linspace(115, 130, 200)[:, None, None] + np.linspace(0, 10, 300)[None, :, None]
    noise = np.random.default_rng(3).normal(0, sigma, (200, 300, 3))
    peak = 1.0 if kind == np.float32 else float(np.iinfo(kind).max)
    values = np.clip((slope + noise) / 255, 0, 1) * peak
    pixels = values.astype(kind) if kind == np.float32 else np.rint(values).astype(kind)
    # Three medians of 15,000 details are known to 1 %; rounding to 8 bit adds its own third of a level.
    found = estimate_level(Picture(pixels))
    assert found == pytest.approx(sigma, rel=0.02, abs=0.4)


def test_the_wavelet_is_blind_to_slopes():
    slope = np.add.outer(np.arange(40.0), 2 * np.arange(50.0)).astype(np.float32)[:, :, None] / 200
    assert estimate_level(Picture(slope)) < 1e-3
    assert estimate_level(Picture(np.zeros((3, 9, 1), np.uint8))) == 0


def test_an_estimated_level_is_told_to_the_model_and_reported():
    noisy = np.clip(PHOTO + np.random.default_rng(0).normal(0, 30, PHOTO.shape), 0, 255).astype(np.uint8)
    restorer = Restorer(make_tiny(("level",)), device="cpu", dtype="float32")
    auto = restorer(noisy, level="auto")
    assert auto.level == pytest.approx(estimate_level(Picture(noisy)))
    assert (auto.pixels == restorer(noisy, level=auto.level).pixels).all()
    assert (auto.pixels != restorer(noisy, level=5).pixels).any()
    assert restorer(noisy).level is None


def test_spread_is_the_standard_deviation():
    samples = np.random.default_rng(0).random((5, 300, 7, 3)).astype(np.float32)
    spread = Spread(samples.shape[1:])
    for sample in samples:
        spread.add(sample)
    assert np.abs(spread.mean - samples.mean(0)).max() < 1e-6
    expected = np.sqrt(samples.astype(np.float64).var(0, ddof=1)[:, :, :2].mean(2))
    assert np.abs(spread.deviation(2) - expected).max() < 1e-6


def test_uncertainty_is_that_of_the_samples(enlarger):
    small = PHOTO[:20, :24]
    exact = enlarger(small / 255, mode="detailed", samples=3, seed=5)
    stack = np.stack([picture.pixels for picture in exact.pictures]).astype(np.float64)
    expected = np.sqrt(stack.var(0, ddof=1).mean(2))
    result = enlarger(small, samples=3, seed=5, uncertainty=True)
    assert result.deviation is not None
    # 8-bit input, but samples that are not rounded before they are compared.
    assert np.abs(result.deviation - expected).max() < 1e-5
    assert [p.pixels.dtype for p in result.pictures] == [np.uint8] * 3
    assert np.abs(result.pictures[1].pixels - 255 * stack[1]).max() <= 0.51
    average = enlarger(small, samples=3, seed=5, uncertainty=True, average=True)
    assert np.abs(average.pixels - 255 * stack.mean(0)).max() <= 0.51
    assert len(average.pictures) == 1
    assert enlarger(small, samples=3).deviation is None


def test_the_map_has_a_legend():
    deviation = np.linspace(0, 0.2, 5000, dtype=np.float32).reshape(50, 100)
    picture, facts = uncertainty_picture(deviation, floating=False)
    legend = facts["legend"]
    assert legend[0]["value"] == 0
    assert legend[-1]["value"] == pytest.approx(51 * 0.999, rel=1e-3)
    middle = legend[4]
    row, column = divmod(int(np.abs(deviation * 255 - middle["value"]).argmin()), 100)
    assert "#{:02x}{:02x}{:02x}".format(*picture.pixels[row, column]) == middle["colour"]
    lightness = colours_of(np.linspace(0, 1, 40)) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(lightness) > 0).all()
    numbers, about = uncertainty_picture(deviation, floating=True)
    assert (numbers.pixels[:, :, 0] == deviation).all()
    assert "legend" not in about
    assert about["largest"] == pytest.approx(51)


@pytest.mark.parametrize(
    ("large", "small"), [((80, 120), (20, 30)), ((33, 50), (20, 30)), ((9, 700), (3, 99))]
)
def test_the_reduction_is_that_of_resize(large, small):
    image = np.random.default_rng(0).random((*large, 3))
    reduction = Reduction(large, small)
    assert np.abs(reduction.reduce(image) - imresize_to(image, small)).max() < 1e-12
    # A A⁺ = 1, as long as nothing is clipped.
    middle, change = (
        np.full((*large, 3), 0.5, np.float32),
        0.01 * np.random.default_rng(1).random((*small, 3)),
    )
    reduction.add_adjoint(middle, reduction.solve(change))
    assert np.abs(reduction.reduce(middle) - 0.5 - change).max() < 1e-6


@pytest.mark.parametrize("factor", [2, 3, 4, 2.5])
def test_a_consistent_result_reduces_to_the_photograph(factor):
    source = np.clip(PHOTO[:40, :50].astype(np.int16), 30, 220).astype(np.uint8)
    size = round(40 * factor), round(50 * factor)
    rng = np.random.default_rng(0)
    result = np.clip(imresize_to(source.astype(float), size) + rng.normal(0, 9, (*size, 3)), 0, 255)
    result = np.rint(result).astype(np.uint8)
    before = result.copy()
    residual = make_consistent(result, source)
    again = imresize_to(result.astype(np.float64), (40, 50))
    assert (np.rint(again) == source).all()
    assert residual.largest == pytest.approx(np.abs(again - source).max())
    assert residual.largest < 0.5 < residual.before
    # The nearest such image, so that what the photograph does not say stays.
    detail = before - imresize_to(imresize_to(before.astype(float), (40, 50)), size)
    left = result - imresize_to(again, size)
    assert np.corrcoef(detail.ravel(), left.ravel())[0, 1] > 0.9


def test_black_and_white_areas_take_some_rounds():
    source = np.zeros((24, 24, 1), np.float32)
    source[6:18, 6:18] = 1
    source = np.clip(imresize_to(np.repeat(np.repeat(source, 4, 0), 4, 1), (24, 24)), 0, 1)
    result = np.clip(imresize_to(source, (96, 96)), 0, 1)
    residual = make_consistent(result, source)
    assert residual.rounds > 1
    assert residual.largest < 0.25 * residual.before
    assert 0 <= result.min() <= result.max() <= 1


def test_consistency_of_the_pipeline(enlarger):
    result = enlarger(PHOTO[:30, :40], samples=2, consistent=True, scale=3)
    for picture, residual in zip(result.pictures, result.residuals, strict=True):
        reduced = imresize_to(picture.pixels.astype(np.float64), (30, 40))
        assert np.abs(reduced - PHOTO[:30, :40]).max() == pytest.approx(residual.largest)
        assert residual.root_mean_square < 0.5
        assert residual.before > 5
    assert enlarger(PHOTO[:30, :40], scale=3).residuals == ()


def test_reconstructions_keep_their_measurements():
    torch.manual_seed(0)
    config = IDMConfig(
        ratio=0.25, block=8, steps=2, channels=(16, 16), attention=(False, False), normalised=False, group=40
    )
    restorer = Restorer(IDM(config).eval(), device="cpu", dtype="float32")
    assert restorer.modes == ("detailed",)
    plain = restorer(PHOTO[:48, :60], seed=3)
    result = restorer(PHOTO[:48, :60], seed=3, consistent=True)
    (residual,) = result.residuals
    # The corner, which is a rectangle of its own and measured with the seed itself.
    planes = [to_planes(to_signed(p[:24, :30])[None]) for p in (PHOTO[:48, :60], plain.pixels, result.pixels)]
    y, before, after = (restorer.model.measure(plane, 3).values for plane in planes)  # type: ignore[operator]
    assert float((after - y).abs().max()) * 255 <= residual.largest + 1e-6
    assert residual.root_mean_square < 1
    assert float((before - y).abs().mean()) > 5 * float((after - y).abs().mean())
    with pytest.raises(ValueError, match="average of reconstructions"):
        restorer(PHOTO, consistent=True, samples=2, average=True)
    with pytest.raises(ValueError, match="tile to 0"):
        restorer(PHOTO[:48, :60], consistent=True, tile=16)


@pytest.mark.parametrize("turned", [False, True], ids=["wide", "tall"])
@pytest.mark.parametrize("mode", ["faithful", "detailed"])
def test_masks_go_with_their_tiles(mode, turned):
    photo = PHOTO.swapaxes(0, 1) if turned else PHOTO
    mask = np.zeros(photo.shape[:2], bool)
    mask[10:31, 20:55] = True
    mask[60, :] = True
    restorer = Restorer(make_tiny(("mask",)), device="cpu", dtype="float32")
    whole = restorer(photo, mode=mode, tile=0, mask=mask)
    tiled = restorer(photo, mode=mode, tile=17, tile_pad=4, mask=mask)
    assert tiled.calls > 4 * whole.calls
    assert np.abs(tiled.pixels.astype(int) - whole.pixels).max() <= 1
    assert (tiled.pixels != whole.pixels).mean() < 1e-3
    assert (whole.pixels[~mask] == photo[~mask]).all()
    assert (whole.pixels[mask] != photo[mask]).mean() > 0.5
    narrow = restorer(photo, mode="detailed", tile=17, tile_pad=0, mask=mask)
    assert np.abs(narrow.pixels.astype(int) - restorer(photo, mode="detailed", mask=mask).pixels).max() > 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"uncertainty": True}, "uncertainty.*2.*got 1"),
        ({"uncertainty": True, "samples": 2, "mode": "faithful"}, "uncertainty.*detailed.*'faithful'"),
        ({"consistent": True, "scale": 1}, "consistent.*enlargement"),
        ({"level": 3}, "not told the noise level"),
        ({"level": -1}, "level.*0 … 255.*-1"),
        ({"level": float("nan")}, "level.*nan"),
        ({"level": "some"}, "level.*'some'"),
        ({"level": True}, "level.*True"),
        ({"mask": np.ones(PHOTO.shape[:2], bool)}, "takes no mask"),
    ],
)
def test_what_cannot_be_is_named(enlarger, options, words):
    with pytest.raises(ValueError, match=words):
        enlarger(PHOTO, **options)


def test_a_result_smaller_than_the_photograph_cannot_be_consistent():
    with pytest.raises(ValueError, match=r"consistent.*30×20.*15×20"):
        make_consistent(np.zeros((20, 15, 3), np.uint8), np.zeros((20, 30, 3), np.uint8))
