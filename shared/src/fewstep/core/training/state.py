"""The state of a run on disk: counters, random generators, atomic checkpoints."""

import pickle
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewstep.core.files import atomic_path
from fewstep.core.training.ema import Rule, name_of

STEP_FILE = re.compile(r"step-(\d{8})\.pt")


@dataclass
class Position:
    """Where a run stands.

    Args:
        step: updates of all phases, skipped ones included.
        batches: batches that each process has used.
        minutes: time spent training, over all parts of the run.
        skipped: steps skipped because of a NaN or an infinity.
        bad_streak: how many of them are the latest ones.
        best: best value of the monitored metric so far.
        stale: validations since it was reached.
        metrics: of the latest validation.
    """

    step: int = 0
    batches: int = 0
    minutes: float = 0.0
    skipped: int = 0
    bad_streak: int = 0
    best: float | None = None
    stale: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


def derive_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers, such that neighbouring numbers give unrelated streams."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def seed_everything(*numbers: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices)."""
    seed = derive_seed(*numbers)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - user code may draw from the global generator
    torch.manual_seed(seed)


def rng_state() -> dict[str, Any]:
    """States of the global generators of this process, of types that a safe `torch.load` reads."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys, np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the global generators back to a state taken by `rng_state`."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Run a block whose random draws leave the global generators as they were."""
    state = rng_state()
    try:
        yield
    finally:
        set_rng_state(state)


def save_payload(payload: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(payload, temporary)


def step_files(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    files = (folder / "checkpoints").glob("step-*.pt")
    return sorted(path for path in files if STEP_FILE.fullmatch(path.name))


def step_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return folder / "checkpoints" / f"step-{step:08d}.pt"


def best_path(folder: Path) -> Path:
    """Where the weights with the best validation metric live."""
    return folder / "checkpoints" / "best.pt"


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest checkpoints, and what an interrupted write has left."""
    for path in step_files(folder)[:-keep]:
        path.unlink(missing_ok=True)
    for path in (folder / "checkpoints").glob(".*.part.pt"):
        path.unlink(missing_ok=True)


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """Read the newest checkpoint that can be read.

    Returns:
        The payload (None when the run has none yet) and one sentence per checkpoint that was damaged.

    Raises:
        ValueError: there are checkpoints, but none can be read.
    """
    files = step_files(folder)
    problems: list[str] = []
    for path in reversed(files):
        try:
            return torch.load(path, map_location="cpu", weights_only=True), problems
        except (RuntimeError, EOFError, OSError, KeyError, pickle.UnpicklingError) as error:
            problems.append(f"{path.name} cannot be read ({type(error).__name__})")
    if files:
        raise ValueError(f"no checkpoint in {files[0].parent} can be read: {'; '.join(problems)}")
    return None, problems


def load_weights(folder: str | Path, which: str = "last", decay: Rule | None = None) -> dict[str, Tensor]:
    """Weights of a run, for exporting a model.

    Args:
        folder: of the run.
        which: "last" or "best".
        decay: rule of the average to take (None: the first one; without any, the trained weights).

    Returns:
        The state dictionary of the model, on the CPU.

    Raises:
        ValueError: there is no such checkpoint or no such average.
    """
    folder = Path(folder)
    if which not in ("last", "best"):
        raise ValueError(f"which must be 'last' or 'best', got {which!r}")
    path = best_path(folder) if which == "best" else next(reversed(step_files(folder)), None)
    if path is None or not path.is_file():
        raise ValueError(f"{folder} holds no {which} checkpoint")
    payload = torch.load(path, map_location="cpu", weights_only=True)
    averages: dict[str, dict[str, Tensor]] = payload["ema"]["weights"]
    if decay is None:
        return next(iter(averages.values()), payload["model"])
    if name_of(decay) not in averages:
        raise ValueError(f"decay must be one of {', '.join(averages) or '(none saved)'}, got {decay!r}")
    return averages[name_of(decay)]
