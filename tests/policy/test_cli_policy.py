"""`fewstep policy` as a user's shell runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.policy.tiny_policy import NETWORK, demonstrations, saved_policy
from typer.testing import CliRunner

from fewstep.policy.cli import app
from fewstep.policy.demonstrations import read_demonstrations
from fewstep.policy.model import PolicyModel
from fewstep.policy.rl.policy_model import RLPolicy, RLPolicyConfig

pytest.importorskip("gym_pusht", reason="pip install 'fewstep-policy[envs]'")

SLOW = ("torch", "numpy", "gymnasium", "pyarrow", "PIL", "huggingface_hub", "safetensors")
PROGRAM = """
import sys
from typer.testing import CliRunner
from fewstep.policy.cli import app
names = ("train", "distill", "finetune", "eval", "rollout", "record", "info")
codes = [CliRunner().invoke(app, [*name, "--help"]).exit_code for name in [(), *((n,) for n in names)]]
print(codes, *(name for name in {slow} if name in sys.modules))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(saved_policy(tmp_path_factory.mktemp("policy") / "tiny"))


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(demonstrations(tmp_path / "demos.npz"))


def run(*arguments: object, code: int = 0) -> str:
    """What is said; of a failure one sentence, without a traceback."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == code, done.output
    if code:
        assert isinstance(done.exception, SystemExit), done.output
        # typer wraps the sentence into a box.
        return " ".join(done.output.replace("│", " ").split())
    return done.stdout


def settings(path: Path, **fields: Any) -> Path:
    path.write_text(json.dumps(fields))
    return path


def small(path: Path, **fields: Any) -> Path:
    """Two updates of a small network."""
    usual = {
        "network": "chunk-mlp",
        "network_options": NETWORK,
        "horizon": 8,
        "n_action_steps": 4,
        "batch_size": 4,
        "max_steps": 2,
        "validate_every": 2,
        "rollouts": 0,
        "validation_share": 0.25,
    }
    return settings(path, **{**usual, **fields})


def test_help_imports_nothing_slow() -> None:
    program = PROGRAM.format(slow=SLOW)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == str([0] * 8)


def test_info(model: str) -> None:
    assert "state 5, 2 steps" in run("info", model)
    (facts,) = json.loads(run("info", model, "--json"))
    assert (facts["environment"], facts["calls"], facts["gives"]) == ("pusht", 1, "4 actions of 2 numbers")


def test_evaluation(model: str, tmp_path: Path) -> None:
    file = tmp_path / "new" / "results.json"
    told = json.loads(run("eval", "--model", model, "--episodes", 1, "--json", "-o", file, "--device", "cpu"))
    assert (told["env"], told["episodes"]) == ("pusht", 1)
    assert json.loads(file.read_text())["episodes"][0]["seed"] == 100_000


def test_films(model: str, tmp_path: Path) -> None:
    strip, film = tmp_path / "strip.png", tmp_path / "film.mp4"
    run("rollout", "--model", model, "--side", 64, "-o", strip)
    with Image.open(strip) as image:
        assert image.height == 64
    facts = json.loads(run("rollout", "--model", model, "--side", 64, "-o", film, "--seed", 5, "--json"))
    assert (facts["seed"], facts["film"]) == (5, str(film))
    assert film.read_bytes()[4:8] == b"ftyp"


def test_recording(model: str, tmp_path: Path) -> None:
    file, folder = tmp_path / "some.npz", tmp_path / "set"
    told = json.loads(run("record", "--model", model, "--episodes", 1, "-o", file, "--json"))
    episodes = read_demonstrations(file)
    assert (told["kept"], told["steps"]) == (1, episodes.steps)
    assert {"state", "action", "reward", "done"} <= set(episodes.arrays)
    run("record", "--model", model, "--episodes", 1, "-o", folder)
    again = read_demonstrations(folder)
    np.testing.assert_array_equal(again.arrays["action"], episodes.arrays["action"])
    assert "is there already" in run("record", "--model", model, "-o", folder, code=2)
    bad = run("record", "--model", model, "--episodes", 1, "--seed", 100_000, "-o", tmp_path / "x", code=2)
    assert "0..99999" in bad
    nothing = ("record", "--model", model, "--episodes", 1, "--only-success", "-o", tmp_path / "x")
    assert "no episode is worth keeping" in run(*nothing, code=1)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("method", ["meanflow", "regression"])
def test_training_and_going_on(method: str, data: str, tmp_path: Path) -> None:
    command = ("train", "--data", data, "-o", tmp_path / "run", "--obs", "state", "--method", method)
    command += ("--config", small(tmp_path / "recipe.json"), "--device", "cpu")
    told = json.loads(run(*command, "--max-minutes", 5, "--json"))
    assert told["step"] == 2
    assert "Try it: fewstep policy eval" in run(*command), "a run that is over stays so"
    trained = PolicyModel.from_pretrained(tmp_path / "run" / "model")
    assert trained.config.environment == "pusht"
    other = small(tmp_path / "other.json", batch_size=5)
    assert "other settings: batch_size" in run(*command[:-4], "--config", other, code=2)


def test_learning_from_rewards(data: str, tmp_path: Path) -> None:
    fields = {"hidden": 16, "depth": 1, "updates": 2, "validate_every": 2, "batch_size": 4}
    recipe = settings(tmp_path / "recipe.json", **fields)
    for method in ("ofql", "bc"):
        run(
            "train",
            "--data",
            data,
            "-o",
            tmp_path / method,
            "--method",
            method,
            "--env",
            "",
            "--config",
            recipe,
        )
        policy = RLPolicy.from_pretrained(tmp_path / method / "model")
        assert (policy.config.method, policy.config.hidden) == (method, 16)
    start = ("--start", "x", "--method", "ofql")
    assert "--start" in run("train", "--data", data, "-o", tmp_path / "x", *start, code=2)


def test_distillation(model: str, tmp_path: Path) -> None:
    teacher = saved_policy(tmp_path / "teacher", steps=4)
    data = demonstrations(tmp_path / "demos.npz")
    recipe = settings(
        tmp_path / "recipe.json",
        max_steps=2,
        batch_size=4,
        validate_every=2,
        rollouts=0,
        validation_share=0.25,
    )
    command = ("distill", "--teacher", teacher, "--data", data, "--obs", "state", "--config", recipe)
    told = json.loads(run(*command, "--method", "cd", "-o", tmp_path / "run", "--json"))
    assert told["step"] >= 2
    student = PolicyModel.from_pretrained(tmp_path / "run" / "model")
    assert (student.config.kind, student.config.steps) == ("consistency", 1)
    swapped = [changed(teacher, tmp_path / "changed") if part == teacher else part for part in command]
    assert "other settings: teacher" in run(*swapped, "--method", "cd", "-o", tmp_path / "run", code=2)


def changed(model: str | Path, folder: Path) -> Path:
    """The same policy but for one weight."""
    other = PolicyModel.from_pretrained(str(model))
    with torch.no_grad():
        next(other.net.parameters()).view(-1)[0] += 1e-3
    other.save_pretrained(folder)
    return folder


def test_finetuning_on_new_demonstrations_and_going_on(model: str, data: str, tmp_path: Path) -> None:
    recipe = settings(tmp_path / "recipe.json", max_steps=3, batch_size=4, validate_every=3, rollouts=0)
    command = ("finetune", "--data", data, "--start", model, "-o", tmp_path / "run", "--config", recipe)
    told = json.loads(run(*command, "--device", "cpu", "--json"))
    assert told["step"] == 3
    assert "Done: 3 updates" in run(*command), "a run that is over stays so"
    swapped = [changed(model, tmp_path / "changed") if part == model else part for part in command]
    assert "other settings: start" in run(*swapped, code=2)
    before, after = (
        PolicyModel.from_pretrained(model),
        PolicyModel.from_pretrained(tmp_path / "run" / "model"),
    )
    assert before.config == after.config
    assert before.normalizer.statistics().keys() == after.normalizer.statistics().keys()
    assert any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))
    for words, arguments in (
        ("which policy is to be improved", command[:3]),
        ("only --method rl100", (*command, "--online-minutes", 2)),
        ("rl100 has stages", (*command, "--method", "rl100", "--max-minutes", 2)),
        ("--method must be one of", (*command, "--method", "magic")),
    ):
        assert words in run(*arguments, "-o", tmp_path / "other", code=2)
    wide = str(saved_policy(tmp_path / "wide", action_dim=3))
    said = run("finetune", "--data", data, "--start", wide, "-o", tmp_path / "wide-run", code=2)
    assert "'action' of the demonstrations is (2,) a step" in said


def test_finetuning_is_wired(model: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command hands on; the stages have tests of their own."""
    from fewstep.policy.rl100 import run as runs

    seen = {}

    def stages(recipe, data, output, *, start, minutes, device):
        seen.update(recipe=recipe, start=start, minutes=minutes)
        if seen.get("stop"):
            raise KeyboardInterrupt
        return {"online": {"episodes": 3, "score": {"mean": 0.5}, "success": {"rate": 1.0}}}

    monkeypatch.setattr(runs, "run_rl100", stages)
    recipe = settings(tmp_path / "recipe.json", online={"iterations": 7}, chain_steps=1)
    command = ("finetune", "--data", data, "--start", model, "-o", tmp_path / "run", "--config", recipe)
    command += ("--method", "rl100")
    said = run(*command, "--online-minutes", 2)
    assert "score 0.500, success 100% in 3 episodes" in said
    assert "run/online/model" in said
    recipe = seen["recipe"]
    assert (recipe.environment, recipe.obs, recipe.online.iterations) == ("pusht", "state", 7)
    assert (seen["minutes"].online, seen["minutes"].offline) == (2.0, None)
    seen["stop"] = True
    assert "goes on from here" in run(*command, code=1)


