"""What the page's buttons do: check uploads, restore them, hand out previews and the full-quality files."""

import html
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from fewstep.restoration import Restored, Restorer
from fewstep.restoration.given import as_mask
from fewstep.restoration.images import ImageError, Picture, read
from fewstep.restoration.result_names import SUFFIXES

from .models import Abilities, Models
from .shown import Shown, facts, reduced, shown_of, size

MAX_MEGAPIXELS = 50.0
MAX_PHOTOS = 50
# Further photographs of a batch are in the ZIP; a browser need not hold them all.
SHOWN = 12
SAME = "as uploaded"
FORMATS = {SAME: "", "PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif"}
SIGMAS = ("not known", "estimated", "given")
PAINT = (255, 45, 140)
UNPAINTED = "Nothing is painted yet: paint over what is to be filled, or upload a mask."


@dataclass(frozen=True)
class Choices:
    """What is set on the page, in the order of its fields.

    Args:
        task: what to do.
        mode: "faithful" or "detailed".
        steps: network calls of a sample.
        samples: how many to draw.
        average: give their mean.
        uncertainty: show where they differ.
        seed: of the noise.
        sigma_known: one of `SIGMAS`.
        sigma: standard deviation of the noise, where it is given.
        kind: a key of `FORMATS`.
        keep_metadata: of the photograph.
    """

    task: str
    mode: str
    steps: int
    samples: int
    average: bool
    uncertainty: bool
    seed: int
    sigma_known: str
    sigma: float
    kind: str
    keep_metadata: bool

    def options(self, restorer: Restorer) -> dict[str, Any]:
        """Arguments of a call of the restorer."""
        able, detailed = Abilities.of(restorer), self.mode == "detailed"
        samples = int(self.samples) if detailed and able.draws else 1
        level = {"estimated": "auto", "given": self.sigma}.get(self.sigma_known)
        return {
            "mode": self.mode,
            "steps": int(self.steps) if detailed and able.fewer else None,
            "samples": samples,
            "average": self.average and samples > 1,
            "uncertainty": self.uncertainty and samples > 1,
            "seed": int(self.seed),
            "level": level if able.level else None,
        }


@dataclass(frozen=True)
class App:
    """The actions of the page.

    Args:
        models: of the tasks.
        results: a folder of this process, where the file to be downloaded is put.
    """

    models: Models
    results: Path

    def able(self, task: str) -> Abilities:
        """What can be set for the model of a task."""
        return Abilities.of(self.models[task])

    def check(self, uploads: Sequence[str] | None, task: str) -> str:
        """Say what was uploaded, or in one sentence what is wrong with it."""
        if not uploads:
            return ""
        if len(uploads) > MAX_PHOTOS:
            raise gr.Error(f"At most {MAX_PHOTOS} photographs at a time.", print_exception=False)
        if len(uploads) > 1 and self.able(task).mask:
            raise gr.Error("A mask is painted for one photograph: choose only one.", print_exception=False)
        pictures = [(_read(upload), Path(upload).name) for upload in uploads]
        if len(pictures) > 1:
            return f"{len(pictures)} photographs."
        picture = pictures[0][0]
        notes = "".join(f" It {note}." for note in picture.notes)
        return html.escape(f"{size(picture)} pixels.{notes}")

    def canvas(self, uploads: Sequence[str]) -> dict[str, Any]:
        """What the mask is painted on: the photograph as large as a browser paints quickly."""
        return _canvas(_read(uploads[0]))

    def masked(self, uploads: Sequence[str] | None, file: str) -> tuple[dict[str, Any], np.ndarray, str]:
        """The canvas on which is seen what a mask file marks; the mask, to which painting adds; its share."""
        if not uploads:
            raise gr.Error("Choose a photograph first.", print_exception=False)
        picture = _read(uploads[0])
        with _one_sentence():
            marked = as_mask(_read(file), picture)
        return _canvas(picture, marked), marked, _share(marked)

    def painted(self, value: dict[str, Any] | None, given: np.ndarray | None = None) -> str:
        """Say how much of the photograph is painted or marked by a file, of what has arrived here."""
        if not value or value["background"] is None:
            return ""
        size = value["background"].size if given is None else given.shape[::-1]
        try:
            marked = painted_mask(value, size, given)
        except ValueError:
            return UNPAINTED
        return _share(marked)

    def restore(
        self,
        uploads: Sequence[str] | None,
        painted: dict[str, Any] | None,
        given: np.ndarray | None,
        *chosen: Any,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio finds its bar by this default
    ) -> tuple[list[Shown], str, Path]:
        """Restore the photographs.

        Returns:
            What is shown of each sample of each photograph; a line of facts; the file.
        """
        choices = Choices(*chosen)
        if not uploads:
            raise gr.Error("Choose a photograph first.", print_exception=False)
        restorer = self.models[choices.task]
        with _one_sentence():
            # One run at a time: what the last one left has been handed out.
            shutil.rmtree(self.results, ignore_errors=True)
            self.results.mkdir(parents=True)
            shown, files, lines = [], [], []
            for number, upload in enumerate(uploads):
                picture = _read(upload)
                told = _progress(progress, number, len(uploads))
                mask = None
                if Abilities.of(restorer).mask:
                    mask = painted_mask(painted, (picture.width, picture.height), given)
                result = restorer(picture, mask=mask, on_progress=told, **choices.options(restorer))
                files += self._write(result, Path(upload), choices, restorer)
                name = Path(upload).name if len(uploads) > 1 else ""
                if number < SHOWN:
                    shown += shown_of(name, picture, result)
                    lines.append(
                        f"{html.escape(name)}: {facts(picture, result)}" if name else facts(picture, result)
                    )
            file = files[0] if len(files) == 1 else self._packed(files, uploads, choices, restorer)
        lines.append(f"{html.escape(file.name)}, {file.stat().st_size / 1e6:.1f} MB")
        return shown, "<br>".join(lines) if len(uploads) > 1 else "; ".join(lines), file

    def _write(self, result: Restored, upload: Path, choices: Choices, restorer: Restorer) -> list[Path]:
        name = f"{upload.stem}{_suffix(choices.task, restorer)}"
        suffix = FORMATS[choices.kind] or upload.suffix.lower()
        target = self.results / f"{name}{suffix}"
        number = 2
        while target.exists() or target.with_stem(f"{target.stem}-1").exists():
            # Two folders of a camera may both hold a photograph of this name.
            target = self.results / f"{name} ({number}){suffix}"
            number += 1
        return result.save(target, strip_metadata=not choices.keep_metadata)

    def _packed(
        self, files: Sequence[Path], uploads: Sequence[str], choices: Choices, restorer: Restorer
    ) -> Path:
        """Several pictures as a ZIP."""
        name = Path(uploads[0]).stem if len(uploads) == 1 else "photographs"
        archive = self.results / f"{name}{_suffix(choices.task, restorer)}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as pack:
            for file in files:
                pack.write(file, file.name)
        return archive


