"""The command starts at once: help, lists and refusals without what only the work needs."""

import subprocess
import sys

import pytest

SLOW = ("torch", "numpy", "scipy", "skimage", "PIL", "huggingface_hub", "safetensors")
PROGRAM = """
import sys
from typer.testing import CliRunner
from fewstep.restoration.cli import app
done = CliRunner().invoke(app, sys.argv[1:])
print(done.exit_code, *(name for name in {slow} if name in sys.modules))
"""


def started(*arguments: str) -> str:
    program = PROGRAM.format(slow=SLOW)
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in ("train", "metrics", "simulate", "convert"))],
    ids=" ".join,
)
def test_help_imports_nothing_slow(arguments):
    assert started(*arguments) == "0"


def test_the_package_gives_its_classes_when_they_are_asked_for():
    import fewstep.restoration
    from fewstep.restoration import Restored, Restorer, pipeline

    assert (Restorer, Restored) == (pipeline.Restorer, pipeline.Restored)
    with pytest.raises(AttributeError, match="has no attribute 'Restorr'"):
        fewstep.restoration.Restorr  # noqa: B018
