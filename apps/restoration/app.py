"""What the page's buttons do: check an upload, restore it, hand out previews and the full-quality file."""

import html
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
from PIL import Image

from fewstep.restoration import Restored, Restorer
from fewstep.restoration.images import ImageError, Picture, read

MAX_MEGAPIXELS = 50.0
PREVIEW = 1600
SAME = "as uploaded"
FORMATS = {SAME: "", "PNG": ".png", "JPEG": ".jpg", "WebP": ".webp", "TIFF": ".tif"}

Pair = tuple[Image.Image, Image.Image]


@dataclass(frozen=True)
class App:
    """The actions of the page.

    Args:
        restorer: the loaded model.
        results: a folder of this process, where the file to be downloaded is put.
    """

    restorer: Restorer
    results: Path

    def check(self, upload: str | None) -> str:
        """Say what was uploaded, or in one sentence what is wrong with it."""
        if upload is None:
            return ""
        picture = _read(upload)
        notes = "".join(f" It {note}." for note in picture.notes)
        return html.escape(f"{_size(picture)} pixels.{notes}")

    def restore(
        self,
        upload: str | None,
        mode: str,
        steps: int,
        samples: int,
        average: bool,
        seed: int,
        kind: str,
        keep_metadata: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio finds its bar by this default
    ) -> tuple[list[Pair], str, Path]:
        """Restore the photograph.

        Returns:
            (before, after) of each sample, as large as a browser shows quickly; a line of facts; the file.
        """
        if upload is None:
            raise gr.Error("Choose a photograph first.", print_exception=False)
        picture = _read(upload)
        progress(0.0, desc="Restoring")
        with _one_sentence():
            result = self.restorer(
                picture,
                mode=mode,
                steps=int(steps) if mode == "detailed" else None,
                samples=int(samples) if mode == "detailed" else 1,
                average=average,
                seed=int(seed),
                on_progress=lambda done, total: progress((done, total), desc="Restoring", unit="calls"),
            )
            progress(1.0, desc="Writing the file")
            file = self._write(result, Path(upload), kind, keep_metadata)
        return _pairs(picture, result), _facts(picture, result, file), file

    def _write(self, result: Restored, upload: Path, kind: str, keep_metadata: bool) -> Path:
        """One picture as a file, several as a ZIP of files."""
        # One run at a time: what the last one left has been handed out.
        shutil.rmtree(self.results, ignore_errors=True)
        self.results.mkdir(parents=True)
        suffix = FORMATS[kind] or upload.suffix.lower()
        name = f"{upload.stem}_x{self.restorer.scale}"
        files = result.save(self.results / f"{name}{suffix}", strip_metadata=not keep_metadata)
        if len(files) == 1:
            return files[0]
        archive = self.results / f"{name}.zip"
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as pack:
            for file in files:
                pack.write(file, file.name)
        return archive


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


def _size(picture: Picture) -> str:
    return f"{picture.width} × {picture.height}"


def _pairs(before: Picture, result: Restored) -> list[Pair]:
    afters = [picture.to_pil() for picture in result.pictures]
    for after in afters:
        after.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    enlarged = before.to_pil().resize(afters[0].size, Image.Resampling.BICUBIC)
    return [(enlarged, after) for after in afters]


def _facts(before: Picture, result: Restored, file: Path) -> str:
    megabytes = file.stat().st_size / 1e6
    return (
        f"{_size(before)} → **{_size(result.picture)}** in {result.seconds:.1f} s, "
        f"{result.calls} network calls; {html.escape(file.name)}, {megabytes:.1f} MB"
    )
