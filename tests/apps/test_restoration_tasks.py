"""All tasks of the restoration app in a real browser: masks are painted, noise is told, batches packed."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import skimage.data
from PIL import Image
from tests.restoration.tiny_models import make_tiny

from fewstep.restoration import Restorer

gradio = pytest.importorskip("gradio", reason="the apps need gradio")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


class SmallModels:
    """Random models in place of those that ship."""

    def __init__(self) -> None:
        made = {"denoise": ("level",), "inpaint": ("mask",)}
        self.restorers = {
            task: Restorer(make_tiny(takes, (task,)), device="cpu") for task, takes in made.items()
        }
        self.tasks = [("Remove noise", "denoise"), ("Fill", "inpaint")]

    def about(self, task: str) -> str:
        return f"This is {task}."

    def __getitem__(self, task: str) -> Restorer:
        return self.restorers[task]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from apps.restoration.app import App
    from apps.restoration.page import build

    folder = tmp_path_factory.mktemp("app")
    page = build(App(SmallModels(), folder / "results"))  # type: ignore[arg-type]
    _, url, _ = page.queue().launch(prevent_thread_lock=True, quiet=True, allowed_paths=[str(folder)])
    yield url
    page.close()


@pytest.fixture
def page(browser: "Browser", address: str) -> Iterator["Page"]:
    page = browser.new_page(viewport={"width": 1360, "height": 1400})
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector("#upload input[type=file]", state="attached")
    yield page
    page.close()


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    cat = skimage.data.chelsea()
    files = [tmp_path / "one.png", tmp_path / "two.png"]
    for number, file in enumerate(files):
        Image.fromarray(cat[60 + 20 * number : 156, 110:238]).save(file)
    return files


def run(page: "Page", photos: list[Path]) -> None:
    page.set_input_files("#upload input[type=file]", photos)
    page.wait_for_selector("#restore:not([disabled])")


def saved(page: "Page", folder: Path) -> Path:
    with page.expect_download() as download:
        page.click("#download")
    file = folder / "saved" / download.value.suggested_filename
    download.value.save_as(file)
    return file


def choose_filling(page: "Page") -> None:
    page.click("#task input")
    page.get_by_role("option", name="Fill").click()
    page.get_by_text("This is inpaint.").wait_for()
    page.get_by_text("Nothing is painted yet").wait_for()


def give_mask(page: "Page", file: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#mask:not([disabled])")
    chooser.value.set_files(file)


def test_a_painted_mask_is_filled(page: "Page", photos: list[Path], tmp_path: Path) -> None:
    run(page, photos[:1])
    choose_filling(page)
    # Zoomed to the photograph, which is 128 pixels wide: it has been drawn.
    page.wait_for_function("/[1-9]\\d\\d%/.test(document.querySelector('#editor')?.innerText ?? '')")
    box = page.locator("#editor canvas").last.bounding_box()
    assert box is not None
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    arrived = page.get_by_text("% of the photograph is to be filled")
    # A canvas that has just been drawn may not yet take a stroke.
    for _ in range(20):
        page.mouse.move(middle[0] - 30, middle[1])
        page.mouse.down()
        page.mouse.move(middle[0] + 30, middle[1], steps=8)
        page.mouse.up()
        page.wait_for_timeout(1_000)
        if arrived.is_visible():
            break
    arrived.wait_for()
    page.click("#restore:not([disabled])")
    page.get_by_text("128 × 96 → 128 × 96").wait_for()
    page.wait_for_selector("#download:not([disabled])")
    file = saved(page, tmp_path)
    assert file.name == "one_filled.png"
    with Image.open(file) as after, Image.open(photos[0]) as before:
        changed = (np.asarray(after) != np.asarray(before)).any(axis=2)
    # What was not painted is as it was.
    assert 0 < changed.mean() < 0.6
    assert not changed[:5].any()
    assert changed[40:56, 56:72].any()


def test_an_uploaded_mask_is_painted_and_filled(page: "Page", photos: list[Path], tmp_path: Path) -> None:
    mask = np.zeros((96, 128), np.uint8)
    mask[20:50, 30:90] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    Image.fromarray(mask[1:]).save(tmp_path / "other.png")
    run(page, photos[:1])
    choose_filling(page)
    page.wait_for_function("/[1-9]\\d\\d%/.test(document.querySelector('#editor')?.innerText ?? '')")
    give_mask(page, tmp_path / "other.png")
    page.wait_for_selector(".toast-body")
    assert "size of 128×96 pixels, got 128×95" in page.inner_text(".toast-body")
    give_mask(page, tmp_path / "mask.png")
    page.get_by_text("15 % of the photograph is to be filled").wait_for()
    page.click("#restore:not([disabled])")
    page.wait_for_selector("#download:not([disabled])")
    with Image.open(saved(page, tmp_path)) as after, Image.open(photos[0]) as before:
        changed = (np.asarray(after) != np.asarray(before)).any(axis=2)
    assert not changed[mask == 0].any()
    assert changed[mask == 255].mean() > 0.9


def test_a_batch_comes_as_a_zip_and_noise_is_told(page: "Page", photos: list[Path], tmp_path: Path) -> None:
    run(page, photos)
    page.get_by_text("2 photographs.").wait_for()
    page.locator("#sigma-known").get_by_label("estimated").check()
    page.get_by_label("Detailed", exact=False).check()
    page.fill("#samples input[type=number]", "2")
    page.press("#samples input[type=number]", "Tab")
    page.locator("#uncertain input").check()
    page.click("#restore")
    page.wait_for_selector("#uncertainty img")
    assert page.locator("#facts").inner_text().count(", noise ") == 2
    with zipfile.ZipFile(saved(page, tmp_path)) as pack:
        assert sorted(pack.namelist()) == [
            "one_denoised-1.png",
            "one_denoised-2.png",
            "two_denoised-1.png",
            "two_denoised-2.png",
        ]
    assert page.locator("#shown label").all_inner_texts() == [
        f"{name}.png, sample {number}" for name in ("one", "two") for number in (1, 2)
    ]
    # What belongs to other photographs is not offered any longer.
    page.click("#upload button[aria-label='Remove'], #upload button[aria-label='Clear']")
    page.wait_for_selector("#download[disabled]")
    page.wait_for_selector("#uncertainty", state="hidden")


def test_the_page_says_what_has_arrived_of_a_painting(tmp_path: Path) -> None:
    from apps.restoration.app import App

    app = App(SmallModels(), tmp_path)  # type: ignore[arg-type]
    background, layer = Image.new("RGB", (40, 30)), Image.new("RGBA", (40, 30))
    assert app.painted(None) == ""
    assert app.painted({"background": background, "layers": [layer]}).startswith("Nothing is painted yet")
    layer.paste((255, 0, 0, 255), (0, 0, 20, 30))
    assert app.painted({"background": background, "layers": [layer]}).startswith("**50 %** of")


def test_an_uploaded_mask_is_seen_on_the_canvas_and_painting_adds_to_it(
    photos: list[Path], tmp_path: Path
) -> None:
    from apps.restoration.app import PAINT, App, painted_mask

    app = App(SmallModels(), tmp_path)  # type: ignore[arg-type]
    mask = np.zeros((96, 128), np.uint8)
    mask[20:50, 30:90] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    value, given, said = app.masked([str(photos[0])], str(tmp_path / "mask.png"))
    # It is seen in the picture itself, counts without a stroke, and strokes add to it.
    seen = np.asarray(value["background"])
    assert (seen[mask == 255] == PAINT).all()
    assert not (seen[mask == 0] == PAINT).all(-1).any()
    assert np.array_equal(painted_mask(value, (128, 96), given), mask == 255)
    assert said.startswith("**15 %**")
    assert app.painted(value, given) == said
    stroke = np.zeros((96, 128, 4), np.uint8)
    stroke[80:90, 5:20] = 255
    both = painted_mask({**value, "layers": [Image.fromarray(stroke)]}, (128, 96), given)
    assert both.sum() == (mask == 255).sum() + 150


def test_several_photographs_have_no_mask(photos: list[Path], tmp_path: Path) -> None:
    from apps.restoration.app import App

    app = App(SmallModels(), tmp_path)  # type: ignore[arg-type]
    assert app.check([str(photo) for photo in photos], "denoise") == "2 photographs."
    with pytest.raises(gradio.Error, match="for one photograph"):
        app.check([str(photo) for photo in photos], "inpaint")


def test_what_a_model_does_not_offer_is_not_asked_of_it() -> None:
    from apps.restoration.app import Choices
    from apps.restoration.models import Abilities

    fixed = Restorer.from_pretrained("idm-25", device="cpu")
    able = Abilities.of(fixed)
    assert (able.modes, able.steps, able.fewer, able.level) == (("detailed",), 3, False, False)
    chosen = Choices("compressed-sensing", "detailed", 2, 1, True, True, 0, "estimated", 25, "PNG", True)
    options = chosen.options(fixed)
    assert (options["steps"], options["level"], options["average"]) == (None, None, False)
    small = Restorer(make_tiny(("level",)), device="cpu")
    assert Abilities.of(small).fewer
    assert chosen.options(small)["steps"] == 2
    assert chosen.options(small)["level"] == "auto"


def test_what_is_painted_is_brought_to_the_size_of_the_photograph() -> None:
    from apps.restoration.app import painted_mask

    layer = Image.new("RGBA", (40, 30))
    layer.paste((255, 255, 255, 255), (10, 6, 20, 12))
    mask = painted_mask({"layers": [layer]}, (80, 60))
    assert mask.shape == (60, 80)
    rows, columns = np.nonzero(mask)
    assert abs(rows.min() - 12) <= 1
    assert abs(rows.max() - 23) <= 1
    assert abs(columns.min() - 20) <= 1
    assert abs(columns.max() - 39) <= 1
    for nothing in (None, {"layers": []}, {"layers": [Image.new("RGBA", (4, 4))]}):
        with pytest.raises(ValueError, match="Paint"):
            painted_mask(nothing, (80, 60))
