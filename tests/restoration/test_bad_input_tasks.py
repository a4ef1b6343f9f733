"""Bad input of every task: one sentence, the right exit code, the others done, nothing half-written."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data
from tests.restoration.tiny_models import Tiny, make_tiny
from typer.testing import CliRunner

from fewstep.restoration import catalogue
from fewstep.restoration.catalogue import Shipped
from fewstep.restoration.cli import app
from fewstep.restoration.images import read
from fewstep.restoration.methods import loading
from fewstep.restoration.methods.denoising_sde import DenoisingSDE, DenoisingSDEConfig
from fewstep.restoration.methods.idm import IDM, IDMConfig
from fewstep.restoration.result_names import SUFFIXES
from fewstep.restoration.tasks import TASKS

PHOTO = data.astronaut()[60:80, 150:180]
MASK = np.zeros(PHOTO.shape[:2], np.uint8)
MASK[5:12, 8:20] = 255
# What every task is asked with, beside --task and --model.
BESIDE = {"inpaint": ("--mask", "mask.png"), "compressed-sensing": ("--ratio", "0.25")}
KEEP_SIZE = [task for task in TASKS if task != "super-resolution"]


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_folder) -> dict[str, Path]:
    """A small model of every task."""
    folder = tmp_path_factory.mktemp("models")
    takes = {"denoise": ("level",), "inpaint": ("mask",)}
    for task in ("denoise", "derain", "low-light", "jpeg", "inpaint"):
        make_tiny(takes.get(task, ()), (task,)).save_pretrained(folder / task)
    options = {"channels": (16, 16), "attention": (False, False), "normalised": False}
    IDM(IDMConfig(ratio=0.25, block=8, steps=2, **options)).save_pretrained(folder / "compressed-sensing")
    return {task: folder / task for task in KEEP_SIZE} | {"super-resolution": tiny_folder}


@pytest.fixture
def restore(tmp_path, monkeypatch, models):
    """Run `fewstep restore --task …` in a folder with a photograph and a mask; (exit code, what it said)."""
    monkeypatch.setitem(loading.METHODS, "tiny", Tiny)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save("a.png")
    Image.fromarray(MASK).save("mask.png")

    def run(task: str, *arguments: str, beside: bool = True) -> tuple[int, str]:
        given = ["--device", "cpu", "--task", task, "--model", str(models[task])]
        given += [part for part in BESIDE.get(task, ()) if beside]
        done = CliRunner().invoke(app, [*given, *arguments], env={"COLUMNS": "200"})
        assert "Traceback" not in done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.exit_code, re.sub(r"[\s│╭╮╰╯─]+", " ", done.stderr)

    return run


def files() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*") if path.is_file())


def truncated(path: str) -> None:
    Image.fromarray(np.tile(PHOTO, (8, 8, 1))).save(path, "JPEG", quality=95)
    Path(path).write_bytes(Path(path).read_bytes()[:9000])


@pytest.mark.parametrize("task", TASKS)
def test_a_folder_with_bad_files(task, restore):
    """The good ones are done, the bad ones listed, each in a line."""
    Path("in").mkdir()
    Image.fromarray(PHOTO).save("in/a-good.png")
    Image.fromarray(PHOTO).save("in/z-good.png")
    Path("in/empty.png").touch()
    Path("in/text.png").write_text("This is no image.\n")
    truncated("in/cut.jpg")
    code, said = restore(task, "in", "in/none.png", "-o", "out")
    assert code == 1
    assert "4 of 6 failed:" in said
    for name, words in (
        ("empty", "0 bytes"),
        ("text", "not a JPEG, PNG, WebP or TIFF"),
        ("cut", "truncated"),
        ("none", "does not exist"),
    ):
        assert re.search(rf"in/{name}\.(png|jpg): .*{words}", said), said
    suffix = SUFFIXES.get(task, "_x4")
    assert sorted(os.listdir("out")) == [f"a-good{suffix}.png", f"z-good{suffix}.png"]
    larger = 4 if task == "super-resolution" else 1
    assert read(f"out/a-good{suffix}.png").pixels.shape == (larger * 20, larger * 30, 3)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("output", "code", "words"),
    [
        (("-o", "a.png"), 1, "would overwrite the input itself"),
        (("--suffix", "", "-o", "."), 1, "would overwrite"),
        (("-o", "mask.png/b.png"), 1, "results cannot be written there"),
        (("-o", "a.gif/"), 0, ""),
        (("--ext", "gif"), 2, "--ext must be auto or one of"),
    ],
)
def test_outputs(task, output, code, words, restore):
    before = files()
    content = Path("a.png").read_bytes(), Path("mask.png").read_bytes()
    got, said = restore(task, "a.png", *output)
    assert (got, bool(re.search(words, said))) == (code, True), said
    assert (Path("a.png").read_bytes(), Path("mask.png").read_bytes()) == content
    if code:
        assert files() == before


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sigma", "-1"), "--sigma: expected .* 0 … 255 or auto, got '-1'"),
        (("--sigma", "1000"), "--sigma: .*'1000'"),
        (("--sigma", "much"), "--sigma: .*'much'"),
        (("--sigma", "nan"), "--sigma: .*'nan'"),
        (("--ratio", "0"), "--ratio: expected .* more than 0 and at most 1, got 0"),
        (("--ratio", "1.5"), "--ratio: .* got 1.5"),
        (("--ratio", "half"), "'--ratio': .*(not a valid float|a valid number)"),
        (("--ratio", "0.5"), "--ratio: .*measures (nothing|at the ratio 0.25)"),
        (("--quality", "20"), "No such option: --quality"),
        (("--steps", "0"), "--steps"),
        (("--steps", "2000", "--mode", "detailed"), "steps must"),
        (("--solver", "magic"), "solver: expected one of .*, got 'magic'"),
        (("--mode", "sharp"), "expected faithful or detailed, got 'sharp'"),
        (("--method", "magic"), "--method: .* not of 'magic'"),
        (("--samples", "0"), "--samples"),
        (("--uncertainty",), "uncertainty: expected samples of at least 2"),
        (("--tile", "3"), "tile: expected"),
        (("-s", "0"), "scale: expected more than 0"),
    ],
)
def test_options(task, arguments, words, restore):
    before = files()
    code, said = restore(task, "a.png", *arguments)
    assert code == 2
    assert re.search(words, said), said
    assert files() == before


@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_does_not_take(task, restore, models):
    before = files()
    if task != "inpaint":
        code, said = restore(task, "a.png", "--mask", "mask.png")
        assert (code, "takes no mask" in said) == (2, True), said
    else:
        code, said = restore(task, "a.png", beside=False)
        assert (code, "--mask: inpaint needs an image that is white where to fill" in said) == (2, True), said
    if task != "denoise":
        code, said = restore(task, "a.png", "--sigma", "25")
        assert (code, "--sigma: this model is not told the noise level" in said) == (2, True), said
    if task not in ("super-resolution", "compressed-sensing"):
        code, said = restore(task, "a.png", "--consistent")
        assert (code, "--consistent: for enlargement and compressed sensing" in said) == (2, True), said
    code, said = restore(task, "a.png", "--model", str(models["jpeg" if task == "derain" else "derain"]))
    assert code == 2
    assert re.search(rf"--task: .* was trained for (jpeg|derain), not for {task}", said), said
    assert files() == before


@pytest.mark.parametrize("task", TASKS)
def test_methods(task, restore, monkeypatch):
    """Without a model's name: a method that is unknown, and one that cannot do the task."""
    other = Shipped("edges", ("edges",), "irsde", 5, 3.0, ())
    own = Shipped("own", (task,), "rddm", 5, 3.0, ())
    monkeypatch.setattr(catalogue, "shipped_models", lambda: [other, own])
    for method in ("magic", "IR-SDE"):
        done = CliRunner().invoke(app, ["a.png", "--task", task, "--method", method], env={"COLUMNS": "200"})
        said = re.sub(r"[\s│]+", " ", done.stderr)
        assert done.exit_code == 2
        assert f"--method: no shipped model of '{method}' for {task}; there is rddm (own)" in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none.png", "none.png"),
        ("empty.png", "0 bytes"),
        ("text.png", "not a JPEG, PNG, WebP or TIFF"),
        ("cut.jpg", "truncated"),
        ("small.png", "mask: expected the photograph's size of 30×20 pixels, got 9×7"),
        ("turned.png", "of 30×20 pixels, got 20×30"),
        ("black.png", "mask: nothing is marked; white pixels are those to be filled"),
        ("white.png", "mask: everything is marked, which leaves nothing to fill from; black pixels are kept"),
        ("folder", "has no image called a"),
    ],
)
def test_masks(name, words, restore):
    masks = {
        "small.png": np.full((7, 9), 255),
        "turned.png": MASK.T,
        "black.png": np.zeros_like(MASK),
        "white.png": np.full_like(MASK, 255),
    }
    if name in masks:
        Image.fromarray(masks[name].astype(np.uint8)).save(name)
    Path("empty.png").touch()
    Path("text.png").write_text("This is no image.")
    Path("folder").mkdir()
    truncated("cut.jpg")
    before = files()
    code, said = restore("inpaint", "a.png", "--mask", name, beside=False)
    assert code == 1
    assert "1 of 1 failed: a.png: " in said
    assert words in said
    assert name in said
    assert files() == before


