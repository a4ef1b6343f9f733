"""The photographs of one command line: which files they are, and the work on each."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewstep.core.cli.batch import BatchReport, Tick, process_files
from fewstep.core.cli.inputs import STDIN, expand
from fewstep.core.cli.outputs import STDOUT, Naming, UsageError, plan_targets, refusals

from .images import (
    EXTENSIONS,
    MAX_MEGAPIXELS,
    READABLE_EXTENSIONS,
    ImageError,
    Picture,
    check_fits,
    encode,
    extension_format,
    read,
    write,
)
from .mask_files import MaskFiles
from .pipeline import Restored, Restorer
from .quality import uncertainty_picture
from .report import Gallery, describe
from .result_names import SUFFIXES, map_file, sibling
from .settings import Settings


@dataclass(frozen=True)
class Request:
    """Which files a command line asks for.

    Args:
        inputs: files, folders, patterns or "-".
        output: file, folder, "-", or None: beside the input.
        suffix: added to the name of a result; None: by the task, "_x" and the enlargement for most.
        extension: of the result, or "auto" for the input's.
        strip_metadata: leave out EXIF and ICC profile.
        skip_existing: leave out inputs whose result is there.
        recursive: look into folders of folders.
        max_megapixels: larger inputs are refused.
        as_json: print a report as JSON.
        task: what is done, for the names of results; None: not known.
        mask: file or folder of masks.
        report: file of a page with all photographs before and after.
        model: name of the model, for reports.
    """

    inputs: tuple[str, ...]
    output: str | None = None
    suffix: str | None = None
    extension: str = "auto"
    strip_metadata: bool = False
    skip_existing: bool = False
    recursive: bool = False
    max_megapixels: float = MAX_MEGAPIXELS
    as_json: bool = False
    task: str | None = None
    mask: str | None = None
    report: str | None = None
    model: str = ""

    def check(self, settings: Settings) -> None:
        """Refuse what cannot be meant before a model is loaded.

        Args:
            settings: what is done to each photograph.

        Raises:
            ValueError: no input, a suffix or an extension that cannot be, several results on standard output,
                a page that is no HTML file.
        """
        if not self.inputs:
            raise UsageError("no input was given: name a photograph, a folder, or - for standard input")
        self.naming(settings, 4)
        to_stdout = self.output == STDOUT or (self.output is None and STDIN in self.inputs)
        if to_stdout and settings.results > 1:
            raise UsageError(f"{settings.results} samples do not fit on standard output; add --average")
        if to_stdout and settings.uncertainty:
            raise UsageError("--uncertainty makes a second file, for which standard output has no room")
        if self.report is not None and Path(self.report).suffix.lower() not in (".html", ".htm"):
            raise UsageError(f"--report is a page: expected a name that ends in .html, got {self.report!r}")

    def naming(self, settings: Settings, model_scale: int) -> Naming:
        """How results are called; with several samples, how the first is.

        Args:
            settings: what is done to each photograph.
            model_scale: enlargement of the model.

        Returns:
            The rule.
        """
        suffix = self.suffix
        if suffix is None:
            enlargement = model_scale if settings.scale is None else settings.scale
            suffix = SUFFIXES.get(self.task or "", "_restored" if enlargement == 1 else f"_x{enlargement:g}")
        elif suffix[:1].isalnum():
            # As other upscalers do: --suffix out gives photo_out.png.
            suffix = f"_{suffix}"
        if settings.results > 1:
            suffix += "-1"
        return Naming(suffix, self.extension, writable=tuple(EXTENSIONS), fallback=".png")

    def first_output(self, settings: Settings) -> str | None:
        """The output, with -1 in it where it names the file of several samples.

        Args:
            settings: what is done to each photograph.

        Returns:
            What to give to `process_files`.
        """
        if self.output is None or settings.results == 1 or Path(self.output).is_dir():
            return self.output
        path = Path(self.output)
        if path.suffix.lower() not in EXTENSIONS:
            return self.output
        return str(sibling(path.with_name(f"{path.stem}-1{path.suffix}"), 1))


def restore_files(restorer: Restorer, settings: Settings, request: Request) -> BatchReport:
    """Restore all photographs of a command line; a bad one does not stop the others.

    Args:
        restorer: the model.
        settings: what is done to each.
        request: which they are and where the results go.

    Returns:
        The report.
    """
    naming = request.naming(settings, restorer.scale)
    output = request.first_output(settings)
    gallery = None if request.report is None else Gallery(request.report, "Restored photographs")
    masks = None if request.mask is None else MaskFiles(request.mask, request.max_megapixels)
    siblings = _siblings(settings, request, naming, output)
    work = _Work(restorer, settings, request, siblings, masks, gallery)
    report = process_files(
        request.inputs,
        output,
        work,
        suffixes=READABLE_EXTENSIONS,
        naming=naming,
        recursive=request.recursive,
        skip_existing=request.skip_existing,
        as_json=request.as_json,
        verb="restore",
    )
    for file in report.files:
        for note in file.details.get("notes", ()):
            print(f"fewstep restore: {file.input}: {note}", file=sys.stderr)
    if gallery is not None and report.error is None:
        return _with_page(gallery, report)
    return report


def _with_page(gallery: Gallery, report: BatchReport) -> BatchReport:
    """Write the page; what failed is on it too."""
    try:
        gallery.write([file.error for file in report.files if file.error])
    except OSError as error:
        reason = error.strerror or str(error)
        print(f"fewstep restore: {gallery.file}: cannot be written ({reason})", file=sys.stderr)
        return replace(report, exit_code=1)
    return report


def _siblings(
    settings: Settings, request: Request, naming: Naming, output: str | None
) -> dict[Path, list[Path] | None]:
    """Further files of every input, samples first, then the map; None where one must not be written."""
    if settings.results == 1 and not settings.uncertainty:
        return {}
    sources, _ = expand(request.inputs, READABLE_EXTENSIONS, request.recursive)
    try:
        firsts = plan_targets(sources, output, naming)
    except UsageError:
        # Said again, and answered, where the files are processed.
        return {}
    numbers = range(2, settings.results + 1)
    columns = [[sibling(first, number) for first in firsts] for number in numbers]
    if settings.uncertainty:
        columns.append([map_file(first, settings.results) for first in firsts])
    refused = {k for targets in columns for k in refusals(sources, targets)}
    return {
        source.path: None if k in refused else [targets[k] for targets in columns]
        for k, source in enumerate(sources)
    }


@dataclass(frozen=True)
class _Work:
    """The work on one photograph, as `process_files` calls it."""

    restorer: Restorer
    settings: Settings
    request: Request
    siblings: Mapping[Path, list[Path] | None]
    masks: MaskFiles | None
    gallery: Gallery | None

    def __call__(self, source: Path, target: Path, tick: Tick) -> dict[str, Any]:
        """Read `source`, restore it, write `target`."""
        from_stdin = STDIN in self.request.inputs and source.name == "stdin"
        picture = read(source, self.request.max_megapixels, name=STDIN if from_stdin else "")
        others = self.siblings.get(Path(STDIN) if from_stdin else source, [])
        if others is None:
            raise ImageError("one of the results would overwrite an input; give another -o or --suffix")
        mask = None if self.masks is None else self.masks.of(source, picture)
        format = self._format(picture, target, from_stdin)
        size = self.settings.out_size((picture.height, picture.width), self.restorer.scale)
        check_fits(size[1], size[0], format)
        restored = self.restorer.run(picture, self.settings, lambda done, total: tick(done / total), mask)
        facts = self._facts(picture, restored, others)
        # zip stops before the file of the map, which is the last.
        for sample, file in zip(restored.pictures[1:], others, strict=False):
            write(sample, file, self.request.strip_metadata)
        map_ = None
        if restored.deviation is not None:
            floating = others[-1].suffix != ".png"
            map_, about = uncertainty_picture(restored.deviation, floating)
            write(map_, others[-1])
            facts["uncertainty"] = {"file": str(others[-1]), **about}
        with target.open("w+b") as handle:
            encode(restored.picture, handle, format, self.request.strip_metadata)
        if self.gallery is not None:
            line = describe(facts, self.request.model)
            self.gallery.add(source.name, picture, restored.picture, line, map_)
        return facts

    def _format(self, picture: Picture, target: Path, from_stdin: bool) -> str:
        """The format that the target's name says; from pipe to pipe there is no name, so the input's."""
        to_pipe = self.request.output in (None, STDOUT)
        if from_stdin and to_pipe and self.request.extension == "auto":
            return picture.format
        return extension_format(target)

    def _facts(self, picture: Picture, restored: Restored, others: list[Path]) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "size": [picture.width, picture.height],
            "result_size": [restored.picture.width, restored.picture.height],
            "model": self.request.model,
            "mode": self.settings.mode,
            "calls": restored.calls,
            "seconds": round(restored.seconds, 4),
            "seeds": list(restored.seeds),
        }
        more = others[: len(restored.pictures) - 1]
        if more:
            facts["more_outputs"] = [str(file) for file in more]
        if restored.level is not None:
            facts["sigma"] = round(restored.level, 3)
        if restored.residuals:
            facts["consistency"] = [residual.as_dict() for residual in restored.residuals]
        if picture.notes:
            facts["notes"] = list(picture.notes)
        return facts
