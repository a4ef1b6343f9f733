"""The policy app in a real browser: watch, compare, take over; and what it says to what it cannot do."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pytest
from tests.policy.tiny_policy import saved_policy

from fewstep.policy.demonstrations import read_demonstrations

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

gradio = pytest.importorskip("gradio", reason="the apps need gradio")
pytest.importorskip("gym_pusht", reason="pip install 'fewstep-policy[envs]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("run") / "tiny-policy")


@pytest.fixture(scope="module")
def address(folder: Path, serve: Callable[..., str]) -> str:
    return serve("apps.policy", "--model", str(folder))


@pytest.fixture
def page(browser: "Browser", address: str) -> Iterator["Page"]:
    page = browser.new_page(viewport={"width": 1280, "height": 1100})
    page.set_default_timeout(120_000)
    page.goto(address)
    page.wait_for_selector("#watch-start")
    yield page
    page.close()


def number(page: "Page", element: str, value: int) -> None:
    page.fill(f"#{element} input", str(value))
    page.press(f"#{element} input", "Tab")


def frames_of(film: Path) -> list[np.ndarray]:
    import av

    with av.open(str(film)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def saved(page: "Page", button: str, folder: Path) -> Path:
    page.wait_for_selector(f"{button}:not([disabled])")
    with page.expect_download() as download:
        page.click(button)
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file


def test_an_episode_is_watched_while_it_runs_and_as_a_film(page: "Page", tmp_path: Path) -> None:
    elsewhere = []
    page.on("request", lambda r: elsewhere.append(r.url) if _is_elsewhere(r.url) else None)
    page.reload()
    page.wait_for_selector("#watch-start")
    number(page, "watch-most", 12)
    # Pictures are gone when the run is over, so the page itself notes that they were there.
    page.evaluate(
        """() => { window.live = new Set(); new MutationObserver(() => {
            const image = document.querySelector('#watch-now img');
            const bar = document.querySelector('#watch-now progress');
            if (image && bar) window.live.add(image.src + bar.value);
        }).observe(document.body, { childList: true, subtree: true, attributes: true }); }"""
    )
    page.click("#watch-start")
    page.wait_for_selector("#watch-film video")
    line = page.locator("#watch-facts").inner_text()
    assert re.search(r"score \d\.\d{3}, not solved, 12 steps; .* ms per action, \d+ Hz", line), line
    assert page.evaluate("window.live.size") >= 1
    film = saved(page, "#watch-download", tmp_path)
    assert film.name == "pusht-seed-100000.mp4"
    pictures = frames_of(film)
    assert len(pictures) == 13
    assert pictures[0].shape == (384, 384, 3)
    assert elsewhere == []


def test_numbers_of_calls_are_compared(page: "Page", tmp_path: Path) -> None:
    page.get_by_role("tab", name="Compare calls").click()
    assert page.locator("#compare-chosen input:checked").count() == 3
    number(page, "compare-most", 5)
    page.click("#compare-start")
    page.wait_for_selector("#compare-film video")
    rows = page.locator("#compare-table tbody tr")
    cells = [row.split() for row in rows.all_inner_texts() if row.strip()]
    assert {(row[0], row[1]) for row in cells} == {("tiny-policy", calls) for calls in ("1", "10", "100")}
    pictures = frames_of(saved(page, "#compare-download", tmp_path))
    assert len(pictures) == 6
    assert pictures[0].shape == (284, 768, 3)
    page.click("#compare-chosen label >> nth=0")
    page.click("#compare-chosen label >> nth=1")
    page.click("#compare-chosen label >> nth=2")
    page.click("#compare-start")
    page.wait_for_selector(".toast-body")
    assert "Choose one to" in page.inner_text(".toast-body")


def test_the_mouse_takes_over_and_lets_go(page: "Page", tmp_path: Path) -> None:
    page.get_by_role("tab", name="Take over").click()
    page.locator("#goes-on input").uncheck()
    page.click("#hand-start")
    page.wait_for_selector("#table img")
    page.get_by_text("step 0 of 300, 0 by hand").wait_for()
    before = page.locator("#table img").get_attribute("src")
    page.wait_for_timeout(1_000)
    assert page.get_by_text("step 0 of 300, 0 by hand").is_visible(), "nobody acts"
    box = page.locator("#table img").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.get_by_text(re.compile("step [2-9] of 300")).wait_for()
    page.mouse.up()
    assert page.locator("#table img").get_attribute("src") != before
    page.wait_for_timeout(1_500)
    step, by_hand = _counted(page)
    assert step == by_hand >= 2
    page.locator("#goes-on input").check()
    page.wait_for_function(
        f"!document.querySelector('#hand-facts').innerText.startsWith('step {step} ')", timeout=60_000
    )
    assert _counted(page)[1] == by_hand, "the policy goes on"
    page.locator("#goes-on input").uncheck()
    page.click("#hand-save")
    assert len(frames_of(saved(page, "#hand-download", tmp_path))) > step
    page.click("#hand-keep")
    file = saved(page, "#hand-demonstrations", tmp_path)
    shutil.unpack_archive(file, tmp_path / "kept")
    kept = read_demonstrations(tmp_path / "kept" / "demonstrations")
    assert (kept.steps, int(kept.arrays["by_hand"].sum())) == _counted(page)


def _counted(page: "Page") -> tuple[int, int]:
    found = re.search(r"step (\d+) of 300, (\d+) by hand", page.locator("#hand-facts").inner_text())
    assert found is not None
    return int(found[1]), int(found[2])


def _is_elsewhere(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in ("http", "https", "ws", "wss") and parts.hostname != "127.0.0.1"


def test_what_a_browser_should_not_send(folder: Path, tmp_path: Path) -> None:
    from apps.policy.app import App
    from apps.policy.models import Models

    app = App(Models([str(folder)], device="cpu"), tmp_path / "results")
    usual = {"name": "tiny-policy", "calls": 1, "seed": 3, "side": 256, "most": 2}
    for words, changes in (
        ("Choose a policy", {"name": "../../tiny-policy"}),
        ("1, 10, 100 calls", {"calls": 10_000}),
        ("seed must be a whole number", {"seed": -1}),
        ("seed must be a whole number", {"seed": 1.5}),
        ("seed must be a whole number", {"seed": None}),
        ("steps must be a whole number", {"most": 10**9}),
        ("side must be one of", {"side": 100_000}),
    ):
        with pytest.raises(gradio.Error) as caught:
            list(app.watch(**{**usual, **changes}))
        assert words in caught.value.message
    for entries in ([], ["tiny-policy: 7 calls"], ["tiny-policy: 1 call"] * 5):
        with pytest.raises(gradio.Error, match="Choose"):
            list(app.compare(entries, "pusht", 0, 2))


def test_what_the_mouse_does_to_the_state(folder: Path, tmp_path: Path) -> None:
    from apps.policy.app import App
    from apps.policy.models import Models

    app = App(Models([str(folder)], device="cpu"), tmp_path / "results")
    session, _, line = app.begin(None, "tiny-policy", 10, 5)
    assert line.startswith("step 0 of 300, 0 by hand")
    simulation = session._live._slot.env.unwrapped.simulation  # pyright: ignore[reportAttributeAccessIssue]
    for held in ("0,1", "2,1", "nan,1", "x", ""):
        app.tick(session, held, False)
    # Below and to the left, then the right edge; what is no position does nothing.
    assert (session._live.steps, session.by_hand) == (2, 2)
    before = np.array(simulation.agent.position)
    for _ in range(4):
        app.tick(session, "0.5,0.5", False)
    after = np.array(simulation.agent.position)
    assert np.abs(after - 256).max() < np.abs(before - 256).max()
    app.tick(session, "", True)
    assert (session._live.steps, session.by_hand) == (7, 6)
    again, _, _ = app.begin(session, "tiny-policy", 1, 5)
    assert session.closed
    assert app.tick(session, "0.5,0.5", True)[2].active is False
    again.close()


def test_kept_episodes_are_demonstrations(folder: Path, tmp_path: Path) -> None:
    """What is kept is what was seen and done; what was learned from must not be tested on."""
    from apps.policy.app import App
    from apps.policy.demonstrations import Demonstrations
    from apps.policy.models import Models

    app = App(Models([str(folder)], device="cpu"), tmp_path / "results")
    kept = Demonstrations()
    for words, session in (
        ("Begin an episode first", None),
        ("Nothing has happened yet", app.begin(None, "tiny-policy", 1, 5)[0]),
        ("are for tests", app.begin(None, "tiny-policy", 1, 100_000)[0]),
    ):
        if session is not None and session.seed == 100_000:
            app.tick(session, "0.5,0.5", False)
        with pytest.raises(gradio.Error, match=words):
            app.keep(session, kept)
    assert len(kept) == 0
    first, _, _ = app.begin(None, "tiny-policy", 1, 5)
    for held in ("0.2,0.2", "0.25,0.5", ""):
        app.tick(first, held, True)
    app.keep(first, kept)
    app.tick(first, "", True)
    app.keep(first, kept)
    assert len(kept) == 1, "an episode that has grown counts once"
    second, _, _ = app.begin(first, "tiny-policy", 1, 6)
    app.tick(second, "1,1", False)
    _, offered = app.keep(second, kept)
    assert offered["label"] == "Download 2 demonstrations"
    shutil.unpack_archive(offered["value"], tmp_path / "kept")
    for name in ("demonstrations", "demonstrations.npz"):
        episodes = read_demonstrations(tmp_path / "kept" / name)
        assert episodes.lengths.tolist() == [4, 1]
        assert episodes.arrays["by_hand"].tolist() == [True, True, False, False, True]
        np.testing.assert_allclose(episodes.arrays["action"][[0, 4]], [[102.4, 102.4], [512, 512]], rtol=1e-6)
        assert episodes.fps == 10
    app.leave(second)
    assert list((tmp_path / "results").iterdir()) == []


def test_nothing_ships_and_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.policy import models

    monkeypatch.setattr(models, "shipped", lambda package: [])
    with pytest.raises(ValueError, match=r"no policy ships .* --model FOLDER"):
        models.Models()
    with pytest.raises(ValueError, match="there is no checkpoint"):
        models.Models(["nowhere"])
