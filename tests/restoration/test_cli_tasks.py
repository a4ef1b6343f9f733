"""`fewstep restore --task …`: which model is meant, masks, noise levels, maps, pages, and what is refused."""

import json
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data
from tests.restoration.tiny_models import Tiny, make_tiny
from typer.testing import CliRunner

from fewstep.restoration.catalogue import Shipped, choose, described, method_name, shipped_models
from fewstep.restoration.cli import app
from fewstep.restoration.images import read
from fewstep.restoration.methods import loading
from fewstep.restoration.methods.idm import IDM, IDMConfig
from fewstep.restoration.tasks import TASKS

PHOTO = data.astronaut()[60:80, 150:180]
MASK = np.zeros(PHOTO.shape[:2], np.uint8)
MASK[5:12, 8:20] = 255
SHIPPED = [
    Shipped("rddm-denoise", ("denoise",), "rddm", 5, 3.0, ("denoise",)),
    Shipped("irsde-denoise", ("denoise", "derain"), "irsde", 10, 3.0, ()),
    Shipped("idm-10", ("compressed-sensing",), "idm", 3, 2.0, (), 0.1),
    Shipped("idm-25", ("compressed-sensing",), "idm", 3, 2.0, ("compressed-sensing",), 0.25),
    Shipped("resshift-x4", ("super-resolution",), "resshift", 4, 3.0, ("super-resolution",)),
]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Folders of models that are told masks and levels, and a photograph."""
    monkeypatch.setitem(loading.METHODS, "tiny", Tiny)
    monkeypatch.setitem(loading.METHODS, "idm", IDM)
    monkeypatch.chdir(tmp_path)
    make_tiny(("level",)).save_pretrained("denoise")
    make_tiny(("mask",), ("inpaint",)).save_pretrained("inpaint")
    Image.fromarray(PHOTO).save("a.png")
    Image.fromarray(MASK).save("mask.png")
    return tmp_path


def text(done) -> str:
    """What was said, without the frame that messages stand in."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", done.stderr.decode())


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ((None, None, None), "resshift-x4"),
        (("denoise", None, None), "rddm-denoise"),
        (("denoise", "IR-SDE", None), "irsde-denoise"),
        (("derain", None, None), "irsde-denoise"),
        ((None, "rddm", None), "rddm-denoise"),
        (("compressed-sensing", None, None), "idm-25"),
        ((None, None, 0.1), "idm-10"),
    ],
)
def test_a_task_a_method_or_a_ratio_choose_the_model(asked: tuple[Any, Any, Any], name):
    assert choose(*asked, SHIPPED) == name


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("inpaint", None, None), "no model for inpaint ships with this version; name one with --model"),
        (("denoise", "idm", None), r"'idm' for denoise; there is rddm \(rddm-denoise\), irsde"),
        (("paint", None, None), "--task: expected one of super-resolution, denoise.*'paint'"),
        ((None, None, 0.5), r"--ratio: none of 0.5 .*; there is idm \(idm-10, ratio 0.1\)"),
        ((None, None, 0.0), "--ratio: .*more than 0 and at most 1, got 0"),
        ((None, None, float("nan")), "--ratio: .*got nan"),
        (("denoise", None, 0.1), "--ratio is for --task compressed-sensing, not for denoise"),
    ],
)
def test_what_does_not_ship_is_said(asked: tuple[Any, Any, Any], words):
    with pytest.raises(ValueError, match=words):
        choose(*asked, SHIPPED)


def test_the_catalogue_is_what_the_checkpoints_say(fewstep_here):
    for model in shipped_models():
        if model.method == "oscar":  # a codec restores nothing; it has commands of its own
            assert (model.tasks, model.calls) == (("encode", "decode"), 1)
            continue
        loaded = loading.load_model(model.name)
        assert model.tasks == loaded.tasks
        assert {method_name(name): kind for name, kind in loading.METHODS.items()}[model.method] is type(
            loaded
        )
        assert model.calls in (None, loaded.steps_of("sample"))
    listed = fewstep_here("--list").stdout.decode()
    assert re.search(r"resshift-x4 +super-resolution\* +resshift +4 +3\.1", listed)
    (entry,) = [m for m in json.loads(fewstep_here("--list", "--json").stdout) if m["name"] == "resshift-x4"]
    assert entry["default_for"] == ["super-resolution"]
    about = described("x", {"_class": "RDDM", "steps": 1000, "sampling_steps": 5, "tasks": ["jpeg"]}, 1)
    assert (about.calls, about.tasks, about.method) == (5, ("jpeg",), "rddm")


