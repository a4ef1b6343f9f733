"""The `fewstep` command as a user runs it: a process, its output and its exit code."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import typer

from fewstep.core.cli.doctor import missing_requirements
from fewstep.core.cli.options import resolve_device, resolve_dtype

COPY = '''
import time
from pathlib import Path
import typer
from fewstep.core.cli.batch import process_files
from fewstep.core.cli.options import AsJson, Device, Inputs, Output, resolve_device
from fewstep.core.cli.outputs import Naming

app = typer.Typer()

@app.command()
def copy(inputs: Inputs, output: Output = None, device: Device = "auto", as_json: AsJson = False,
         pause: float = 0.0):
    """Copy text files in capitals."""
    resolve_device(device)

    def work(source: Path, target: Path, tick):
        text = source.read_text()
        target.write_text(text[: len(text) // 2].upper())
        time.sleep(pause)
        if "bad" in text:
            raise ValueError("the text is bad")
        target.write_text(text.upper())
        return {"letters": len(text)}

    naming = Naming(writable={".txt"}, fallback=".txt")
    report = process_files(inputs, output, work, suffixes={".txt"}, naming=naming, as_json=as_json)
    raise typer.Exit(report.exit_code)
'''

ROUGH = '''
def explode(kind: str = "value"):
    """Fail in a way that no verb should."""
    raise {"value": ValueError("two\\nlines"), "os": FileNotFoundError(2, "No such file", "x.bin"),
           "key": KeyError("k"), "empty": RuntimeError()}[kind]
'''


def add_package(site: Path, name: str, code: str, verbs: str, requires: str = "") -> None:
    module = name.replace("-", "_")
    (site / f"{module}.py").write_text(code)
    info = site / f"{module}-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2.3\nSummary: Summary of {name}.\n{requires}"
    )
    (info / "entry_points.txt").write_text(f"[fewstep.commands]\n{verbs}\n")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Packages of the project: one works, one fails, one cannot start."""
    folder = tmp_path_factory.mktemp("site")
    requires = (
        "Provides-Extra: eval\nRequires-Dist: numpy>=1\n"
        "Requires-Dist: no-such-library>=2; extra == 'eval'\nRequires-Dist: numpy>=99; extra == 'eval'\n"
    )
    add_package(folder, "fewstep-demo", COPY, "copy = fewstep_demo:app", requires)
    add_package(folder, "fewstep-rough", ROUGH, "explode = fewstep_rough:explode")
    add_package(
        folder, "fewstep-broken", "import library_that_is_not_there\n", "shatter = fewstep_broken:app"
    )
    return folder


@pytest.fixture
def fewstep(site, tmp_path):
    def run(*arguments, stdin=None, **environment):
        return subprocess.run(
            [sys.executable, "-m", "fewstep.command", *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200", **environment},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_help_lists_all_verbs_and_a_broken_package_breaks_none(fewstep):
    result = fewstep("--help")
    assert result.returncode == 0, result.stderr
    for text in ("copy", "Summary of fewstep-demo.", "explode", "shatter", "doctor"):
        assert text in result.stdout
    result = fewstep("copy", "--help")
    assert result.returncode == 0
    assert "Copy text files in capitals." in result.stdout


def test_help_and_version_do_not_import_torch(site):
    code = (
        "import sys\nfrom fewstep.command import main\n"
        "try:\n    main([sys.argv[1]])\nexcept SystemExit:\n    pass\n"
        "assert 'typer' in sys.modules\n"
        "heavy = {'torch', 'numpy', 'fewstep_demo', 'fewstep_broken'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    for argument in ("--help", "--version"):
        environment = {**os.environ, "PYTHONPATH": str(site)}
        command = [sys.executable, "-c", code, argument]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_version_names_core_and_packages(fewstep):
    result = fewstep("--version")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert "fewstep-demo 1.2.3" in lines
    assert "fewstep-broken 1.2.3" in lines
    assert any(line.startswith("fewstep-core ") for line in lines)


def test_installed_script_is_this_command():
    script = Path(sys.executable).with_name("fewstep")
    result = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("fewstep-core ")


def test_broken_verb_is_one_sentence(fewstep):
    result = fewstep("shatter", "x")
    assert result.returncode == 1
    assert "shatter cannot start" in result.stderr
    assert "library_that_is_not_there" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in fewstep("shatter", "x", FEWSTEP_DEBUG="1").stderr


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["explode", "--nonsense"], ["copy"], ["copy", "a", "--device", "abc"]]
)
def test_usage_errors_are_exit_code_2(fewstep, arguments):
    result = fewstep(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert not result.stdout


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("value", "fewstep: two lines"),
        ("os", "fewstep: no such file: x.bin"),
        ("key", "fewstep: KeyError: 'k'"),
        ("empty", "fewstep: RuntimeError"),
    ],
)
def test_unforeseen_error_is_one_sentence(fewstep, kind, sentence):
    result = fewstep("explode", "--kind", kind)
    assert result.returncode == 1
    assert result.stderr.strip() == sentence
    assert "Traceback" in fewstep("explode", "--kind", kind, FEWSTEP_DEBUG="1").stderr


