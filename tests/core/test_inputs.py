"""Which files the words on a command line mean."""

import os
from pathlib import Path

import pytest

from fewstep.core.cli.inputs import expand

SUFFIXES = {".txt", ".md"}


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FEWSTEP_DEBUG", raising=False)


def write(name, text="text"):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(*inputs, recursive=False):
    sources, problems = expand(inputs, SUFFIXES, recursive)
    return [str(source.path) for source in sources], [
        f"{problem.name}: {problem.message}" for problem in problems
    ]


def test_folders_take_known_kinds_in_natural_order():
    for name in ("d/f10.txt", "d/f9.TXT", "d/a.jpg", "d/.hidden.txt", "d/in/deep.md"):
        write(name)
    assert names("d") == (["d/f9.TXT", "d/f10.txt"], [])
    assert names("d", recursive=True)[0] == ["d/f9.TXT", "d/f10.txt", "d/in/deep.md"]


def test_patterns_with_and_without_folders():
    for name in ("d/a1.txt", "d/a2.jpg", "d/e/a3.md", "odd[1].txt"):
        write(name)
    assert names("d/a*")[0] == ["d/a1.txt"], "known kinds only"
    assert names("d/*.jpg")[0] == ["d/a2.jpg"], "unless other kinds are asked for"
    assert names("d/**/*.md")[0] == ["d/e/a3.md"]
    assert names("odd[1].txt")[0] == ["odd[1].txt"], "a file whose name looks like a pattern"


def test_an_input_is_taken_once_whatever_its_names():
    write("a.txt")
    Path("link.txt").symlink_to("a.txt")
    os.link("a.txt", "hard.txt")
    assert names("a.txt", "./a.txt", "link.txt", "hard.txt", ".")[0] == ["a.txt"]


def test_inputs_that_mean_nothing_are_named():
    Path("empty").mkdir()
    write("other/a.jpg")
    Path("broken.txt").symlink_to("gone")
    _, problems = names("gone.txt", "empty", "other", "*.png", "broken.txt", "", "a\0b")
    no_files = "is a folder without files of a known kind: .md, .txt (its folders are taken with --recursive)"
    assert problems == [
        "gone.txt: does not exist",
        f"empty: {no_files}",
        f"other: {no_files}",
        "*.png: matches no file",
        "broken.txt: does not exist",
        ": is not a file name",
        "a\0b: is not a file name",
    ]


def test_link_loops_end():
    write("d/a.txt")
    Path("d/loop").symlink_to(Path("d").resolve())
    assert names("d", recursive=True)[0] == ["d/a.txt"]
