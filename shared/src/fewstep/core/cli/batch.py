"""One verb over many files: a bad file does not stop the others, and nothing is left half-written."""

import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fewstep.command import DEBUG, describe
from fewstep.core.cli.inputs import Problem, Source, expand
from fewstep.core.cli.outputs import (
    STDOUT,
    Naming,
    OutputError,
    UsageError,
    plan_targets,
    prepare_folders,
    refusals,
)
from fewstep.core.cli.progress import Bar
from fewstep.core.files import atomic_path

Tick = Callable[[float], None]
Work = Callable[[Path, Path, Tick], Mapping[str, Any] | None]


@dataclass(frozen=True)
class FileReport:
    """What became of one input.

    Args:
        input: its name.
        status: "done", "skipped" or "failed".
        output: of the result, when there is one.
        seconds: that the work took.
        error: one sentence, when it failed.
        details: what the work tells about the result.
    """

    input: str
    status: str
    output: str | None = None
    seconds: float = 0.0
    error: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchReport:
    """What became of all inputs.

    Args:
        files: one report per input.
        exit_code: 0 when none failed, 1 when one did, 2 when the command line could not be meant.
        error: why nothing was begun, if so.
    """

    files: tuple[FileReport, ...]
    exit_code: int
    error: str | None = None

    def count(self, status: str) -> int:
        """How many inputs are "done", "skipped" or "failed"."""
        return sum(file.status == status for file in self.files)

    def to_json(self) -> str:
        """The report as JSON: counts, then the files."""
        counts = {status: self.count(status) for status in ("done", "skipped", "failed")}
        files = [asdict(file) for file in self.files]
        return json.dumps({**counts, "error": self.error, "files": files}, indent=2, default=str)


@dataclass(frozen=True)
class Job:
    """One input and its result.

    Args:
        source: the input.
        target: of the result; Path("-") is standard output.
        target_suffix: extension of the result, also on standard output.
        refusal: why the result must not be written (None: it may).
    """

    source: Source
    target: Path
    target_suffix: str
    refusal: str | None


def process_files(
    inputs: Sequence[str],
    output: str | None,
    work: Work,
    *,
    suffixes: Collection[str],
    naming: Naming,
    recursive: bool = False,
    skip_existing: bool = False,
    as_json: bool = False,
    verb: str = "work",
) -> BatchReport:
    """Do the work of a verb on every file that the inputs mean.

    Results are written under a temporary name beside their target and renamed. A file whose work raises is
    reported in one sentence (with its traceback when FEWSTEP_DEBUG=1), the others are done, and the bad ones
    are listed at the end on standard error.

    Args:
        inputs: files, folders, patterns, or "-" for standard input.
        output: file, folder, "-" for standard output, or None: beside the input.
        work: work(source, target, tick) reads the file `source` and writes the file `target`, may call
            tick(fraction) as it gets on, and may return facts for the report.
        suffixes: of the files that are taken from folders and patterns.
        naming: of the results.
        recursive: also take the folders inside of folders.
        skip_existing: leave out inputs whose result is there already.
        as_json: print the report as JSON on standard output.
        verb: the name of what is done.

    Returns:
        The report, whose exit code the verb ends with: `raise typer.Exit(report.exit_code)`.
    """
    try:
        jobs, problems = _plan(inputs, output, suffixes, naming, recursive)
        if as_json and any(str(job.target) == STDOUT for job in jobs):
            raise UsageError("--json and a result on standard output exclude each other")
        prepare_folders([job.target for job in jobs if job.refusal is None])
    except (UsageError, OutputError) as error:
        report = BatchReport((), 2 if isinstance(error, UsageError) else 1, str(error))
    else:
        bad = [_failed(problem.name, problem.message) for problem in problems]
        files = (*bad, *_run(jobs, work, skip_existing, verb))
        report = BatchReport(files, int(any(file.status == "failed" for file in files)))
    _tell(report, verb)
    if as_json:
        print(report.to_json())
    return report


def _plan(
    inputs: Sequence[str], output: str | None, suffixes: Collection[str], naming: Naming, recursive: bool
) -> tuple[list[Job], list[Problem]]:
    if not inputs:
        raise UsageError("no input was given")
    sources, problems = expand(inputs, suffixes, recursive)
    targets = plan_targets(sources, output, naming)
    refused = refusals(sources, targets)
    jobs = [
        Job(source, target, target.suffix or naming(source.inside).suffix, refused.get(number))
        for number, (source, target) in enumerate(zip(sources, targets, strict=True))
    ]
    return jobs, problems


def _run(jobs: Sequence[Job], work: Work, skip_existing: bool, verb: str) -> list[FileReport]:
    reports = []
    with Bar(len(jobs), verb) as bar:
        for job in jobs:
            bar.start(job.source.path.name)
            if job.refusal is not None:
                report = _failed(str(job.source.path), job.refusal)
            elif skip_existing and job.target.is_file():
                report = FileReport(str(job.source.path), "skipped", str(job.target))
            else:
                report = _do_one(job, work, bar.tick)
            reports.append(report)
            bar.finish(report.error or f"{report.input} {report.status} → {report.output}")
    return reports


def _do_one(job: Job, work: Work, tick: Tick) -> FileReport:
    name = str(job.source.path)
    started = time.perf_counter()
    try:
        with _readable(job.source) as readable, _writable(job) as writable:
            details = work(readable, writable, tick)
            if not writable.is_file():
                raise RuntimeError("no result was made")
    except Exception as error:
        if os.environ.get(DEBUG) == "1":
            traceback.print_exc()
        return _failed(name, describe(error))
    seconds = round(time.perf_counter() - started, 4)
    return FileReport(name, "done", str(job.target), seconds, None, dict(details or {}))


def _failed(name: str, message: str) -> FileReport:
    sentence = message if message.startswith(name) else f"{name}: {message}"
    return FileReport(name, "failed", error=sentence)


@contextmanager
def _readable(source: Source) -> Iterator[Path]:
    """A file to read: what comes from standard input is kept in one meanwhile."""
    if not source.is_stdin:
        yield source.path
        return
    if sys.stdin.isatty():
        raise ValueError("standard input is a terminal, not a file")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "stdin"
        with path.open("wb") as handle:
            shutil.copyfileobj(sys.stdin.buffer, handle)
        yield path


@contextmanager
def _writable(job: Job) -> Iterator[Path]:
    """A file to write, which becomes the result, or goes to standard output, when all went well."""
    if str(job.target) != STDOUT:
        with atomic_path(job.target) as path:
            yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"stdout{job.target_suffix}"
        yield path
        with path.open("rb") as handle:
            shutil.copyfileobj(handle, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _tell(report: BatchReport, verb: str) -> None:
    """List what went wrong on standard error."""
    lines = [f"fewstep {verb}: {report.error}"] if report.error else []
    failed = [file for file in report.files if file.status == "failed"]
    if failed:
        lines.append(f"fewstep {verb}: {len(failed)} of {len(report.files)} failed:")
        lines += [f"  {file.error}" for file in failed]
    for line in lines:
        print(line, file=sys.stderr)