def painted_mask(
    painted: dict[str, Any] | None, size: tuple[int, int], given: np.ndarray | None = None
) -> np.ndarray:
    """Where somebody painted, in pixels of the photograph.

    Args:
        painted: value of the editor: layers with an alpha channel.
        size: (width, height) of the photograph.
        given: what a file marks besides, (height, width) bool.

    Returns:
        (height, width) bool.

    Raises:
        ValueError: nothing is painted.
    """
    marked = np.zeros((size[1], size[0]), bool) if given is None else given.copy()
    for layer in (painted or {}).get("layers") or ():
        alpha = Image.fromarray(np.asarray(layer)).convert("RGBA").getchannel("A")
        marked |= np.asarray(alpha.resize(size, Image.Resampling.BILINEAR)) >= 64
    if not marked.any():
        raise ValueError("Paint over what is to be filled.")
    return marked


def _canvas(picture: Picture, marked: np.ndarray | None = None) -> dict[str, Any]:
    """Value of the editor; what is marked is coloured in the picture, as layers it is given are not seen."""
    pixels = np.array(picture.to_pil().convert("RGB"))
    if marked is not None:
        pixels[marked] = PAINT
    return {"background": reduced(Image.fromarray(pixels)), "layers": [], "composite": None}


def _share(marked: np.ndarray) -> str:
    return f"**{100 * marked.mean():.2g} %** of the photograph is to be filled."


def _suffix(task: str, restorer: Restorer) -> str:
    return SUFFIXES.get(task, f"_x{restorer.scale}")


def _progress(progress: gr.Progress, number: int, count: int) -> Callable[[int, int], object]:
    title = "Restoring" if count == 1 else f"Restoring {number + 1} of {count}"
    progress(0.0, desc=title)
    return lambda done, total: progress((done, total), desc=title, unit="calls")


def _read(upload: str) -> Picture:
    with _one_sentence():
        return read(upload, max_megapixels=MAX_MEGAPIXELS, name=Path(upload).name)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn what a user can do something about into a message on the page."""
    try:
        yield
    except (ImageError, ValueError, OSError, MemoryError) as error:
        # The message is shown as HTML and holds a file name that somebody else chose.
        message = html.escape(str(error)) or "There is not enough memory."
        raise gr.Error(message, print_exception=False) from error
