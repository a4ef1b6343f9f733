"""`fewstep distill` and `fewstep pairs` as a user runs them, on a tiny model."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tests.core.commands import environment, fewstep
from tests.core.distill_cases import make_data, make_teacher

from fewstep.core.models import DiffusionModel
from fewstep.core.objectives import methods
from fewstep.core.objectives.recipe import DistillRecipe

SHAPE = (1, 4, 4)
QUICK = ("--updates", 4, "--batch-size", 8, "--validate-every", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model of two classes, data with and without labels, and files that are none."""
    folder = tmp_path_factory.mktemp("place")
    make_teacher(SHAPE, ("a", "b")).save_pretrained(folder / "tiny")
    data = make_data(200, SHAPE).numpy()
    np.save(folder / "data.npy", data)
    np.savez(folder / "data.npz", x0=data, label=np.arange(200) % 2)
    np.savez(folder / "labels.npz", x0=data, label=np.arange(200))
    np.save(folder / "wide.npy", np.zeros((20, 1, 5, 5), np.float32))
    (folder / "broken.npz").write_bytes(b"PK\x03\x04 no archive")
    (folder / "recipe.json").write_text(json.dumps({"method": "cd", "learning_rate": 0.002, "updates": 3}))
    (folder / "typo.json").write_text(json.dumps({"method": "cd", "learning_rat": 0.002}))
    (folder / "file").write_text("")
    return folder


@pytest.fixture(scope="module")
def ended(place):
    """Good commands by name, all of them run in one process."""
    cd = ("distill", "tiny", "--method", "cd")
    commands = {
        "first": (*cd, "--data", "data.npy", "--steps", 2, "-o", "out", *QUICK, "--json"),
        "again": (*cd, "--data", "data.npy", "--steps", 2, "-o", "out", *QUICK),
        "other": (*cd, "--data", "data.npy", "--steps", 3, "-o", "out", *QUICK),
        "pairs": ("pairs", "tiny", "--count", 200, "--steps", 2, "-o", "pairs", "--device", "cpu", "--json"),
        "reflow": ("distill", "tiny", "--method", "reflow", "--pairs", "pairs", *QUICK, "--json"),
        "guided": (*cd, "--data", "data.npz", "--guidance", 2, "-o", "guided", *QUICK),
        "filed": ("distill", "tiny", "--recipe", "recipe.json", "--data", "data.npz", "-o", "filed"),
        "list": ("distill", "--list"),
        "listed": ("distill", "--list", "--json"),
    }
    return dict(zip(commands, fewstep(place, *commands.values()), strict=True))


def test_a_student_from_the_command_line(place, ended):
    assert ended["first"].code == 0, ended["first"].err
    report = json.loads(ended["first"].out)
    assert (report["method"], report["calls"], report["stopped"]) == ("cd", 2, "max_steps")
    assert set(report["metrics"]) == {"sliced-wasserstein", "energy"}
    recipe = DistillRecipe.load(place / "out" / "recipe.json")
    assert (recipe.method, recipe.steps, recipe.updates, recipe.batch_size) == ("cd", 2, 4, 8)
    student = DiffusionModel.from_pretrained(place / "out")
    assert (student.sampling.kind, student.sampling.steps) == ("consistency", 2)
    card = (place / "out" / "README.md").read_text()
    assert "fewstep distill tiny --method cd --data data.npy --steps 2 --updates 4" in card


def test_the_same_command_again_and_another_one(ended):
    assert ended["again"].code == 0, ended["again"].err
    assert "max_steps" in ended["again"].out
    assert ended["other"].code == 1
    sentence = "holds a student of another recipe (steps was 2, now 3); give another one"
    assert sentence in ended["other"].err


def test_pairs_and_what_is_made_of_them(ended):
    assert ended["pairs"].code == 0, ended["pairs"].err
    assert json.loads(ended["pairs"].out)["made"] == 200
    assert ended["reflow"].code == 0, ended["reflow"].err
    assert json.loads(ended["reflow"].out)["student"] == "tiny-reflow"


