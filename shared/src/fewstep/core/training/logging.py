"""What a run tells while it goes: a JSON line per report, TensorBoard, a progress line, preview pictures."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fewstep.core.files import atomic_path


class RunLog:
    """Log of one run: `log.jsonl`, `tensorboard/`, `previews/` and a progress line on stderr.

    On a terminal the progress is a bar that is redrawn; elsewhere every report is a line of text.

    Args:
        folder: of the run.
        step: at which the run starts or resumes; reports of later steps, which run again, are dropped.
        tensorboard: also write TensorBoard event files.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.folder = folder
        self.path = folder / "log.jsonl"
        _drop_after(self.path, step)
        self._writer = _summary_writer(folder / "tensorboard", step) if tensorboard else None
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        if self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(*columns, console=self._console, transient=True)
            self._task = self._progress.add_task(f"step {step}", total=1.0)
            self._progress.start()

    def advance(self, step: int, progress: float) -> None:
        """Move the progress bar, if there is one."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=progress, description=f"step {step}")

    def report(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """Append one line to the log: kind is "train" or "validate"."""
        line = {"step": step, "kind": kind, **values}
        with self.path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{kind}/{name}", value, step)
        self.say(f"step {step} {kind}: " + ", ".join(f"{name} {value:.5g}" for name, value in values.items()))

    def say(self, text: str) -> None:
        """Print a line beside the progress bar."""
        if self._progress is not None:
            self._progress.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def preview(self, step: int, images: np.ndarray | Mapping[str, np.ndarray]) -> None:
        """Keep pictures of a step as PNG files and in TensorBoard.

        Args:
            step: of the run.
            images: uint8 (height, width) or (height, width, 3), or several of them by name.

        Raises:
            ValueError: an array is no such picture.
        """
        named = images if isinstance(images, Mapping) else {"preview": images}
        for name, image in named.items():
            image = _check_picture(name, np.asarray(image))
            _write_png(self.folder / "previews" / f"{name}-{step:08d}.png", image)
            if self._writer is not None:
                self._writer.add_image(name, np.atleast_3d(image), step, dataformats="HWC")

    def close(self) -> None:
        """Finish the progress bar and flush what is buffered."""
        if self._progress is not None:
            self._progress.stop()
        if self._writer is not None:
            self._writer.close()


def read_log(folder: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """Lines of a run's `log.jsonl`, all or those of one kind ("train", "validate")."""
    path = Path(folder) / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if kind is None or line["kind"] == kind]


def _drop_after(path: Path, step: int) -> None:
    """Forget reports of steps that will run again, and a last line that was cut off."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    with atomic_path(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _summary_writer(folder: Path, step: int) -> Any:
    from fewstep.core.training.extra import train_extra

    with train_extra():
        from torch.utils.tensorboard.writer import SummaryWriter
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _check_picture(name: str, image: np.ndarray) -> np.ndarray:
    grey_or_rgb = image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)
    if image.dtype != np.uint8 or not grey_or_rgb or image.size == 0:
        raise ValueError(
            f"preview must give uint8 pictures of shape (height, width) or (height, width, 3); "
            f"{name!r} is {image.dtype} of shape {image.shape}"
        )
    return image


def _write_png(path: Path, image: np.ndarray) -> None:
    from fewstep.core.training.extra import train_extra

    with train_extra():
        from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