def test_refusals(model: str, data: str, tmp_path: Path) -> None:
    torn = saved_policy(tmp_path / "torn")
    (torn / "model.safetensors").write_bytes(b"nothing")
    wide = saved_policy(tmp_path / "wide", action_dim=3)
    actor = tmp_path / "actor"
    RLPolicy(RLPolicyConfig({"state": (5,)}, 2, method="dql")).save_pretrained(actor)
    assert json.loads(run("info", actor, "--json"))[0]["calls"] == 5
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(b"PK")
    film = tmp_path / "film.mp4"
    for words, arguments in (
        ("'mars' is unknown", ("eval", "--model", model, "--env", "mars")),
        ("there is no checkpoint", ("eval", "--model", tmp_path / "none")),
        ("there is no checkpoint", ("info", "none")),
        (
            "does not show state_of|does not show|is (6,)",
            ("eval", "--model", model, "--env", "pointmaze-umaze"),
        ),
        ("actions of 2 numbers, the policy gives 3", ("eval", "--model", wide)),
        ("model.safetensors", ("eval", "--model", torn)),
        ("learned from rewards", ("distill", "--teacher", actor, "--data", data, "-o", tmp_path / "r0")),
        ("learned from rewards", ("finetune", "--start", actor, "--data", data, "-o", tmp_path / "r0")),
        ("--episodes", ("eval", "--model", model, "--episodes", 0)),
        ("films are", ("rollout", "--model", model, "-o", film.with_suffix(".avi"))),
        ("--side", ("rollout", "--model", model, "-o", film, "--side", 8)),
        ("is not a file", ("train", "--data", tmp_path / "none.npz", "-o", tmp_path / "r", "--env", "")),
        (
            "'state' of the demonstrations is (5,) a step, of pointmaze-umaze (6,)",
            ("train", "--data", data, "-o", tmp_path / "r1", "--env", "pointmaze-umaze"),
        ),
        ("damaged", ("train", "--data", damaged, "-o", tmp_path / "r2", "--env", "")),
        ("method must be one of", ("train", "--data", data, "-o", tmp_path / "r3", "--method", "magic")),
        (
            "horizn",
            ("train", "--data", data, "-o", tmp_path / "r4", "--config", settings(tmp_path / "c", horizn=3)),
        ),
        (
            "one JSON object",
            ("train", "--data", data, "-o", tmp_path / "r5", "--config", _text(tmp_path / "d", "[1]")),
        ),
    ):
        # What failed leaves no folder that the corrected command would trip over.
        assert not any((tmp_path / f"r{number}").exists() for number in range(6))
        # Long paths are broken over lines.
        said = "".join(run(*arguments, code=2).replace("│", "").split())
        assert any(option.replace(" ", "") in said for option in words.split("|")), (words, said)
        assert not film.exists()


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
