"""The wheels hold what a user needs and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT_CHECKPOINT = 12e6
LIMIT_PACKAGE = 40e6


def build(folder: Path, output: Path) -> zipfile.ZipFile:
    """Build a wheel as `pip install` would, without the network."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    command += ["--outdir", str(output), str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (wheel,) = output.glob("*.whl")
    return zipfile.ZipFile(wheel)


@pytest.fixture(scope="module", params=["shared", "packages/restoration", "packages/policy"])
def wheel(request, tmp_path_factory):
    """Each distribution's wheel."""
    with build(ROOT / request.param, tmp_path_factory.mktemp("wheel")) as opened:
        yield opened


def test_wheel_keeps_the_namespace_open(wheel):
    assert "fewstep/__init__.py" not in wheel.namelist()


def test_wheel_holds_only_the_package(wheel):
    strangers = [
        name
        for name in wheel.namelist()
        if (not name.startswith("fewstep/") and ".dist-info/" not in name) or "__pycache__" in name
    ]
    assert strangers == []
    rooms = {name.split("/")[1] for name in wheel.namelist() if name.startswith("fewstep/")}
    core = {"core", "command.py", "options.py", "verbs_distill.py"}
    assert rooms in (core, {"restoration"}, {"policy"})


def test_wheel_is_marked_as_typed(wheel):
    assert [name for name in wheel.namelist() if name.endswith("/py.typed")]


def test_checkpoints_ship_complete_and_small(wheel):
    sizes = {info.filename: info.file_size for info in wheel.infolist() if "/checkpoints/" in info.filename}
    folders = {name.split("/checkpoints/")[1].split("/")[0] for name in sizes}
    if any(name.startswith("fewstep/restoration/") for name in wheel.namelist()):
        assert "resshift-x4" in folders
    for folder in folders:
        files = {Path(name).name for name in sizes if f"/checkpoints/{folder}/" in name}
        assert {"config.json", "model.safetensors", "README.md"} <= files
    assert all(size <= LIMIT_CHECKPOINT for size in sizes.values())
    assert sum(sizes.values()) <= LIMIT_PACKAGE


def test_the_licence_is_in_the_wheel(wheel):
    assert [name for name in wheel.namelist() if name.endswith("/licenses/LICENSE")]
