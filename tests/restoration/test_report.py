"""The page of a run: self-contained, of limited size, with what was done."""

import base64
import io
import re

import numpy as np
from PIL import Image
from skimage import data

from fewstep.restoration.images import Picture
from fewstep.restoration.report import Gallery, describe, page, preview

PHOTO = data.astronaut()


def pictures(text: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/webp;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(part))) for part in found]


def test_a_page_needs_no_other_file(tmp_path):
    gallery = Gallery(tmp_path / "sub" / "page.html", "A <title>")
    small = Picture(np.ascontiguousarray(PHOTO[::4, ::4]))
    gallery.add("cat.png", small, Picture(PHOTO), "done & said", Picture(PHOTO[:, :, :1]))
    text = gallery.write(["dog.png: is no image"]).read_text(encoding="utf-8")
    assert len(re.findall(r"(?:src|href)=", text)) == len(re.findall(r'src="data:', text)) == 3
    assert not re.search(r"https?:|url\(|@import", text)
    assert "A &lt;title&gt;" in text
    assert "done &amp; said" in text
    assert '<p class="bad">dog.png: is no image</p>' in text
    before, after, map_ = pictures(text)
    assert (before.size, after.size, map_.size) == ((128, 128), (512, 512), (512, 512))
    assert np.abs(np.asarray(after, float) - PHOTO).mean() < 4
    assert 'type="range"' in text
    assert "aspect-ratio:512/512" in text


def test_a_page_does_not_grow_without_end(tmp_path):
    gallery = Gallery(tmp_path / "page.html", "Many", budget=100_000)
    for number in range(6):
        gallery.add(f"{number}.png", Picture(PHOTO), Picture(PHOTO), "same")
    shown = [bool(one.after) for one in gallery.shown]
    assert True in shown
    assert False in shown
    assert sum(one.weight for one in gallery.shown) <= 100_000
    text = page("Many", gallery.shown)
    assert all(f"{number}.png" in text for number in range(6))
    assert "not shown: the page would be too large" in text


def test_previews_of_every_kind():
    alpha = np.zeros((*PHOTO.shape[:2], 1), np.uint8)
    clear = Picture(np.concatenate([PHOTO, alpha], axis=2))
    assert np.asarray(Image.open(io.BytesIO(preview(clear)))).min() == 255
    deep = Picture(PHOTO.astype(np.uint16) * 257)
    assert np.abs(np.asarray(Image.open(io.BytesIO(preview(deep))), float) - PHOTO).mean() < 4
    large = Picture(np.zeros((50, 9000, 1), np.float32))
    assert Image.open(io.BytesIO(preview(large, side=300))).size[0] == 300
    grey = Picture(PHOTO[:, :, :1], icc=b"a profile of grey")
    assert "icc_profile" not in Image.open(io.BytesIO(preview(grey))).info


def test_a_line_says_what_was_done():
    details = {"size": [3, 4], "result_size": [6, 8], "seconds": 1.234, "calls": 1, "mode": "faithful"}
    assert describe(details, "m") == "3 × 4 → 6 × 8; 1.23 s; 1 network call; m, faithful"
    assert describe({**details, "calls": 4, "sigma": 12.04}, "m").endswith(
        "4 network calls; m, faithful; noise 12.0"
    )
