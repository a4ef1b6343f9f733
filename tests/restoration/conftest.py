"""A small model with random weights: what it makes is no better picture, but it is a picture."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fewstep.restoration.cli import app
from fewstep.restoration.methods.resshift import ResShift, ResShiftConfig


def make_tiny_model(seed: int = 0) -> ResShift:
    """One residual block of width 8 whose weights are large enough that noise and neighbours matter."""
    torch.manual_seed(seed)
    config = ResShiftConfig(
        network="edsr",
        network_options={"width": 8, "blocks": 1},
        first_stage="identity",
        latent=False,
        kappa=0.5,
        padding=1,
    )
    model = ResShift(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.08)
    return model


@pytest.fixture(scope="session")
def tiny_model() -> ResShift:
    return make_tiny_model()


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_model) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def fewstep(tiny_folder):
    """Run `fewstep restore` with the small model as a user's shell would."""

    def run(*arguments, stdin: bytes | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess:
        # One thread: several test processes on few cores would wait for each other's threads.
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "TERM": "dumb"}
        command = [sys.executable, "-m", "fewstep.command", "restore", "--device", "cpu"]
        if "--model" not in arguments:
            command += ["--model", str(tiny_folder)]
        return subprocess.run(
            [*command, *map(str, arguments)],
            input=stdin,
            capture_output=True,
            cwd=cwd,
            env=environment,
            timeout=240,
            check=False,
        )

    return run


@pytest.fixture
def fewstep_here(tiny_folder, monkeypatch):
    """The same in this process: faster, for what ends before any work."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments) -> subprocess.CompletedProcess:
        given = ["--device", "cpu"] if "--device" not in arguments else []
        given += ["--model", str(tiny_folder)] if "--model" not in arguments else []
        result = CliRunner().invoke(app, [*given, *map(str, arguments)])
        return subprocess.CompletedProcess(
            arguments, result.exit_code, result.stdout_bytes, result.stderr_bytes
        )

    return run
