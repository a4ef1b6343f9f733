"""`fewstep restore train` for compressed sensing and for methods: runs that go on, and what is refused."""

import json
from pathlib import Path

import pytest
import skimage
from PIL import Image
from typer.testing import CliRunner

from fewstep.core.training import read_log
from fewstep.restoration.cli import app
from fewstep.restoration.methods.idm import IDM
from fewstep.restoration.methods.irsde import IRSDE
from fewstep.restoration.methods.loading import load_model

IDM_FIELDS = {
    "steps": 1,
    "channels": [16, 16],
    "batch_size": 2,
    "precision": "no",
    "max_steps": 2,
    "patch": 32,
}
TASK_FIELDS = {
    "task": "derain",
    "degradation": {"name": "rain"},
    "widths": [16],
    "blocks": 1,
    "patch": 32,
    "batch_size": 1,
    "precision": "no",
    "max_steps": 1,
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Cuts of photographs that ship with scikit-image."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in ("astronaut.png", "coffee.png"):
        with Image.open(Path(skimage.__file__).parent / "data" / name) as image:
            image.convert("RGB").crop((100, 100, 164, 148)).save(folder / name)
    return folder


@pytest.fixture
def trained(photographs, tmp_path):
    """The command with a folder of photographs; gives what it said."""

    def run(*arguments: object, output: str = "run", code: int = 0) -> str:
        common = ["--data", photographs, "--validation", photographs, "-o", tmp_path / output]
        given = ["train", *map(str, [*common, "--device", "cpu", *arguments])]
        result = CliRunner().invoke(app, given, env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output
        return " ".join(result.output.replace("│", " ").split())

    return run


def written(folder: Path, fields: dict) -> Path:
    """A recipe's file."""
    file = folder / "fields.json"
    file.write_text(json.dumps({"validation_images": 1, **fields}))
    return file


def test_compressed_sensing_trains_goes_on_and_leaves_a_model(trained, tmp_path):
    asked = ["--task", "compressed-sensing", "--ratio", "0.1", "--config", written(tmp_path, IDM_FIELDS)]
    first = trained(*asked, "--max-minutes", 5)
    assert "max_steps after 2 steps" in first
    assert "psnr" in first
    assert "going on from step 2" in trained(*asked, "--max-minutes", 5)
    assert [line["step"] for line in read_log(tmp_path / "run", "validate")] == [2]
    model = load_model(tmp_path / "run" / "model")
    assert isinstance(model, IDM)
    assert (model.config.ratio, model.config.steps, model.config.channels) == (0.1, 1, (16, 16))
    other = trained(*asked[:2], "--ratio", "0.5", *asked[4:], code=2)
    assert "holds a run of another recipe" in other


def test_the_ratio_of_the_file_or_of_the_recipe(trained, tmp_path):
    fields = {**IDM_FIELDS, "max_steps": 1}
    for output, given, ratio in (("file", {"ratio": 0.5}, 0.5), ("recipe", {}, 0.25)):
        file = written(tmp_path, {**fields, **given})
        trained("--task", "compressed-sensing", "--config", file, output=output)
        assert json.loads((tmp_path / output / "recipe.json").read_text())["ratio"] == ratio


@pytest.mark.parametrize(
    ("change", "arguments", "method"),
    [({}, ["--method", "IR-SDE"], "irsde"), ({"method": "irsde"}, [], "irsde"), ({}, [], "rddm")],
)
def test_a_method_is_named_by_the_command_or_the_file(trained, tmp_path, change, arguments, method):
    trained("--task", "derain", "--config", written(tmp_path, {**TASK_FIELDS, **change}), *arguments)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["method"] == method
    model = load_model(tmp_path / "run" / "model")
    assert isinstance(model, IRSDE) == (method == "irsde")
    assert model.tasks == ("derain",)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--task", "derain", "--ratio", "0.25"], "--ratio is for --task compressed-sensing, not for derain"),
        (["--ratio", "0.25"], "--ratio is for --task compressed-sensing, not for super-resolution"),
        (["--ratio", "0"], "--ratio: expected measurements per pixel, more than 0 and at most 1, got 0"),
        (["--ratio", "1.5"], "--ratio: expected measurements per pixel, more than 0 and at most 1, got 1.5"),
        (["--ratio", "nan"], "--ratio: expected measurements per pixel, more than 0 and at most 1, got nan"),
        (["--start", "resshift-x4"], "is a ResShift, which this recipe does not train"),
        (["--task", "super-resolution", "--start", "resshift-x4"], "--start is for the other tasks"),
        (["--pairs", "a", "b"], "not for compressed-sensing"),
        (["--method", "rddm"], "--method: compressed-sensing is trained as idm, got 'rddm'"),
        (["--task", "super-resolution", "--method", "irsde"], "super-resolution is trained as resshift"),
        (["--task", "derain", "--method", "idm"], "--method: expected one of rddm, irsde, got 'idm'"),
        (
            ["--task", "paint"],
            "expected super-resolution or one of denoise, derain, inpaint, jpeg, low-light",
        ),
        (["--config", "nowhere.json"], "nowhere.json"),
    ],
)
def test_wrong_combinations_are_one_sentence(trained, tmp_path, arguments, words):
    usual = (
        []
        if "--task" in arguments or words.endswith("super-resolution")
        else ["--task", "compressed-sensing"]
    )
    assert words in trained(*usual, *arguments, code=2)
    assert not (tmp_path / "run").exists()


def test_fields_that_a_recipe_has_not(trained, tmp_path):
    file = written(tmp_path, {"width": 3})
    assert "width, which IDMRecipe does not know" in trained(
        "--task", "compressed-sensing", "--config", file, code=2
    )
