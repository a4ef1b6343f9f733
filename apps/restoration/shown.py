"""What the page shows of a result: before and after, where samples differ, a line of facts."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from fewstep.restoration import Restored
from fewstep.restoration.images import Picture
from fewstep.restoration.quality import uncertainty_picture

PREVIEW = 1600


@dataclass(frozen=True)
class Shown:
    """One comparison.

    Args:
        name: which it is, among several.
        before: the photograph at the size of the result.
        after: the result, as large as a browser shows quickly.
        differences: where the samples of its photograph differ.
    """

    name: str
    before: Image.Image
    after: Image.Image
    differences: Image.Image | None


def shown_of(name: str, before: Picture, result: Restored) -> list[Shown]:
    """A photograph with each of its samples.

    Args:
        name: of the photograph; empty for an only one.
        before: the photograph.
        result: what was made of it.
    """
    afters = [reduced(picture.to_pil()) for picture in result.pictures]
    enlarged = before.to_pil().resize(afters[0].size, Image.Resampling.BICUBIC)
    differences = None if result.deviation is None else _map(result.deviation)
    several = len(afters) > 1
    return [
        Shown(
            ", ".join(filter(None, (name, f"sample {number}" if several else ""))),
            enlarged,
            after,
            differences,
        )
        for number, after in enumerate(afters, start=1)
    ]


def facts(before: Picture, result: Restored) -> str:
    """Sizes, seconds and network calls of a result, as Markdown."""
    level = "" if result.level is None else f", noise {result.level:.1f}"
    calls = f"{result.calls} network call{'s' * (result.calls != 1)}"
    return f"{size(before)} → **{size(result.picture)}** in {result.seconds:.1f} s, {calls}{level}"


def size(picture: Picture) -> str:
    """Width × height."""
    return f"{picture.width} × {picture.height}"


def reduced(image: Image.Image) -> Image.Image:
    """The image, made smaller where a browser would show it slowly."""
    image.thumbnail((PREVIEW, PREVIEW), Image.Resampling.LANCZOS)
    return image


def _map(deviation: np.ndarray) -> Image.Image:
    return reduced(uncertainty_picture(deviation, floating=False)[0].to_pil())
