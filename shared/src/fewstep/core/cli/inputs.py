"""From what a user writes on the command line to the list of files that are meant."""

import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

STDIN = "-"
_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Source:
    """A file to work on.

    Args:
        path: of the file; Path("-") is standard input.
        inside: its place below the folder that was named (its name alone when it was named itself).
    """

    path: Path
    inside: Path

    @property
    def is_stdin(self) -> bool:
        """Whether this is standard input."""
        return str(self.path) == STDIN


@dataclass(frozen=True)
class Problem:
    """An input that gave no file, and why."""

    name: str
    message: str


def expand(
    inputs: Sequence[str], suffixes: Collection[str], recursive: bool = False
) -> tuple[list[Source], list[Problem]]:
    """Find the files that the inputs mean, each once, in order.

    Args:
        inputs: files, folders, patterns or "-". A file that is named itself is taken with any suffix.
        suffixes: of the files of the verb, such as {".png", ".jpg"}; they choose in folders and patterns.
        recursive: also look into the folders inside of folders.

    Returns:
        The files, and a problem for every input that means none.
    """
    sources: list[Source] = []
    problems: list[Problem] = []
    seen: set[object] = set()
    for name in inputs:
        try:
            found = list(_expand_one(name, suffixes, recursive))
        except OSError as error:
            problems.append(Problem(name, f"cannot be read: {error.strerror}"))
            continue
        except ValueError as error:
            problems.append(Problem(name, str(error)))
            continue
        for source in found:
            key = STDIN if source.is_stdin else identity(source.path)
            if key not in seen:
                seen.add(key)
                sources.append(source)
    return sources, problems


def identity(path: Path) -> object:
    """What all names of one file (links of both kinds, ./, ..) have in common."""
    try:
        status = path.stat()
    except OSError:
        return os.path.abspath(path)
    return (status.st_dev, status.st_ino)


def _expand_one(name: str, suffixes: Collection[str], recursive: bool) -> Iterator[Source]:
    if name == STDIN:
        yield Source(Path(STDIN), Path("stdin"))
        return
    if not name or "\0" in name:
        raise ValueError("is not a file name")
    path = Path(name).expanduser()
    if path.is_dir():
        yield from _in_folder(path, suffixes, recursive)
    elif path.exists():
        yield Source(path, Path(path.name))
    elif _PATTERN.search(name):
        yield from _matching(str(path), suffixes)
    else:
        raise ValueError("does not exist")


def _in_folder(folder: Path, suffixes: Collection[str], recursive: bool) -> Iterator[Source]:
    files = list(_walk(folder, recursive))
    wanted = sorted((path for path in files if _has_suffix(path, suffixes)), key=natural_order)
    if not wanted:
        more = "" if recursive else " (its folders are taken with --recursive)"
        raise ValueError(f"is a folder without files of a known kind: {_list(suffixes)}{more}")
    for path in wanted:
        yield Source(path, path.relative_to(folder))


def _walk(folder: Path, recursive: bool) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_file():
            yield Path(entry.path)
        elif recursive and entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path), recursive)


def _matching(pattern: str, suffixes: Collection[str]) -> Iterator[Source]:
    files = [Path(match) for match in glob.glob(pattern, recursive=True) if os.path.isfile(match)]
    if not files:
        raise ValueError("matches no file")
    # A pattern that asks for other kinds on purpose is taken at its word; the verb then says what is wrong.
    wanted = [path for path in files if _has_suffix(path, suffixes)] or files
    for path in sorted(wanted, key=natural_order):
        yield Source(path, Path(path.name))


def _has_suffix(path: Path, suffixes: Collection[str]) -> bool:
    return path.suffix.lower() in suffixes


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sorting key by which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _list(suffixes: Iterable[str]) -> str:
    return ", ".join(sorted(suffixes))