def test_masks_for_each_photograph(restore):
    """One bad mask does not stop the others."""
    for folder in ("in", "masks"):
        Path(folder).mkdir()
    for name, mask in (("a", MASK), ("b", 0 * MASK), ("c", MASK[:9]), ("d", MASK)):
        Image.fromarray(PHOTO).save(f"in/{name}.png")
        Image.fromarray(mask).save(f"masks/{name}.png")
    code, said = restore("inpaint", "in", "--mask", "masks", "-o", "out", beside=False)
    assert code == 1
    assert "2 of 4 failed:" in said
    assert sorted(os.listdir("out")) == ["a_filled.png", "d_filled.png"]


def test_a_model_that_must_be_told_the_noise_level(restore):
    options = {"nf": 8, "depth": 1}
    DenoisingSDE(DenoisingSDEConfig(network_options=options, calls=2)).save_pretrained("sde")
    code, said = restore("denoise", "a.png", "--model", "sde")
    assert code == 2
    assert "--sigma: this model must be told the noise level; auto estimates it" in said
    assert restore("denoise", "a.png", "--model", "sde", "--sigma", "auto")[0] == 0


def test_reports_are_json_where_all_failed(restore):
    Path("text.png").write_text("This is no image.")
    done = CliRunner().invoke(app, ["text.png", "--json", "--device", "cpu"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["files"][0]["status"] == "failed"
