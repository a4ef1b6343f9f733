"""Shipping a policy: its card, float16 weights that act the same, its name, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from apps.policy.models import Models
from safetensors.torch import load_file
from tests.policy.tiny_policy import saved_policy, tiny_policy
from tools.ship_policy import check, figures, observations, read_figures, ship
from tools.shipped_policy_texts import TEXTS
from tools.shipped_texts import RUN_TIME
from typer.testing import CliRunner

from fewstep.policy.cli import app
from fewstep.policy.policy import Policy
from fewstep.policy.results import Episode, Results
from fewstep.policy.rl.policy_model import RLPolicy, RLPolicyConfig

OURS = Results("pusht", tuple(Episode(seed, 0.5 + 0.1 * seed, 9.0, 200, seed > 1) for seed in range(4)))
THEIRS = Results("pusht", tuple(Episode(seed, 0.4, 9.0, 300, False) for seed in range(4)))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """What a training run leaves, and figures of it."""
    folder = tmp_path_factory.mktemp("run")
    saved_policy(folder / "model")
    saved_policy(folder / "online" / "model", seed=1)
    lines = [{"step": 9, "kind": "train", "minutes": 29.7}, {"step": 9, "kind": "validate", "score": 0.5}]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.json").write_text('{"method": "meanflow"}\n')
    OURS.save(folder / "ours.json")
    (folder / "printed.json").write_text(json.dumps(OURS.summary()))
    THEIRS.save(folder / "theirs.json")
    return folder


def test_a_policy_is_written_with_its_card(run, tmp_path):
    files = [str(run / "ours.json"), f"10 calls={run / 'printed.json'}"]
    folder = ship(
        "pusht-onestep",
        run,
        files,
        "2 CPU cores",
        baseline=f"regression={run / 'theirs.json'}",
        package=tmp_path,
    )
    stored = load_file(folder / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    card = (folder / "README.md").read_text(encoding="utf-8")
    for fact in (
        "# pusht-onestep",
        "186 of the 206 human demonstrations",
        "| Licence of the data | MIT",
        "--config recipe.json -o runs/pusht-onestep --max-minutes 30\n",
        "| Optimiser steps | 9 |",
        "| Machine | 2 CPU cores |",
        "| Test set | Metric | This model | regression |",
        "| pusht, 4 episodes, 1 call | score | 0.650 (0.445 to 0.855) | 0.400 (0.400 to 0.400) |",
        "| pusht, 4 episodes, 10 calls | success | 50 % (15 to 85 %) | 0 % (0 to 49 %) |",
        "| pusht, 4 episodes, 10 calls | steps, mean | 200 | 300 |",
        "stored are float16 weights",
    ):
        assert fact in card, fact
    assert (folder / "recipe.json").read_text() == (run / "recipe.json").read_text()
    assert [entry.name for entry in tmp_path.iterdir()] == ["pusht-onestep"]


def test_a_stage_without_a_log_takes_the_place_of_an_older_one(run, tmp_path):
    stage = tmp_path / "stages"
    stage.mkdir()
    (stage / "recipe.json").write_text("{}")
    (tmp_path / "pusht-meanflow").mkdir()
    (tmp_path / "pusht-meanflow" / "left-over").touch()
    model = run / "online" / "model"
    folder = ship("pusht-meanflow", stage, [], "a GPU", model=model, dtype=None, package=tmp_path)
    assert {file.name for file in folder.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
        "recipe.json",
    }
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "Optimiser steps" not in card
    assert "--max-minutes" not in card
    assert "## Results" not in card
    assert (folder / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()


def test_a_shipped_name_is_found(run, tmp_path, monkeypatch):
    config = RLPolicyConfig({"state": (6,)}, 2, environment="pointmaze-umaze", fps=100.0)
    RLPolicy(config).save_pretrained(tmp_path / "run" / "model")
    (tmp_path / "run" / "recipe.json").write_text("{}")
    package = tmp_path / "package" / "checkpoints"
    ship("pointmaze-umaze-ofql", tmp_path / "run", [], "", package=package)
    ship("pusht-onestep", run, [], "", package=package)
    monkeypatch.setattr(
        "fewstep.core.checkpoints._shipped_folder", lambda package: tmp_path / "package" / "checkpoints"
    )
    policy = Policy.from_pretrained("pusht-onestep", "cpu")
    assert policy.select_action({"state": np.zeros(5)}).shape == (2,)
    said = CliRunner().invoke(app, ["info", "--json"]).stdout
    assert [facts["name"] for facts in json.loads(said)] == ["pointmaze-umaze-ofql", "pusht-onestep"]
    refused = CliRunner().invoke(app, ["eval", "--model", "pusht-nothing"])
    assert refused.exit_code == 2
    assert "pointmaze-umaze-ofql, pusht-onestep" in " ".join(refused.output.replace("│", " ").split())
    assert list(Models(device="cpu").offered) == ["pusht-onestep", "pointmaze-umaze-ofql"]


def test_weights_that_act_otherwise_are_refused():
    original, stored = tiny_policy(), tiny_policy()
    assert check(original, stored) == "normalised actions differ by 0.0000 at most"
    with torch.no_grad():
        for parameter in original.net.parameters():
            parameter.normal_(std=0.1)
        stored.load_state_dict(original.state_dict())
        for parameter in stored.net.parameters():
            parameter.mul_(1.3)
    with pytest.raises(ValueError, match=r"float16 changes normalised actions by up to .*--float32"):
        check(original, stored)


def test_observations_lie_where_the_normaliser_was_fitted():
    seen = observations(tiny_policy())["state"]
    assert seen.shape == (256, 2, 5)
    assert 0 <= float(seen.min()) < 5
    assert 507 < float(seen.max()) <= 512


def test_what_cannot_be_shipped_is_said(run, tmp_path):
    ours = str(run / "ours.json")
    with pytest.raises(ValueError, match=r"--name: expected one of pusht-onestep, .*got 'mine'"):
        ship("mine", run, [], "", package=tmp_path)
    with pytest.raises(ValueError, match="pointmaze-umaze-ofql is not for pusht"):
        ship("pointmaze-umaze-ofql", run, [], "", package=tmp_path)
    with pytest.raises(ValueError, match=r"log\.jsonl does not hold figures"):
        ship("pusht-onestep", run, [str(run / "log.jsonl")], "", package=tmp_path)
    with pytest.raises(ValueError, match="--baseline: give LABEL=FILE"):
        ship("pusht-onestep", run, [ours], "", baseline=ours, package=tmp_path)
    Results("pusht", THEIRS.episodes[:3]).save(tmp_path / "fewer.json")
    with pytest.raises(ValueError, match="other episodes"):
        ship("pusht-onestep", run, [ours], "", baseline=f"bc={tmp_path / 'fewer.json'}", package=tmp_path)
    Results("ant", OURS.episodes).save(tmp_path / "ant.json")
    with pytest.raises(ValueError, match="a file is of ant"):
        ship("pusht-onestep", run, [str(tmp_path / "ant.json")], "", package=tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"fewer.json", "ant.json"}


def test_figures_of_one_broken_episode(tmp_path):
    Results("ant", (Episode(0, 5.0, 5.0, 3, None, "the simulation broke"),)).save(tmp_path / "a=b.json")
    measured = read_figures(str(tmp_path / "a=b.json"))
    assert (measured.label, measured.seeds) == ("", (0,))
    assert figures(measured.summary) == {"score": "5.000", "steps, mean": 3.0, "episodes broken off": 1}


def test_commands_name_what_they_make():
    for name, texts in TEXTS.items():
        assert f" -o runs/{name}" in texts.command
        assert texts.command.count("{") == texts.command.count(RUN_TIME)
