"""One verb over many files: where results go, and what they must never overwrite."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from fewstep.core.cli.batch import process_files
from fewstep.core.cli.outputs import Naming, UsageError

SUFFIXES = {".txt", ".md"}


NAMING = Naming(writable=SUFFIXES, fallback=".md")


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSTEP_DEBUG", raising=False)


def write(name, text="text"):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def capitals(source, target, tick):
    tick(0.5)
    target.write_text(source.read_text().upper())


def batch(*inputs, output=None, work=capitals, naming=NAMING, **options):
    return process_files(list(inputs), output, work, suffixes=SUFFIXES, naming=naming, **options)


def tree(folder="."):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("inputs", "output", "made"),
    [
        (["a.txt"], "out", ["out/a.txt"]),
        (["a.txt"], "new.md", ["new.md"]),
        (["a.txt"], "deep/er/new.md", ["deep/er/new.md"]),
        (["a.txt"], "new.md/", ["new.md/a.txt"]),
        (["a.txt"], "with.dot", ["with.dot/a.txt"]),
        (["a.txt", "b.md"], "out", ["out/a.txt", "out/b.md"]),
        (["d"], "out", ["out/c.txt", "out/in/c.txt"]),
        (["b.jpg"], "out", ["out/b.md"]),
    ],
)
def test_results_go_where_they_are_expected(inputs, output, made):
    for name in ("a.txt", "b.md", "b.jpg", "d/c.txt", "d/in/c.txt"):
        write(name)
    before = set(tree())
    assert batch(*inputs, output=output, recursive=True).exit_code == 0
    assert sorted(set(tree()) - before) == made
    assert all(Path(path).read_text() == "TEXT" for path in made)


def test_suffix_and_extension():
    write("a.txt")
    naming = Naming("_x4", "MD", SUFFIXES, ".md")
    assert batch("a.txt", naming=naming).exit_code == 0
    assert tree() == ["a.txt", "a_x4.md"], "without an output beside the input"


@pytest.mark.parametrize("values", [{"extension": "exe"}, {"suffix": "../x"}])
def test_bad_naming_is_a_usage_error(values):
    with pytest.raises(UsageError, match=r"--ext must be auto or one of md, txt|--suffix must be a part"):
        Naming(**{"writable": SUFFIXES, **values})


@pytest.mark.parametrize(
    ("inputs", "output", "sentence"),
    [
        ([], "out", "no input was given"),
        (["a.txt", "b.txt"], "one.txt", "-o one.txt is a file, but there are 2 inputs"),
        (["a.txt", "b.txt"], "-", "-o - takes one input, got 2"),
        (["a.txt"], "taken.bin", "taken.bin has none of the extensions that can be written: .md, .txt"),
    ],
)
def test_usage_errors_do_nothing_and_are_exit_code_2(capsys, inputs, output, sentence):
    for name in ("a.txt", "b.txt", "taken.bin"):
        write(name)
    before = tree()
    report = batch(*inputs, output=output, as_json=True)
    assert report.exit_code == 2
    assert report.files == ()
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert sentence in json.loads(captured.out)["error"]
    assert tree() == before


@pytest.mark.parametrize("link", ["same", "dotted", "symlink", "hardlink", "other input", "beside"])
def test_an_input_is_never_overwritten(capsys, link):
    write("a.txt", "one")
    write("b.txt", "two")
    Path("sub").mkdir()
    output = {"same": "a.txt", "dotted": "sub/../a.txt", "other input": "out", "beside": None}.get(
        link, "out.txt"
    )
    inputs = ["a.txt"]
    if link == "symlink":
        Path("out.txt").symlink_to("a.txt")
    elif link == "hardlink":
        os.link("a.txt", "out.txt")
    elif link == "other input":
        write("out/a.txt", "three")
        inputs = ["a.txt", "out/a.txt"]
    before = {path: Path(path).read_text() for path in tree()}
    report = batch(*inputs, output=output)
    assert report.exit_code == 1
    assert "would overwrite the input" in capsys.readouterr().err
    assert {path: Path(path).read_text() for path in tree()} == before


def test_two_inputs_with_one_result_do_not_overwrite_each_other(capsys):
    write("x/a.txt", "one")
    write("y/a.txt", "two")
    assert batch("x/a.txt", "y/a.txt", output="out").exit_code == 1
    assert "y/a.txt: the result out/a.txt would overwrite that of x/a.txt" in capsys.readouterr().err
    assert Path("out/a.txt").read_text() == "ONE"


@pytest.mark.parametrize("output", ["a.txt/out", "a.txt/deep/er"])
def test_unwritable_output_is_one_sentence(capsys, output):
    """Below a file no folder can be made, whoever asks (permissions do not stop root)."""
    write("a.txt")
    report = batch("a.txt", output=output)
    assert report.exit_code == 1
    error = capsys.readouterr().err
    assert "results cannot be written there" in error
    assert output in error
    assert len(error.splitlines()) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission_is_one_sentence(capsys):
    write("a.txt")
    Path("locked").mkdir(mode=0o500)
    assert batch("a.txt", output="locked").exit_code == 1
    assert "locked: results cannot be written there: Permission denied" in capsys.readouterr().err


def test_failure_leaves_the_old_result_and_no_temporary_file():
    write("a.txt", "new")
    write("out/a.txt", "old")

    def broken(source, target, tick):
        target.write_text("half")
        raise RuntimeError("power cut")

    assert batch("a.txt", output="out", work=broken).exit_code == 1
    assert Path("out/a.txt").read_text() == "old"
    assert sorted(os.listdir("out")) == ["a.txt"]
    assert batch("a.txt", output="out").exit_code == 0
    assert Path("out/a.txt").read_text() == "NEW"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (ValueError("not an image"), "a.txt: not an image"),
        (ValueError("a.txt is not an image"), "a.txt is not an image"),
        (RuntimeError("first\n  second"), "a.txt: first second"),
        (MemoryError(), "a.txt: MemoryError"),
        (OSError(28, "No space left on device"), "a.txt: no space left on device"),
        (ZeroDivisionError("division by zero"), "a.txt: ZeroDivisionError: division by zero"),
    ],
)
def test_errors_become_one_sentence_that_names_the_file(capsys, error, sentence):
    write("a.txt")
    write("b.txt")

    def failing(source, target, tick):
        if source.name == "a.txt":
            raise error
        capitals(source, target, tick)

    report = batch("a.txt", "b.txt", output="out", work=failing)
    assert report.exit_code == 1
    assert capsys.readouterr().err.splitlines() == ["fewstep work: 1 of 2 failed:", f"  {sentence}"]
    assert tree("out") == ["b.txt"]


def test_work_that_writes_nothing_failed():
    write("a.txt")
    report = batch("a.txt", output="out", work=lambda source, target, tick: None)
    assert report.exit_code == 1
    assert report.files[0].error == "a.txt: no result was made"


def test_debugging_shows_the_traceback(capsys, monkeypatch):
    write("a.txt")
    monkeypatch.setenv("FEWSTEP_DEBUG", "1")
    batch("a.txt", output="out", work=lambda source, target, tick: 1 / 0)
    assert "Traceback" in capsys.readouterr().err


def test_quiet_when_all_is_well_and_not_on_a_terminal(capfd):
    write("a.txt")
    batch("a.txt", output="out")
    assert capfd.readouterr() == ("", "")


def test_standard_output_takes_a_result_or_a_report(capsys):
    write("a.txt")
    assert batch("a.txt", output="-", as_json=True).exit_code == 2
    assert "exclude each other" in capsys.readouterr().err


def test_interruption_is_not_swallowed():
    write("a.txt")

    def interrupted(source, target, tick):
        target.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batch("a.txt", output="out", work=interrupted)
    assert tree("out") == []


def test_skip_existing_leaves_results_alone():
    write("a.txt")
    write("b.txt")
    write("out/a.txt", "old")
    report = batch("a.txt", "b.txt", output="out", skip_existing=True)
    assert [file.status for file in report.files] == ["skipped", "done"]
    assert report.exit_code == 0
    assert Path("out/a.txt").read_text() == "old"


def test_report_as_json_has_details_and_times(capsys):
    write("a.txt")

    def telling(source, target, tick):
        capitals(source, target, tick)
        return {"size": (3, 4), "path": source}

    batch("a.txt", output="out", work=telling, as_json=True)
    report = json.loads(capsys.readouterr().out)
    assert report["error"] is None
    (file,) = report["files"]
    assert file["details"] == {"size": [3, 4], "path": "a.txt"}
    assert file["seconds"] >= 0
    assert (file["input"], file["output"], file["status"]) == ("a.txt", "out/a.txt", "done")


def test_standard_streams_carry_bytes(monkeypatch):
    content = bytes(range(256))
    out = io.BytesIO()
    stdin = SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=out))

    def reverse(source, target, tick):
        assert target.suffix == ".md", "the temporary result has the extension that the writer needs"
        target.write_bytes(source.read_bytes()[::-1])

    assert batch("-", output="-", work=reverse).exit_code == 0
    assert out.getvalue() == content[::-1]


def test_result_has_the_usual_permissions():
    write("a.txt")
    batch("a.txt", output="out")
    expected = write("plain.txt").stat().st_mode
    assert Path("out/a.txt").stat().st_mode == expected


def test_a_terminal_as_standard_input_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert batch("-", output="out.txt").exit_code == 1
    assert "standard input is a terminal" in capsys.readouterr().err


def test_a_folder_without_known_files_fails():
    Path("empty").mkdir()
    assert batch("empty", output="out").exit_code == 1
