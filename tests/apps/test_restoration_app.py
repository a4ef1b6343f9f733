"""The restoration app in a real browser: upload, run, look, download; and what it says to a wrong file."""

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pytest
import skimage.data
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

gradio = pytest.importorskip("gradio", reason="the apps need gradio")


@pytest.fixture(scope="module")
def address(serve: Callable[..., str]) -> str:
    return serve("apps.restoration")


@pytest.fixture
def page(browser: "Browser", address: str) -> Iterator["Page"]:
    page = browser.new_page(viewport={"width": 1360, "height": 900})
    page.set_default_timeout(180_000)
    page.goto(address)
    page.wait_for_selector("#upload input[type=file]", state="attached")
    yield page
    page.close()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A real photograph with EXIF data, 128 × 96."""
    file = tmp_path / "my photo.jpg"
    exif = Image.Exif()
    exif[0x010E] = "a cat"  # ImageDescription
    Image.fromarray(skimage.data.chelsea()[60:156, 110:238]).save(file, quality=95, exif=exif)
    return file


def _upload(page: "Page", file: Path) -> None:
    page.set_input_files("#upload input[type=file]", file)


def _run(page: "Page") -> None:
    page.wait_for_selector("#restore:not([disabled])")
    page.click("#restore")


def test_upload_restore_compare_download(page: "Page", photo: Path, tmp_path: Path) -> None:
    elsewhere = []
    page.on("request", lambda r: elsewhere.append(r.url) if _is_elsewhere(r.url) else None)
    page.reload()
    page.wait_for_selector("#upload input[type=file]", state="attached")
    _upload(page, photo)
    page.get_by_text("128 × 96 pixels").wait_for()
    page.get_by_label("Detailed", exact=False).check()
    # The bar is gone when a fast run is over, so the page itself notes that it was there.
    page.evaluate(
        """() => { window.bar = []; new MutationObserver(() => {
            const bar = document.querySelector('#compare .progress-text, #compare .progress-level');
            if (bar) window.bar.push(bar.innerText);
        }).observe(document.body, { childList: true, subtree: true, characterData: true }); }"""
    )
    _run(page)
    page.get_by_text("128 × 96 → 512 × 384").wait_for()
    _wait_for_pictures(page)
    before, after = page.eval_on_selector_all(
        "#compare img", "all => all.map(i => [i.naturalWidth, i.naturalHeight])"
    )
    assert before == after == [512, 384]
    assert len(set(page.eval_on_selector_all("#compare img", "all => all.map(i => i.src)"))) == 2
    assert any("calls" in text or "Restoring" in text for text in page.evaluate("window.bar"))
    with page.expect_download() as download:
        page.click("#download")
    saved = tmp_path / "saved.jpg"
    download.value.save_as(saved)
    assert download.value.suggested_filename == "my photo_x4.jpg"
    with Image.open(saved) as image:
        assert image.size == (512, 384)
        assert image.getexif()[0x010E] == "a cat"
        # It is an enlargement of what was uploaded and not of something else.
        small = np.asarray(image.resize((128, 96), Image.Resampling.BOX), float)
    with Image.open(photo) as image:
        assert np.abs(small - np.asarray(image, float)).mean() < 12
    assert elsewhere == []


def test_several_samples_are_shown_one_by_one_and_come_as_a_zip(
    page: "Page", photo: Path, tmp_path: Path
) -> None:
    with Image.open(photo) as image:
        image.crop((0, 0, 48, 40)).save(tmp_path / "small.png")
    _upload(page, tmp_path / "small.png")
    page.get_by_label("Detailed", exact=False).check()
    page.fill("#samples input[type=number]", "2")
    page.press("#samples input[type=number]", "Tab")
    _run(page)
    page.get_by_text("48 × 40 → 192 × 160").wait_for()
    _wait_for_pictures(page)
    first = _after(page)
    page.locator("#shown").get_by_label("2").check()
    page.wait_for_function("known => document.querySelectorAll('#compare img')[1].src !== known", arg=first)
    with page.expect_download() as download:
        page.click("#download")
    saved = tmp_path / "saved.zip"
    download.value.save_as(saved)
    with zipfile.ZipFile(saved) as pack:
        assert pack.namelist() == ["small_x4-1.png", "small_x4-2.png"]
        assert pack.read("small_x4-1.png") != pack.read("small_x4-2.png")


def _wait_for_pictures(page: "Page") -> None:
    page.wait_for_function(
        "[...document.querySelectorAll('#compare img')].filter(i => i.naturalWidth).length === 2"
    )


def _after(page: "Page") -> str:
    return page.eval_on_selector_all("#compare img", "all => all[1].src")


def _is_elsewhere(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1"


def test_a_text_file_named_png_is_refused_in_one_sentence(page: "Page", tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.png"
    wrong.write_text("not a picture")
    _upload(page, wrong)
    page.wait_for_selector(".toast-body")
    assert "wrong.png: is not a JPEG, PNG, WebP or TIFF image" in page.inner_text(".toast-body")
    assert page.is_disabled("#restore")


def test_a_file_name_is_text_and_not_markup(tmp_path: Path) -> None:
    # Pages show messages as HTML, and not only this page's upload field can call the app.
    from apps.restoration.app import App
    from apps.restoration.models import Models

    wrong = tmp_path / "<b onclick=steal()>.png"
    wrong.write_text("not a picture")
    app = App(Models("cpu", "resshift-x4"), tmp_path)
    with pytest.raises(gradio.Error) as caught:
        app.check([str(wrong)], "super-resolution")
    assert caught.value.message.startswith("&lt;b onclick=steal()&gt;.png: is not")


def test_too_many_pixels_are_refused_before_they_are_decoded(page: "Page", tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    Image.new("1", (9000, 6000)).save(large)
    _upload(page, large)
    page.wait_for_selector(".toast-body")
    message = page.inner_text(".toast-body")
    assert "9000×6000" in message
    assert "50 megapixels" in message


def test_a_file_of_more_than_25_megabytes_is_refused(page: "Page", tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"
    large.write_bytes(bytes(27_000_000))
    _upload(page, large)
    page.wait_for_selector(".toast-body")
    assert "25" in page.inner_text(".toast-body")


def test_removing_the_photograph_disables_the_button(page: "Page", photo: Path) -> None:
    _upload(page, photo)
    page.wait_for_selector("#restore:not([disabled])")
    page.click("#upload button[aria-label='Remove'], #upload button[aria-label='Clear']")
    page.wait_for_selector("#restore[disabled]")
