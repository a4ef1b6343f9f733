"""Runs `fewstep` commands as a user would, several in one process since its start is most of the time."""

import json
import os
import subprocess
import sys
from typing import NamedTuple

SEVERAL = """
import contextlib, io, json, sys
from fewstep.command import main

results = []
for arguments in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code
    results.append([code, out.getvalue(), " ".join(err.getvalue().replace("│", " ").split())])
json.dump(results, sys.stdout)
"""


class Ended(NamedTuple):
    """How a command ended: exit code, standard output, standard error on one line."""

    code: int
    out: str
    err: str


def environment():
    """Of a command: wide enough that sentences are not broken, and one thread."""
    return {**os.environ, "COLUMNS": "250", "OMP_NUM_THREADS": "1"}


def fewstep(folder, *commands) -> list[Ended]:
    """Run commands, each a sequence of arguments, in a folder."""
    result = subprocess.run(
        [sys.executable, "-c", SEVERAL],
        cwd=folder,
        env=environment(),
        input=json.dumps([list(map(str, command)) for command in commands]),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return [Ended(*ended) for ended in json.loads(result.stdout)]