@pytest.mark.parametrize(
    ("task", "suffix"),
    [(None, "_denoised"), ("denoise", "_denoised")],
)
def test_a_level_is_told_or_estimated(fewstep_here, made, task, suffix):
    chosen = () if task is None else ("--task", task)
    done = fewstep_here("a.png", "--model", "denoise", *chosen, "--sigma", "auto", "--json")
    assert done.returncode == 0, done.stderr
    details = json.loads(done.stdout)["files"][0]["details"]
    assert 0 < details["sigma"] < 60
    estimated = read(f"a{suffix}.png").pixels
    assert fewstep_here("a.png", "--model", "denoise", "--sigma", str(details["sigma"])).returncode == 0
    assert np.abs(read(f"a{suffix}.png").pixels.astype(int) - estimated).max() <= 1
    assert fewstep_here("a.png", "--model", "denoise", "--sigma", "90").returncode == 0
    assert (read(f"a{suffix}.png").pixels != estimated).any()


def test_a_mask_for_all_and_masks_for_each(fewstep_here, made):
    Image.fromarray(np.flipud(PHOTO)).save("b.png")
    done = fewstep_here(
        "a.png", "b.png", "--task", "inpaint", "--model", "inpaint", "--mask", "mask.png", "-o", "one"
    )
    assert done.returncode == 0, done.stderr
    for name, photo in (("a", PHOTO), ("b", np.flipud(PHOTO))):
        filled = read(f"one/{name}_filled.png").pixels
        assert (filled[MASK == 0] == photo[MASK == 0]).all()
        assert (filled[MASK > 0] != photo[MASK > 0]).any()
    (made / "masks").mkdir()
    Image.fromarray(np.flipud(MASK)).save("masks/b.jpg", quality=100)
    done = fewstep_here("a.png", "b.png", "--model", "inpaint", "--mask", "masks", "-o", "each")
    assert done.returncode == 1
    assert "a.png: mask: masks has no image called a" in done.stderr.decode()
    filled = read("each/b_filled.png").pixels
    assert (filled[np.flipud(MASK) == 0] == np.flipud(PHOTO)[np.flipud(MASK) == 0]).all()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (
            "small.png",
            np.full((9, 9), 255, np.uint8),
            "expected the photograph's size of 30×20 pixels, got 9×9",
        ),
        ("black.png", np.zeros((20, 30), np.uint8), "nothing is marked; white pixels are those to be filled"),
        ("text.png", None, "is not a JPEG, PNG, WebP or TIFF image"),
        ("none.png", None, "cannot be opened"),
    ],
)
def test_a_bad_mask_is_one_sentence(fewstep_here, made, name, content, words):
    if content is not None:
        Image.fromarray(content).save(name)
    elif name != "none.png":
        (made / name).write_text("This is no image.")
    done = fewstep_here("a.png", "--model", "inpaint", "--mask", name)
    assert done.returncode == 1
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "fewstep restore: 1 of 1 failed:"
    assert words in lines[1]
    assert name in lines[1]
    assert len(lines) == 2
    assert not (made / "a_filled.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--task", "inpaint", "--model", "inpaint"), "--mask: inpaint needs an image that is white"),
        (("--model", "inpaint"), "--mask: inpaint fills what a mask marks, so it needs one"),
        (("--model", "denoise", "--mask", "mask.png"), "--mask: denoise takes no mask"),
        (("--model", "denoise", "--task", "jpeg"), "--task: denoise was trained for denoise, not for jpeg"),
        (("--model", "denoise", "--method", "rddm"), "--method: denoise is of tiny, not of 'rddm'"),
        (("--model", "denoise", "--sigma", "256"), "--sigma: .*0 … 255 or auto, got '256'"),
        (("--model", "denoise", "--sigma", "much"), "--sigma: .*'much'"),
        (("--model", "denoise", "--ratio", "0.1"), "--ratio: denoise measures nothing"),
        (("--model", "denoise", "--ratio", "0"), "--ratio: .*got 0"),
        (("--model", "denoise", "--consistent"), "consistent: for enlargement and compressed sensing"),
        (("--model", "denoise", "--uncertainty"), "uncertainty: expected samples of at least 2, got 1"),
        (("--model", "denoise", "--report", "page.txt"), "--report is a page: .*'page.txt'"),
        (("--uncertainty", "--samples", "2", "--average", "-o", "-"), "standard output has no room"),
    ],
)
def test_what_cannot_be_meant_ends_with_2(fewstep_here, made, arguments, words):
    done = fewstep_here("a.png", *arguments)
    assert done.returncode == 2
    assert re.search(words, text(done)), text(done)
    assert not list(made.glob("a_*"))


