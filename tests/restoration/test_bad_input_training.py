"""Bad folders for training and bad degradations: one sentence and exit code 2."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from tests.restoration.test_bad_input import truncated_jpeg
from typer.testing import CliRunner

from fewstep.restoration.cli import app
from fewstep.restoration.tasks import TASKS

PHOTO = data.astronaut()[60:80, 150:180]


def run(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(part) for part in arguments], env={"COLUMNS": "300"})
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.exit_code, re.sub(r"[\s│╭╮╰╯─]+", " ", done.stderr)


@pytest.mark.parametrize("task", TASKS)
def test_training_folders(task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    big = np.tile(PHOTO, (8, 6, 1))
    for folder in ("good", "other", "smaller", "damaged", "empty", "tiny"):
        Path(folder).mkdir()
    Image.fromarray(big).save("good/x.png")
    Image.fromarray(big).save("other/y.png")
    Image.fromarray(big[:150]).save("smaller/x.png")
    Image.fromarray(PHOTO).save("tiny/x.png")
    truncated_jpeg(Path("damaged/x.jpg"))
    whole = ("train", "--task", task, "-o", "run", "--max-minutes", "0.01")
    photos = ("--data", "good", "--validation", "good")
    cases = [
        (("--data", "none", "--validation", "good"), "expected a folder of images, got 'none'"),
        (("--data", "empty", "--validation", "good"), "no images .*'empty'"),
        (("--data", "tiny", "--validation", "good"), "as large as|smaller than|too small"),
    ]
    if task in ("denoise", "derain", "low-light", "jpeg"):
        cases += [
            ((*photos, "--pairs", "other", "good"), r"hold files of the same names; not so: \['x', 'y'\]"),
            (
                (*photos, "--pairs", "smaller", "good"),
                r"x\.png has sizes 180×150 in smaller and 180×160 in good",
            ),
            ((*photos, "--pairs", "empty", "good"), "no images .*'empty'"),
            ((*photos, "--pairs", "damaged", "damaged"), r"damaged/x\.jpg: .*truncated"),
        ]
    for arguments, words in cases:
        code, said = run(*whole, *arguments)
        assert code == 2, said
        assert re.search(words, said), (arguments, said)


@pytest.mark.parametrize(
    ("degradation", "field", "words"),
    [
        ("jpeg", "low=0", "low"),
        ("jpeg", "high=101", "high"),
        ("noise", "low=-1", "low"),
        ("noise", "high=much", "high"),
        ("noise", "gain=2", "gain"),
        ("rain", "gain", "--set: expected field=value"),
        ("fog", "low=1", "fog"),
    ],
)
def test_degradations(degradation, field, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(PHOTO).save("a.png")
    code, said = run("simulate", "a.png", "-o", "out", "--degradation", degradation, "--set", field)
    assert code == 2, said
    assert words in said
    assert os.listdir() == ["a.png"]
