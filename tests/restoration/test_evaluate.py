"""`fewstep restore metrics` and `fewstep restore simulate`: test data, and numbers about it."""

import json

import numpy as np
import pytest
from PIL import Image
from skimage import data
from typer.testing import CliRunner

from fewstep.restoration.cli import app
from fewstep.restoration.evaluation import match
from fewstep.restoration.images import Picture, read, write
from fewstep.restoration.metrics import score, sharpness

PHOTO = data.astronaut()[40:140, 150:270]
NOISY = np.clip(PHOTO + np.random.default_rng(0).normal(0, 12, PHOTO.shape), 0, 255).astype(np.uint8)


@pytest.fixture
def run(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


def save(pixels: np.ndarray, name: str) -> None:
    write(Picture(pixels), name)


def test_numbers_of_two_files_are_those_of_the_library(run):
    save(NOISY, "a_x4.png")
    save(PHOTO, "a.png")
    done = run("metrics", "a_x4.png", "a.png", "--border", "4", "--json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    (file,) = report["files"]
    for name in ("y", "rgb", "ycrcb"):
        expected = score(NOISY, PHOTO, name, 4)
        assert file[name]["psnr"] == pytest.approx(expected.psnr, abs=1e-4)
        assert file[name]["ssim"] == pytest.approx(expected.ssim, abs=1e-6)
    assert file["sharpness"] == pytest.approx(sharpness(NOISY[4:-4, 4:-4], PHOTO[4:-4, 4:-4]), abs=1e-4)
    assert "super-resolution" in report["conventions"]["y"]
    assert "compressed sensing" in report["conventions"]["ycrcb"]
    one = run("metrics", "a_x4.png", "a.png", "--convention", "rgb")
    assert "PSNR rgb" in one.stdout
    assert "PSNR y" not in one.stdout
    assert "rgb: all three colours of 8-bit images: denoising" in one.stdout


def test_folders_are_matched_by_name(run, tmp_path):
    for folder in ("out", "truth"):
        (tmp_path / folder).mkdir()
    for name in ("cat", "cat_2", "dog"):
        save(PHOTO, f"truth/{name}.png")
    save(NOISY, "out/cat_x4.png")
    save(PHOTO, "out/cat_2_x4.png")
    save(PHOTO[:50], "out/dog.png")
    save(PHOTO, "out/catfish.png")
    save(NOISY, "out/cat_x4-uncertainty.png")
    pairs, alone = match(tmp_path / "out", tmp_path / "truth")
    assert [(r.name, t.name) for r, t in pairs] == [
        ("cat_2_x4.png", "cat_2.png"),
        ("cat_x4.png", "cat.png"),
        ("dog.png", "dog.png"),
    ]
    assert len(alone) == 1
    done = run("metrics", "out", "truth", "--convention", "rgb", "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert len(report["files"]) == 2
    # Equal images have no PSNR in decibels; the mean is that of the others.
    assert report["files"][0]["rgb"]["psnr"] is None
    assert report["mean"]["rgb"]["psnr"] == report["files"][1]["rgb"]["psnr"]
    assert any("catfish.png" in problem for problem in report["problems"])
    assert any("has 120×50 pixels, but" in problem for problem in report["problems"])
    table = run("metrics", "out", "truth").stdout.splitlines()
    assert table[0].split()[:3] == ["photograph", "PSNR", "y"]
    assert [line.split()[0] for line in table[1:4]] == ["cat_2_x4.png", "cat_x4.png", "mean"]


def test_depths_and_grey_are_brought_together(run):
    save(PHOTO.astype(np.uint16) * 257, "deep.png")
    save(PHOTO, "flat.png")
    report = json.loads(run("metrics", "deep.png", "flat.png", "--json").stdout)
    assert report["files"][0]["ycrcb"]["psnr"] is None or report["files"][0]["ycrcb"]["psnr"] > 200
    save(PHOTO[:, :, :1], "grey.png")
    save(np.repeat(PHOTO[:, :, :1], 3, 2), "equal.png")
    assert (
        json.loads(run("metrics", "grey.png", "equal.png", "--json").stdout)["files"][0]["rgb"]["psnr"]
        is None
    )


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a.png", "none.png"), 1, "none.png: there is no such file or folder"),
        (("a.png", "."), 1, "expected two files or two folders"),
        (("a.png", "a.png", "--convention", "best"), 2, "expected one of y, rgb, ycrcb, got 'best'"),
        (("a.png", "a.png", "--border", "60"), 1, "border: expected 0 to less than half"),
        (("a.png", "text.png"), 1, "text.png: is not a JPEG"),
    ],
)
def test_bad_requests_are_one_sentence(run, tmp_path, arguments, code, words):
    save(PHOTO, "a.png")
    (tmp_path / "text.png").write_text("This is no image.")
    done = run("metrics", *arguments)
    assert done.exit_code == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["noise", "rain", "low_light", "jpeg", "mask", "mosaic", "real_esrgan"])
def test_every_degradation_is_made_and_is_the_same_again(run, tmp_path, name):
    save(PHOTO[:98], "a.png")
    made = []
    for folder, seed in (("one", 3), ("two", 3), ("three", 4)):
        done = run("simulate", "a.png", "-o", f"{folder}/", "--degradation", name, "--seed", seed, "--json")
        assert done.exit_code == 0, done.stderr
        made.append(read(f"{folder}/a.png").pixels)
    assert (made[0] == made[1]).all()
    details = json.loads(done.stdout)["files"][0]["details"]
    if name == "real_esrgan":
        assert made[0].shape == (24, 30, 3)
        assert details["used_size"] == [120, 96]
    else:
        assert made[0].shape == (98, 120, 3)
        assert (made[0] != PHOTO[:98]).any()
        assert name == "mosaic" or (made[0] != made[2]).any()
    if name == "mask":
        mask = read("three/masks/a.png").pixels[:, :, 0] > 127
        assert 0 < mask.mean() < 1
        assert (made[2][~mask] == PHOTO[:98][~mask]).all()
        assert details["mask"] == "three/masks/a.png"


def test_fields_of_a_degradation(run):
    save(PHOTO, "a.png")
    done = run(
        "simulate", "a.png", "-o", "b.png", "--degradation", "noise", "--set", "low=40", "--set", "high=40"
    )
    assert done.exit_code == 0, done.stderr
    with Image.open("b.png") as image:
        difference = np.asarray(image, float) - PHOTO
    assert 25 < difference.std() < 41


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--degradation", "fog"), "name must be one of 'nothing', 'noise'"),
        (
            ("--degradation", "noise", "--set", "level=3"),
            "'level' is no field of 'noise', which has low, high",
        ),
        (("--degradation", "noise", "--set", "low"), "--set: expected field=value, got 'low'"),
        (("--degradation", "jpeg", "--set", "low=0"), "within 1 … 95"),
        (("--degradation", "noise", "--ext", "gif"), "--ext must be auto or one of"),
    ],
)
def test_bad_degradations_end_with_2(run, arguments, words):
    save(PHOTO, "a.png")
    done = run("simulate", "a.png", "-o", "out", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