def test_guidance_and_a_recipe_file(place, ended):
    assert ended["guided"].code == 0, ended["guided"].err
    assert DistillRecipe.load(place / "guided" / "recipe.json").guidance == 2.0
    assert ended["filed"].code == 0, ended["filed"].err
    assert DistillRecipe.load(place / "filed" / "recipe.json").learning_rate == 0.002


def test_every_method_is_listed(ended):
    listed = json.loads(ended["listed"].out)
    assert tuple(listed) == methods.names()
    for name in methods.names():
        assert name in ended["list"].out
        assert listed[name]["needs"] == list(methods.get(name).needs)


def test_bad_input_gives_a_sentence(place):
    base = ("distill", "tiny", "--method", "cd", "--data", "data.npy")
    cases = {
        ("distill",): (2, "name a model to distil, or --list"),
        ("distill", "tiny", "--data", "data.npy"): (2, "name one of"),
        ("distill", "nothing", "--method", "cd", "--data", "data.npy"): (
            2,
            "there is no checkpoint 'nothing'",
        ),
        ("distill", "tiny", "--method", "magic"): (2, "method must be one of"),
        ("distill", "tiny", "--method", "cd"): (2, "cd needs real samples: --data FILE"),
        ("distill", "tiny", "--method", "reflow"): (2, "make them with `fewstep pairs MODEL -o FOLDER`"),
        ("distill", "tiny", "--method", "cd", "--data", "none.npy"): (1, "none.npy does not exist"),
        ("distill", "tiny", "--method", "cd", "--data", "broken.npz"): (1, "broken.npz cannot be read"),
        ("distill", "tiny", "--method", "cd", "--data", "wide.npy"): (1, "holds samples of shape (1, 5, 5)"),
        ("distill", "tiny", "--method", "cd", "--data", "labels.npz"): (1, "labels in 0 … 1, got 0 … 199"),
        ("distill", "tiny", "--method", "reflow", "--pairs", "tiny"): (1, "is no folder of pairs"),
        ("distill", "tiny", "--method", "reflow", "--pairs", "data.npz"): (1, "pairs must hold the noise"),
        (*base, "--steps", "0"): (2, "--steps"),
        (*base, "--option", "mu"): (2, "an option must be name=value, got 'mu'"),
        (*base, "--option", "speed=1"): (2, "the method has no option 'speed'"),
        (*base, "--learning-rate", "-1"): (2, "learning_rate must be a positive number"),
        (*base, "--precision", "fp8"): (2, "precision must be one of no, bf16"),
        (*base, "--metric", "fid"): (2, "metric must be one of"),
        (*base, "--guidance", "2"): (1, "guidance needs labels"),
        (*base, "--device", "abacus"): (2, "'abacus' is not one of auto, cpu, cuda"),
        (*base, "--recipe", "typo.json"): (2, "learning_rat, which DistillRecipe does not know"),
        (*base, "--recipe", "absent.json"): (2, "absent.json cannot be read"),
        (*base, "-o", "file", *QUICK): (1, "file"),
        (*base, "-o", "tiny", *QUICK): (1, "the teacher's own; give another one"),
    }
    before = sorted(path.name for path in place.iterdir())
    results = fewstep(place, *cases)
    for (command, (code, sentence)), ended in zip(cases.items(), results, strict=True):
        assert ended.code == code, (command, ended.err)
        assert sentence in ended.err, command
        assert "Traceback" not in ended.err
    assert sorted(path.name for path in place.iterdir()) == before


def test_ctrl_c_leaves_a_run_that_goes_on(place):
    words = ["distill", "tiny", "--method", "cd", "--data", "data.npy", "-o", "long", "--device", "cpu"]
    settings = ["--batch-size", "8", "--validate-every", "40", "--updates", "1000000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "fewstep.command", *words, *settings],
        cwd=place,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    log = place / "long" / "run" / "log.jsonl"
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None and not (log.exists() and log.read_text()):
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1, error
    assert "interrupted; the same command goes on from here" in error
    assert "Traceback" not in error
    assert not (place / "long" / "model.safetensors").exists()
    reached = json.loads(log.read_text().splitlines()[-1])["step"]
    settings[-1] = str(reached + 40)
    [ended] = fewstep(place, [*words, *settings, "--json"])
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["steps"] >= reached + 40
    assert (place / "long" / "model.safetensors").exists()
