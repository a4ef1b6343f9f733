"""The smooth first guess of what a mask hides."""

import numpy as np
import pytest
import torch

from fewstep.restoration import Restorer
from fewstep.restoration.degradations import Masked
from fewstep.restoration.filling import smooth_fill
from fewstep.restoration.images import Picture
from fewstep.restoration.methods.rddm import RDDM, RDDMConfig
from fewstep.restoration.pairs import Crops
from fewstep.restoration.preparation import Preparation


def plane(dtype=np.float64) -> np.ndarray:
    """A linear function, which is harmonic: (40, 56, 3)."""
    rows, columns = np.mgrid[:40, :56]
    return np.stack([rows / 80 + columns / 112, 0.9 - rows / 50, 0.1 + columns / 70], axis=2).astype(dtype)


def band() -> np.ndarray:
    mask = np.zeros((40, 56), bool)
    mask[15:21, 5:50] = True
    mask[5:35, 30:34] = True
    return mask


def test_known_pixels_stay_and_a_linear_function_comes_back():
    image = plane()
    made = smooth_fill(np.where(band()[..., None], 0.0, image), band())
    np.testing.assert_array_equal(made[~band()], image[~band()])
    # Left as it was, or filled with the mean, the error would be 0.2 and more.
    assert np.abs(made - image)[band()].max() < 0.02


def test_what_lies_under_the_mask_does_not_matter():
    image, mask = (plane() * 255).astype(np.uint8), band()
    other = np.where(mask[..., None], np.uint8(77), image)
    np.testing.assert_array_equal(smooth_fill(image, mask), smooth_fill(other, mask))


def test_no_filled_value_leaves_the_range_of_the_known_ones():
    image = np.random.default_rng(0).integers(60, 200, (37, 53, 3)).astype(np.uint8)
    mask = np.random.default_rng(1).random((37, 53)) < 0.8
    made = smooth_fill(image, mask)
    assert made.dtype == np.uint8
    assert image[~mask].min() <= made.min() <= made.max() <= image[~mask].max()


@pytest.mark.parametrize(("dtype", "grey"), [(np.uint8, 128), (np.uint16, 32768), (np.float32, 0.5)])
def test_where_nothing_is_known_all_is_grey(dtype, grey):
    assert (smooth_fill(np.zeros((5, 7, 3), dtype), np.ones((5, 7), bool)) == grey).all()


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match="mask must have the image's size"):
        smooth_fill(np.zeros((5, 7, 3)), np.zeros((7, 5), bool))


def test_alpha_is_not_filled():
    pixels = np.concatenate([plane(), np.full((40, 56, 1), 0.3)], axis=2).astype(np.float32)
    made = Preparation(fill=True).picture(Picture(pixels), band()).pixels
    np.testing.assert_array_equal(made[:, :, 3], pixels[:, :, 3])
    np.testing.assert_array_equal(made[:, :, :3], smooth_fill(pixels[:, :, :3], band()))


def test_crops_for_training_are_filled():
    image = (plane() * 255).astype(np.uint8)
    clean, bad = Crops((image,), Masked(kinds=("boxes",)), 32, Preparation(fill=True)).draw(
        np.random.default_rng(0)
    )
    assert bad.mask is not None
    assert np.abs(bad.lq.astype(int) - clean)[bad.mask].max() < 20
    np.testing.assert_array_equal(bad.lq[~bad.mask], clean[~bad.mask])


def fresh(fill: bool) -> Restorer:
    torch.manual_seed(0)
    config = RDDMConfig(
        sampling_steps=2, sum_scale=0.01, objective="pred_x0", solver="ddim", network="small-unet",
        conditions=("input", "mask"), network_options={"widths": (8,), "blocks": 1}, padding=2, fill=fill,
    )  # fmt: skip
    return Restorer(RDDM(config), "cpu")


def test_a_model_that_fills_begins_with_the_smooth_guess_whatever_the_tiles():
    # A fresh network returns its input.
    image, mask = (plane() * 255).astype(np.uint8), band()
    guess = smooth_fill(image, mask).astype(int)
    hidden = np.where(mask[..., None], np.uint8(0), image)
    whole = fresh(True)(hidden, mask=mask).pixels.astype(int)
    assert np.abs(whole - guess).max() <= 1
    tiled = fresh(True)(hidden, mask=mask, tile=24, tile_pad=8).pixels.astype(int)
    assert np.abs(tiled - guess).max() <= 1
    assert np.abs(fresh(False)(hidden, mask=mask).pixels.astype(int) - guess)[mask].mean() > 20
