"""`fewstep restore simulate`: photographs made worse, to try restorers on."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.options import AsJson, Inputs, Recursive, Seed, SkipExisting

from .choices import parse_field

if TYPE_CHECKING:
    from ..degradations import Degradation

MASKS = "masks"
# As `degradations.DEGRADATIONS` has them, which is not imported for a line of help.
NAMES = ("noise", "rain", "low_light", "jpeg", "mask", "mosaic", "real_esrgan")


def simulate(
    inputs: Inputs,
    output: Annotated[
        str,
        typer.Option("-o", "--output", help="Folder, or file for one photograph.", show_default=False),
    ],
    degradation: Annotated[
        str, typer.Option("--degradation", help=f"{', '.join(NAMES)}.", show_default=False)
    ],
    fields: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A field of the degradation, such as low=25; may be repeated.", show_default=False
        ),
    ] = None,
    seed: Seed = 0,
    extension: Annotated[str, typer.Option("--ext", help="png, tiff, or auto (as the input).")] = "png",
    skip_existing: SkipExisting = False,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Degrade photographs; what they draw depends on the seed and on the name of the file alone.

    Masks of inpainting go to a folder "masks" beside the results, under the same names. Where the size is
    reduced, rows and columns that fill no whole block are cut off first.
    """
    from fewstep.core.cli.batch import process_files
    from fewstep.core.cli.outputs import STDOUT, Naming

    from ..degradations import degradation as named
    from ..images import EXTENSIONS, READABLE_EXTENSIONS

    try:
        made = named(degradation.replace("-", "_"), **dict(map(parse_field, fields or ())))
        if output == STDOUT:
            raise ValueError("-o: expected a file or a folder; standard output has no room for a mask")
        naming = Naming("", extension, writable=tuple(EXTENSIONS), fallback=".png")
    except (TypeError, ValueError) as error:
        raise typer.BadParameter(str(error)) from error
    report = process_files(
        inputs,
        output,
        _Work(made, seed, Path(output).expanduser(), extension),
        suffixes=READABLE_EXTENSIONS,
        naming=naming,
        recursive=recursive,
        skip_existing=skip_existing,
        as_json=as_json,
        verb="restore simulate",
    )
    raise typer.Exit(report.exit_code)


@dataclass(frozen=True)
class _Work:
    """The work on one photograph, as `process_files` calls it."""

    degradation: Degradation
    seed: int
    output: Path
    extension: str

    def __call__(self, source: Path, target: Path, tick: Any) -> dict[str, Any]:
        """Read `source`, degrade it, write `target`."""
        import numpy as np

        from ..images import ImageError, Picture, read, write
        from ..images.picture import convert_depth

        picture = read(source)
        colour = np.repeat(picture.colour, 3, 2) if picture.colour.shape[2] == 1 else picture.colour
        # A degradation that reduces the size asks for whole blocks.
        multiple = getattr(self.degradation, "scale", 1)
        height, width = (side - side % multiple for side in colour.shape[:2])
        if not (height and width):
            raise ImageError(
                f"has {picture.width}×{picture.height} pixels, less than the scale of {multiple}"
            )
        clean = np.ascontiguousarray(convert_depth(colour[:height, :width], np.uint8))
        rng = np.random.default_rng([self.seed, zlib.crc32(source.stem.encode())])
        degraded = self.degradation(clean, rng)
        write(Picture(degraded.lq, icc=picture.icc), target)
        facts: dict[str, Any] = {
            "size": [picture.width, picture.height],
            "used_size": [width, height],
            "result_size": [degraded.lq.shape[1], degraded.lq.shape[0]],
        }
        if degraded.level is not None:
            facts["sigma"] = round(float(degraded.level), 3)
        if degraded.mask is not None:
            file = self._mask_file(source, target)
            file.parent.mkdir(parents=True, exist_ok=True)
            facts["mask"] = str(write(Picture(degraded.mask[:, :, None].astype(np.uint8) * 255), file))
        return facts

    def _mask_file(self, source: Path, target: Path) -> Path:
        """Beside the result, under the name of the result: `target` has a name of the moment."""
        named = not self.output.is_dir()
        return target.parent / MASKS / f"{self.output.stem if named else source.stem}.png"