def test_every_task_has_a_sentence_where_its_model_is_missing(made, monkeypatch):
    monkeypatch.setattr("fewstep.restoration.catalogue.shipped_models", list)
    for task in TASKS:
        result = CliRunner().invoke(app, ["a.png", "--task", task], env={"COLUMNS": "200"})
        assert result.exit_code == 2
        assert f"no model for {task} ships with this version" in result.stderr


def test_compressed_sensing_measures_and_rebuilds(fewstep_here, made):
    options = {"channels": (16, 16), "attention": (False, False), "normalised": False}
    IDM(IDMConfig(ratio=0.25, block=8, steps=2, **options)).save_pretrained("idm")
    done = fewstep_here("a.png", "--model", "idm", "--ratio", "0.25", "--consistent", "--json")
    assert done.returncode == 0, done.stderr
    details = json.loads(done.stdout)["files"][0]["details"]
    assert details["mode"] == "detailed"
    assert details["consistency"][0]["residual_rms"] < details["consistency"][0]["residual_before"]
    assert read("a_rebuilt.png").pixels.shape == PHOTO.shape
    done = fewstep_here("a.png", "--model", "idm", "--ratio", "0.5")
    assert done.returncode == 2
    assert "--ratio: idm measures at the ratio 0.25" in text(done)


def test_a_map_of_uncertainty_has_numbers(fewstep_here, made):
    many = ("--samples", "3", "--uncertainty", "--json")
    done = fewstep_here("a.png", *many, "-o", "out")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)["files"][0]["details"]["uncertainty"]
    assert about["file"] == "out/a_x4-uncertainty.png"
    assert sorted(p.name for p in (made / "out").iterdir()) == [
        "a_x4-1.png",
        "a_x4-2.png",
        "a_x4-3.png",
        "a_x4-uncertainty.png",
    ]
    samples = np.stack([read(f"out/a_x4-{k}.png").pixels.astype(float) for k in (1, 2, 3)])
    spread = np.sqrt(samples.var(0, ddof=1).mean(2))
    # Rounding of the samples that are read here.
    assert about["mean"] == pytest.approx(spread.mean(), abs=0.3)
    assert about["largest"] == pytest.approx(spread.max(), abs=1.5)
    assert [step["value"] for step in about["legend"]] == sorted(step["value"] for step in about["legend"])
    assert read("out/a_x4-uncertainty.png").pixels.shape == (80, 120, 3)
    done = fewstep_here("a.png", *many, "--average", "--ext", "tiff", "-o", "deep")
    about = json.loads(done.stdout)["files"][0]["details"]["uncertainty"]
    exact = read("deep/a_x4-uncertainty.tiff").pixels
    assert exact.dtype == np.float32
    assert 255 * exact.mean() == pytest.approx(about["mean"], abs=1e-3)
    assert np.abs(255 * exact[:, :, 0] - spread).max() < 1.5


def test_consistency_is_reported(fewstep_here, made):
    done = fewstep_here("a.png", "--consistent", "--json")
    (residual,) = json.loads(done.stdout)["files"][0]["details"]["consistency"]
    assert residual["residual_rms"] < 0.5 < residual["residual_before"]


def test_a_page_shows_the_folder(fewstep_here, made):
    (made / "in").mkdir()
    Image.fromarray(PHOTO).save("in/<i>one.png")
    Image.fromarray(PHOTO).save("in/two.png")
    (made / "in" / "bad.png").write_text("This is no image.")
    done = fewstep_here("in", "-o", "out", "--report", "pages/all.html")
    assert done.returncode == 1
    page = (made / "pages" / "all.html").read_text(encoding="utf-8")
    assert page.count('class="after"') == 2
    assert "&lt;i&gt;one.png" in page
    assert "<i>one" not in page
    assert "30 × 20 → 120 × 80" in page
    assert "1 network call;" in page
    assert "bad.png: is not a JPEG" in page
    done = fewstep_here("a.png", "--report", "a.png/x.html")
    assert done.returncode == 1
    assert "cannot be written" in done.stderr.decode()
    assert (made / "a_x4.png").exists()
