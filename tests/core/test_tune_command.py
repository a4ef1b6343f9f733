"""`fewstep tune` as a user runs it, on a tiny model."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tests.core.commands import fewstep as run_commands

from fewstep.core import paths
from fewstep.core.cli import tune as command
from fewstep.core.cli.data import read_samples
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import DiTConfig
from fewstep.core.search import load_plan

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    config = DiTConfig(channels=1, size=(8, 8), patch=4, width=16, depth=1, heads=2)
    DiffusionModel.with_network(config, paths.EDM(), "edm").save_pretrained(folder)
    return folder


def fewstep(folder, *words):
    """Run `fewstep tune` several times: (exit code, output, errors) of each."""
    return run_commands(folder, *(("tune", *arguments) for arguments in words))


QUICK = ("--samples", 4, "--max-minutes", 0.05, "--device", "cpu")


def test_it_writes_the_plan_beside_the_checkpoint(model, tmp_path):
    words = [sys.executable, "-m", "fewstep.command", "tune", str(model), "--budget", "3"]
    result = subprocess.run(
        [*words, *map(str, QUICK)],
        cwd=tmp_path,
        env={**os.environ, "COLUMNS": "200", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "mean RMSE to the reference" in result.stdout
    assert str(model / "plan-3.json") in result.stdout
    assert "the same command goes on" in result.stderr
    assert 1 <= load_plan(model, 3).nfe <= 3


def test_json_and_a_folder_of_ones_own(model, tmp_path):
    data = tmp_path / "data.npy"
    np.save(data, np.random.default_rng(0).normal(size=(12, *SHAPE)).astype(np.float32))
    command = (model, "--budget", 2, "--objective", "energy", "--data", data, "--json", "-o", "out", *QUICK)
    [(code, out, error)] = fewstep(tmp_path, command)
    assert code == 0, error
    report = json.loads(out)
    assert report["budget"] == 2
    assert report["objective"] == "energy distance to the data"
    assert 1 <= load_plan(tmp_path / "out", 2).nfe <= 2


def test_a_folder_that_cannot_be_written_is_left_alone(model, tmp_path, monkeypatch, capsys):
    """As a shipped checkpoint's may be; root may write everywhere, so the trial is made to fail."""
    tried = command._tried

    def refuse(folder):
        if folder == model:
            raise PermissionError(13, "Permission denied")
        return tried(folder)

    monkeypatch.setattr(command, "_tried", refuse)
    monkeypatch.chdir(tmp_path)
    request = command.Request(str(model), 2, samples=4, max_minutes=0.05, device="cpu")
    assert command.run(request) == 0
    assert "cannot be written; the plan is in tiny-plans" in capsys.readouterr().err
    assert load_plan(tmp_path / "tiny-plans", 2).nfe == 2


def test_bad_input_gives_a_sentence(model, tmp_path):
    cases = {
        ("no-such-model",): (2, "there is no checkpoint 'no-such-model'"),
        (model, "--budget", "0"): (2, "--budget"),
        (model, "--objective", "fid"): (2, "'fid' is not one of reference, energy"),
        (model, "--objective", "energy"): (2, "energy needs --data"),
        (model, "--data", "x.npy"): (2, "compares with no data"),
        (model, "--objective", "energy", "--data", "x.npy"): (1, "x.npy does not exist"),
        (model, "--device", "tpu"): (2, "--device"),
        (model, "-o", "/dev/null/plans"): (2, "plans cannot be written there"),
        (): (2, "Missing argument 'MODEL'"),
    }
    results = fewstep(tmp_path, *cases)
    for (wanted, message), (code, _, error) in zip(cases.values(), results, strict=True):
        assert code == wanted, error
        assert message in error
        assert "Traceback" not in error


def test_help_does_not_import_torch():
    code = (
        "import sys\nfrom fewstep.command import main\n"
        "try:\n    main(['tune', '--help'])\nexcept SystemExit:\n    pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "--max-minutes" in result.stdout


def test_samples_of_every_kind(tmp_path):
    wanted = torch.linspace(-1, 1, 2 * 64).reshape(2, *SHAPE)
    np.save(tmp_path / "a.npy", wanted.numpy())
    np.savez(tmp_path / "a.npz", images=wanted.numpy())
    save_file({"images": wanted}, tmp_path / "a.safetensors")
    for name in ("a.npy", "a.npz", "a.safetensors"):
        assert torch.equal(read_samples(str(tmp_path / name), SHAPE), wanted)
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(3):
        Image.fromarray(np.full((8, 8), 51 * k, np.uint8)).save(folder / f"{k}.png")
    images = read_samples(str(folder), SHAPE)
    assert images.shape == (3, *SHAPE)
    assert images[:, 0, 0, 0].tolist() == pytest.approx([-1.0, -0.6, -0.2])


def test_bad_samples_are_named(tmp_path):
    np.save(tmp_path / "small.npy", np.zeros((4, 1, 4, 4)))
    np.save(tmp_path / "nan.npy", np.full((4, *SHAPE), np.nan))
    np.save(tmp_path / "words.npy", np.array(["a", "b"]))
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    (tmp_path / "broken.npy").write_bytes(b"no array")
    (tmp_path / "notes.txt").write_text("no array")
    for name, message in {
        "small.npy": r"samples of shape \(1, 4, 4\), the model makes \(1, 8, 8\)",
        "nan.npy": "not finite",
        "words.npy": "not numbers",
        "two.npz": "must hold one array, it holds a, b",
        "broken.npy": "cannot be read",
        "notes.txt": "not of a known kind",
        "none.npy": "does not exist",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_samples(str(tmp_path / name), SHAPE)
