"""The checkpoint that ships, on photographs that ship with scikit-image."""

from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from fewstep.restoration import Restorer
from fewstep.restoration.data import reduce_image
from fewstep.restoration.metrics import psnr, score, sharpness
from fewstep.restoration.resize import imresize


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer.from_pretrained("resshift-x4", device="cpu")


@pytest.fixture(scope="module", params=["astronaut.png", "coffee.png", "chelsea.png"])
def pair(request) -> tuple[np.ndarray, np.ndarray]:
    """A cut of a photograph (256×320) and its reduction."""
    with Image.open(Path(skimage.__file__).parent / "data" / request.param) as image:
        truth = np.asarray(image.convert("RGB"))[20:276, 60:380]
    return truth, reduce_image(truth, 4)


def enlarged(reduced: np.ndarray) -> np.ndarray:
    """Bicubic enlargement in 8 bit."""
    return np.clip(np.rint(np.asarray(imresize(reduced.astype(np.float64), 4))), 0, 255).astype(np.uint8)


def luma(image: np.ndarray, truth: np.ndarray) -> float:
    return score(image, truth, "y", border=4).psnr


def test_faithful_beats_bicubic(restorer, pair):
    truth, reduced = pair
    gain = luma(restorer(reduced).pixels, truth) - luma(enlarged(reduced), truth)
    assert gain > 0.5


def test_detailed_is_sharper_than_faithful_and_no_worse_than_bicubic(restorer, pair):
    truth, reduced = pair
    faithful, detailed = restorer(reduced).pixels, restorer(reduced, mode="detailed").pixels
    assert sharpness(detailed, truth) > sharpness(faithful, truth) > sharpness(enlarged(reduced), truth)
    assert luma(detailed, truth) > luma(enlarged(reduced), truth)


def test_the_average_of_samples_is_closer_to_the_truth_than_a_sample(restorer, pair):
    truth, reduced = pair
    one = luma(restorer(reduced, mode="detailed").pixels, truth)
    assert luma(restorer(reduced, mode="detailed", samples=4, average=True).pixels, truth) > one


@pytest.mark.parametrize("mode", ["faithful", "detailed"])
def test_tiles_change_nothing_that_can_be_seen(restorer, mode):
    # Reduced photograph of 150×128 pixels in tiles of 48: seams in both directions. One call is exact up to
    # rounding to 8 bit; four calls reach four times as far as the overlap, so 55 dB is asked of them.
    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as image:
        photograph = np.asarray(image.convert("RGB"))[:150, :128]
    whole = restorer(photograph, mode=mode, tile=0, seed=3).pixels
    tiled = restorer(photograph, mode=mode, tile=48, seed=3).pixels
    difference = np.abs(whole.astype(int) - tiled.astype(int))
    if mode == "faithful":
        assert difference.max() <= 1
    assert psnr(tiled, whole) > 55


def test_the_card_says_what_a_reader_must_know():
    import fewstep.restoration

    card = Path(fewstep.restoration.__file__).parent / "checkpoints" / "resshift-x4" / "README.md"
    text = card.read_text(encoding="utf-8")
    for fact in ("BSDS500", "fewstep restore train", "minutes", "set5", "PSNR Y", "Limits"):
        assert fact in text
