"""Write the demo page: every installed domain on real input, with pictures, tables and timings."""

import argparse
import importlib
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from .page import document

# One module per domain, each with TITLE and section(folder, say, model) -> HTML, and its shipped checkpoint.
DOMAINS = {"restoration": "resshift-x4", "policy": "pusht-onestep", "digits": "digits-onestep"}
LEAD = (
    "Every picture and number on this page was made on this machine by the command that wrote it, "
    "from files that come with installed packages and with the checkpoints that ship with fewstep."
)


def main() -> None:
    """Run the sections and write index.html."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder of the page")
    parser.add_argument("--only", choices=DOMAINS, help="run one domain")
    parser.add_argument("--model", help="another checkpoint for the domain named with --only")
    args = parser.parse_args()
    if args.model and not args.only:
        parser.error("--model needs --only")
    args.output.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    def say(line: str) -> None:
        print(f"[{time.perf_counter() - began:5.1f} s] {line}", flush=True)

    sections = {}
    for name in [args.only] if args.only else DOMAINS:
        say(f"{name}: starting")
        domain = importlib.import_module(f"{__package__}.{name}")
        sections[domain.TITLE] = domain.section(args.output, say, args.model or DOMAINS[name])
    page = args.output / "index.html"
    page.write_text(
        document("fewstep: what it does, on this machine", LEAD, sections, _facts()), encoding="utf-8"
    )
    say(f"done: open {page.resolve().as_uri()}")


def _facts() -> dict[str, str]:
    names = (
        "fewstep-core",
        "fewstep-restoration",
        "fewstep-policy",
        "torch",
        "numpy",
        "pillow",
        "scikit-image",
    )
    facts = {name: _version(name) for name in names}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {
        **facts,
        "Python": platform.python_version(),
        "device": f"{device}, {torch.get_num_threads()} threads, {os.cpu_count()} cores",
        "made": time.strftime("%Y-%m-%d %H:%M"),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


if __name__ == "__main__":
    main()
