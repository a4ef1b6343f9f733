"""`fewstep restore encode` and `… decode`: photographs to a few bytes and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewstep.options import AsJson, Device, Inputs, Output, Recursive, SkipExisting

from .choices import MaxMegapixels

if TYPE_CHECKING:
    from ..codec import Codec

SUFFIX = ".fsc"
CodecModel = Annotated[str, typer.Option("--model", help="Codec: name, folder or Hub id.")]


def encode(
    inputs: Inputs,
    output: Output = None,
    rate: Annotated[int, typer.Option("--rate", min=1, help="1 (fewest bits) … 8 (best).")] = 4,
    model: CodecModel = "codec",
    max_megapixels: MaxMegapixels = 100.0,
    device: Device = "auto",
    skip_existing: SkipExisting = False,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Code photographs as .fsc files; only 8-bit colours are kept, no metadata and no transparency."""
    from fewstep.core.cli.batch import process_files
    from fewstep.core.cli.outputs import Naming

    from ..images import READABLE_EXTENSIONS

    codec = _load(model, device)
    if rate not in codec.rates:
        raise typer.BadParameter(f"--rate: {model} has 1 … {codec.rates[-1]}, got {rate}")
    report = process_files(
        inputs,
        output,
        _Encode(codec, rate, max_megapixels),
        suffixes=READABLE_EXTENSIONS,
        naming=Naming("", SUFFIX, writable=(SUFFIX,), fallback=SUFFIX),
        recursive=recursive,
        skip_existing=skip_existing,
        as_json=as_json,
        verb="restore encode",
    )
    raise typer.Exit(report.exit_code)


def decode(
    inputs: Inputs,
    output: Output = None,
    model: CodecModel = "codec",
    extension: Annotated[str, typer.Option("--ext", help="png, jpg, webp or tiff.")] = "png",
    max_megapixels: MaxMegapixels = 100.0,
    device: Device = "auto",
    skip_existing: SkipExisting = False,
    recursive: Recursive = False,
    as_json: AsJson = False,
) -> None:
    """Make photographs of .fsc files, with the codec that coded them."""
    from fewstep.core.cli.batch import process_files
    from fewstep.core.cli.outputs import Naming

    from ..images import EXTENSIONS

    try:
        naming = Naming("", extension, writable=tuple(EXTENSIONS), fallback=".png")
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    report = process_files(
        inputs,
        output,
        _Decode(_load(model, device), max_megapixels),
        suffixes=(SUFFIX,),
        naming=naming,
        recursive=recursive,
        skip_existing=skip_existing,
        as_json=as_json,
        verb="restore decode",
    )
    raise typer.Exit(report.exit_code)


def _load(model: str, device: str) -> Codec:
    from fewstep.core.cli.options import resolve_device
    from fewstep.core.weights import CheckpointError

    from ..codec import Codec

    chosen = resolve_device(device)
    try:
        return Codec.from_pretrained(model, str(chosen))
    except CheckpointError as error:
        raise typer.BadParameter(str(error), param_hint="--model") from error


@dataclass(frozen=True)
class _Encode:
    """The work on one photograph, as `process_files` calls it."""

    codec: Codec
    rate: int
    max_megapixels: float

    def __call__(self, source: Path, target: Path, tick: Any) -> dict[str, Any]:
        """Read `source`, code it, write `target`."""
        from ..images import read

        picture = read(source, self.max_megapixels)
        data = self.codec.encode(picture, self.rate)
        target.write_bytes(data)
        pixels = picture.width * picture.height
        lost = {"metadata": picture.exif, "colour profile": picture.icc, "transparency": picture.has_alpha}
        return {
            "size": [picture.width, picture.height],
            "rate": self.rate,
            "bytes": len(data),
            "bits_per_pixel": round(8 * len(data) / pixels, 4),
            "not_kept": [name for name, there in lost.items() if there],
        }


@dataclass(frozen=True)
class _Decode:
    """The work on one coded file, as `process_files` calls it."""

    codec: Codec
    max_megapixels: float

    def __call__(self, source: Path, target: Path, tick: Any) -> dict[str, Any]:
        """Read `source`, decode it, write `target`."""
        from ..images import from_pil, write

        data = source.read_bytes()
        image = self.codec.decode(data, self.max_megapixels)
        write(from_pil(image), target)
        return {"size": list(image.size), "bytes": len(data)}
