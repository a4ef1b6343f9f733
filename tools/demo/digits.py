"""The demo's digits: a diffusion model by many calls, and its students by one, from the same noise."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tools.train_digits import digits
from torch import Tensor

from fewstep.core.metrics import energy_distance, sliced_wasserstein
from fewstep.core.models import DiffusionModel
from fewstep.core.pictures import grid_of, png_bytes
from fewstep.core.sampling import Sampling

from .page import Column, Picture, Row, card, paragraph, strip, table

TITLE = "Digits, drawn in one network call"
TEACHER, SHOWN, COUNT = "digits", 100, 300
COLUMNS = (
    Column("network calls", 0),
    Column("sliced Wasserstein", 4, larger_is_better=False),
    Column("energy distance", 4, larger_is_better=False),
    Column(f"seconds for {COUNT}", 2, larger_is_better=False),
)


@dataclass(frozen=True)
class Run:
    """A model and how it is sampled."""

    name: str
    model: DiffusionModel
    sampling: Sampling
    calls: int
    file: str
    ours: bool = False


def section(folder: Path, say: Callable[[str], None], model: str) -> str:
    """Draw digits with the teacher and the student, measure both, and tell the story in HTML.

    Args:
        folder: the page's folder; files go to its subfolder "digits".
        say: prints a line of progress.
        model: the student's checkpoint.
    """
    (folder / "digits").mkdir(parents=True, exist_ok=True)
    teacher, student = DiffusionModel.from_pretrained(TEACHER), DiffusionModel.from_pretrained(model)
    runs = (
        Run("teacher, 18 Heun steps", teacher, Sampling("ode", 18), 35, "teacher-35.png"),
        Run("teacher, 1 Euler step", teacher, Sampling("ode", 1, solver="euler"), 1, "teacher-1.png"),
        Run("student, 1 call", student, student.sampling, 1, "student-1.png", ours=True),
    )
    real = digits()[0]
    rows, pictures = [], []
    for run in runs:
        made, seconds = _draw(run)
        (folder / "digits" / run.file).write_bytes(png_bytes(grid_of(made[:SHOWN], columns=10), enlarge=4))
        pictures.append(Picture(f"digits/{run.file}", f"{run.name}: {run.calls} network calls a sample"))
        reference = real[torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:COUNT]]
        distances = float(sliced_wasserstein(made, reference)), float(energy_distance(made, reference))
        rows.append(Row(run.name, (run.calls, *distances, seconds), run.ours))
        say(f"digits: {run.name}, {seconds:.1f} s")
    return paragraph(
        "The checkpoint “digits” is a small transformer trained on scikit-learn's handwritten digits. Its "
        "student has the same size and was made of it by `fewstep distill`; both start from the same noise, "
        f"and row k of a picture is asked for the digit k. Distances are to {COUNT} real pictures."
    ) + card(
        "The same noise, 35 calls and one",
        "One Euler step of the teacher gives the mean of all digits of a kind; the student gives one digit.",
        strip(pictures),
        table(COLUMNS, rows),
    )


@torch.inference_mode()
def _draw(run: Run) -> tuple[Tensor, float]:
    """COUNT samples, ten of every label in turn, and the seconds they took."""
    labels = (torch.arange(COUNT) // 10) % 10
    run.model.generate(2, sampling=run.sampling, label=0)  # the first call of a process warms caches
    began = time.perf_counter()
    made = run.model.generate(COUNT, sampling=run.sampling, label=labels)
    return made.clamp(-1, 1), time.perf_counter() - began
