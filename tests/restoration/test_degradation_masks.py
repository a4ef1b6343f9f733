"""What is hidden or thrown away: masks, pixelation and the colours of a sensor."""

import math
from itertools import pairwise

import numpy as np
import pytest

from fewstep.restoration.degradations import Bayer, Masked, Mosaic
from fewstep.restoration.degradations.masks import draw_segment
from fewstep.restoration.degradations.mosaic import PATTERNS, bayer_mask

KINDS = ("lines", "boxes", "strokes", "text")


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(height: int = 64, width: int = 48) -> np.ndarray:
    """A smooth coloured scene with an edge and some texture."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 9)], axis=-1)
    image = 120 + 70 * waves + 30 * (x > width / 2)[..., None] + rng(9).normal(0, 6, waves.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_hide_what_they_say(kind):
    clean = picture(128, 128)
    made = Masked(kinds=(kind,))
    shares = []
    for seed in range(40):
        hidden = made(clean, rng(seed))
        assert hidden.mask is not None
        assert hidden.mask.shape == (128, 128)
        assert hidden.mask.dtype == bool
        assert (hidden.lq[hidden.mask] == 127).all()
        np.testing.assert_array_equal(hidden.lq[~hidden.mask], clean[~hidden.mask])
        shares.append(hidden.mask.mean())
    assert min(shares) > 0
    assert max(shares) < 0.75
    assert 0.01 < np.mean(shares) < 0.35


def test_masks_of_all_kinds_are_drawn_and_are_never_empty():
    made = Masked()
    masks = {made.mask((40, 40), rng(seed)).tobytes() for seed in range(40)}
    assert len(masks) == 40
    for seed in range(30):
        assert made.mask((1, 1), rng(seed)).all()
        assert made.mask((2, 50), rng(seed)).any()


@pytest.mark.parametrize("width", [4, 7, 11])
@pytest.mark.parametrize("angle", [0.0, 17.0, 50.0, 80.0])
def test_lines_are_as_wide_as_asked(width, angle):
    mask = np.zeros((220, 220), bool)
    down, right = 90 * math.sin(math.radians(angle)), 90 * math.cos(math.radians(angle))
    draw_segment(mask, (110.3 - down, 110.3 - right), (110.3 + down, 110.3 + right), width)
    area = 180 * width + math.pi * width**2 / 4
    assert mask.sum() == pytest.approx(area, rel=0.03)
    turned = np.zeros((220, 220), bool)
    draw_segment(turned, (110.3 + down, 110.3 + right), (110.3 - down, 110.3 - right), width)
    np.testing.assert_array_equal(mask, turned)


def test_segments_are_cut_at_the_border():
    large, small = np.zeros((60, 60), bool), np.zeros((20, 20), bool)
    draw_segment(large, (10.0, 15.0), (50.0, 44.0), 6)
    draw_segment(small, (-10.0, -5.0), (30.0, 24.0), 6)
    np.testing.assert_array_equal(small, large[20:40, 20:40])
    draw_segment(small, (-90.0, -90.0), (-40.0, -70.0), 6)
    np.testing.assert_array_equal(small, large[20:40, 20:40])


def test_mosaic_blocks_hold_their_means():
    clean = picture(50, 37)
    made = Mosaic((8, 8))(clean, rng(1)).lq
    rows = [0, *(np.flatnonzero((made[1:] != made[:-1]).any(axis=(1, 2))) + 1), 50]
    columns = [0, *(np.flatnonzero((made[:, 1:] != made[:, :-1]).any(axis=(0, 2))) + 1), 37]
    assert set(np.diff(rows)[1:-1]) == {8}
    assert set(np.diff(columns)[1:-1]) == {8}
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            mean = clean[top:bottom, left:right].mean(axis=(0, 1))
            assert np.abs(made[top:bottom, left:right] - mean).max() <= 0.5 + 1e-9
    np.testing.assert_array_equal(Mosaic((1, 1))(clean, rng()).lq, clean)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_bayer_keeps_one_colour_and_interpolates_the_others(pattern):
    clean = picture(11, 14)
    made = Bayer((pattern,))(clean, rng()).lq
    seen = bayer_mask((11, 14), pattern)
    assert (seen.sum(axis=2) == 1).all()
    assert "".join("RGB"[index] for index in seen[:2, :2].argmax(axis=2).ravel()) == pattern
    np.testing.assert_array_equal(made[seen], clean[seen])
    y, x = np.mgrid[:11, :14]
    plane = (3 * y + 5 * x + 20)[..., None].repeat(3, axis=2).astype(np.uint8)
    inside = Bayer((pattern,))(plane, rng()).lq[1:-1, 1:-1]
    np.testing.assert_array_equal(inside, plane[1:-1, 1:-1])