def test_batch_goes_on_and_lists_the_bad_ones(fewstep, tmp_path):
    for name, text in (("a", "one"), ("b", "bad"), ("c", "three")):
        (tmp_path / f"{name}.txt").write_text(text)
    result = fewstep("copy", "a.txt", "b.txt", "gone.txt", "c.txt", "-o", "out", "--json")
    assert result.returncode == 1
    assert "2 of 4 failed" in result.stderr
    assert "b.txt: the text is bad" in result.stderr
    assert "gone.txt: does not exist" in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.txt", "c.txt"], (
        "nothing half-written"
    )
    assert (tmp_path / "out" / "c.txt").read_text() == "THREE"
    report = json.loads(result.stdout)
    assert (report["done"], report["failed"], report["skipped"]) == (2, 2, 0)
    done = next(file for file in report["files"] if file["input"] == "a.txt")
    assert done["output"] == "out/a.txt"
    assert done["details"] == {"letters": 3}


def test_standard_input_and_output(fewstep):
    result = fewstep("copy", "-", stdin="through")
    assert (result.returncode, result.stdout, result.stderr) == (0, "THROUGH", "")
    result = fewstep("copy", "-", "-o", "-", stdin="bad")
    assert (result.returncode, result.stdout) == (1, "")
    assert "-: the text is bad" in result.stderr


def test_ctrl_c_leaves_nothing_half_written(site, tmp_path):
    (tmp_path / "a.txt").write_text("one")
    command = [sys.executable, "-m", "fewstep.command", "copy", "a.txt", "-o", "out", "--pause", "60"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    # A job in the background is started with SIGINT ignored and passes that on; a command at a prompt is not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    finally:
        signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/.a.*")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert list((tmp_path / "out").iterdir()) == []


def test_doctor_reports_what_is_and_what_is_missing(fewstep):
    result = fewstep("doctor", "--json")
    report = json.loads(result.stdout)
    assert result.returncode == 1, "a verb that cannot start is an illness"
    assert report["healthy"] is False
    assert report["torch"] == torch.__version__
    assert report["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["cpu"]["threads"] >= 1
    assert report["cpu"]["bf16"] in ("native", "emulated")
    assert len(report["cuda"]["devices"]) == torch.cuda.device_count()
    packages = {package["name"]: package for package in report["packages"]}
    assert {"fewstep-core", "fewstep-demo", "fewstep-broken"} <= set(packages)
    extra = packages["fewstep-demo"]["extras"]["eval"]
    assert extra["install"] == 'pip install "fewstep-demo[eval]"'
    assert any("no-such-library" in missing for missing in extra["missing"])
    assert any(missing.startswith("numpy>=99 (installed: ") for missing in extra["missing"])
    assert packages["fewstep-demo"]["missing"] == []
    assert report["verbs"]["copy"] == {"package": "fewstep-demo", "works": True, "error": None}
    assert "library_that_is_not_there" in report["verbs"]["shatter"]["error"]

    plain = fewstep("doctor")
    assert plain.returncode == 1
    for text in ("fewstep shatter", "cannot start", 'pip install "fewstep-demo[eval]"', torch.__version__):
        assert text in plain.stdout


def test_requirements_are_followed_through_extras(site, monkeypatch):
    from importlib.metadata import distribution

    monkeypatch.syspath_prepend(str(site))
    add_package(site, "fewstep-outer", "", "", "Requires-Dist: fewstep-demo[eval]\n")
    missing = list(missing_requirements(distribution("fewstep-outer"), ""))
    assert any("no-such-library" in text for text in missing)


def test_devices_and_precisions():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    cpu = torch.device("cpu")
    assert resolve_dtype("auto", cpu) is torch.float32
    assert resolve_dtype("bfloat16", cpu) is torch.bfloat16
    for name in ("cuda:99", "abc", "meta", ""):
        with pytest.raises(typer.BadParameter):
            resolve_device(name)
    with pytest.raises(typer.BadParameter, match="'int8' is not one of auto, float32"):
        resolve_dtype("int8", cpu)
