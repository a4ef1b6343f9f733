"""Brightening of whole photographs before the network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep.restoration import Restorer
from fewstep.restoration.degradations import LowLight
from fewstep.restoration.exposure import exposed, exposure_gamma
from fewstep.restoration.images import Picture
from fewstep.restoration.methods.rddm import RDDM, RDDMConfig
from fewstep.restoration.pairs import Crops
from fewstep.restoration.preparation import Preparation


def dark(dtype=np.uint8) -> np.ndarray:
    values = np.random.default_rng(0).beta(1.2, 9.0, (40, 56, 3))
    return values.astype(np.float32) if dtype == np.float32 else (values * np.iinfo(dtype).max).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_mean_becomes_what_is_asked_in_every_depth(dtype):
    image = dark(dtype)
    peak = 1.0 if dtype == np.float32 else np.iinfo(dtype).max
    made = exposed(image, 0.45)
    assert made.dtype == dtype
    # The histogram of deep images has 4096 bins: the mean is within a bin or two.
    assert made.mean() / peak == pytest.approx(0.45, abs=2e-3)
    gamma = exposure_gamma(image, 0.45)
    np.testing.assert_allclose(made / peak, (image / peak) ** gamma, atol=0.5 / 255 if peak == 255 else 1e-4)


def test_bright_and_black_images_stay():
    assert exposure_gamma(np.full((4, 4, 3), 0.6), 0.45) == 1.0
    black = np.zeros((4, 4, 3), np.uint8)
    np.testing.assert_array_equal(exposed(black, 0.45), black)


@pytest.mark.parametrize("mean", [0.0, 1.0, -1.0, float("nan")])
def test_a_mean_out_of_range_is_refused(mean):
    with pytest.raises(ValueError, match="mean must lie between 0 and 1"):
        exposure_gamma(dark(), mean)


def test_alpha_is_not_brightened():
    pixels = np.concatenate([dark(), np.full((40, 56, 1), 77, np.uint8)], axis=2)
    made = Preparation(exposure=0.45).picture(Picture(pixels)).pixels
    assert (made[:, :, 3] == 77).all()
    np.testing.assert_array_equal(made[:, :, :3], exposed(pixels[:, :, :3], 0.45))


def fresh_model(exposure: float) -> RDDM:
    options = {"widths": (8,), "blocks": 1}
    torch.manual_seed(0)
    config = RDDMConfig(
        sampling_steps=2, sum_scale=0.01, objective="pred_x0", solver="ddim", network="small-unet",
        network_options=options, padding=2, exposure=exposure,
    )  # fmt: skip
    return RDDM(config)


def test_a_model_with_exposure_sees_the_brightened_photograph_whatever_the_tiles():
    image = dark()
    plain, bright = (Restorer(fresh_model(exposure), "cpu") for exposure in (0.0, 0.45))
    by_hand = plain(exposed(image, 0.45)).pixels
    np.testing.assert_array_equal(bright(image).pixels, by_hand)
    tiled = bright(image, tile=24, tile_pad=8).pixels
    assert np.abs(tiled.astype(int) - by_hand.astype(int)).max() <= 1
    assert np.abs(plain(image).pixels.astype(int) - by_hand.astype(int)).mean() > 20


def test_crops_are_exposed_as_parts_of_their_photograph():
    halves = np.zeros((64, 128, 3), np.uint8)
    halves[:, :64], halves[:, 64:] = 40, 220
    plain = LowLight(power=(2.0, 2.0), gain=(0.5, 0.5), shot=0.0, read=0.0)
    crops = Crops((halves,), plain, 16, Preparation(exposure=0.45))
    whole = exposed(plain(halves, np.random.default_rng(0)).lq, 0.45)
    expected = {40: int(whole[0, 0, 0]), 220: int(whole[0, -1, 0])}
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(40):
        clean, bad = crops.draw(rng)
        for value in np.unique(clean):
            assert (bad.lq[clean == value] == expected[int(value)]).all()
            seen.add(int(value))
    assert seen == {40, 220}


def test_exposure_out_of_range_is_refused():
    with pytest.raises(ValueError, match="exposure must lie in 0"):
        replace(fresh_model(0.0).config, exposure=1.0)
