"""Masks of what is unknown: scratches, boxes, brush strokes and writing."""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .base import Degraded, Range, check_clean, check_integers, check_range, draw, draw_integer

GREY = 127


@dataclass(frozen=True)
class Masked:
    """Unknown parts, grey (127) in the input; each image gets one kind of mask, drawn uniformly of `kinds`.

    The test masks of the benchmarks are `Masked(kinds=("lines",), lines=(12, 12))`.

    Args:
        kinds: of "lines" (straight, both ends anywhere), "boxes", "strokes" (of a brush) and "text".
        lines: range of the number of lines, integers.
        line_width: range of their width in pixels, integers.
        boxes: range of the number of boxes, integers.
        box_side: range of a box's sides as a share of the image's.
        strokes: range of the number of strokes, integers.
        stroke_width: range of their width as a share of the image's shorter side.
        text: range of the number of lines of writing, integers.
        text_size: range of their height in pixels, integers.

    Raises:
        ValueError: an unknown kind, or a field out of its limits.

    Example:
        >>> made = Masked(kinds=("boxes",))(np.zeros((64, 64, 3), np.uint8), np.random.default_rng(0))
        >>> made.mask.dtype, bool((made.lq[made.mask] == 127).all()), int(made.lq[~made.mask].max())
        (dtype('bool'), True, 0)
    """

    kinds: tuple[str, ...] = ("lines", "boxes", "strokes", "text")
    lines: tuple[int, int] = (2, 12)
    line_width: tuple[int, int] = (4, 11)
    boxes: tuple[int, int] = (1, 3)
    box_side: Range = (0.1, 0.4)
    strokes: tuple[int, int] = (1, 4)
    stroke_width: Range = (0.03, 0.12)
    text: tuple[int, int] = (1, 5)
    text_size: tuple[int, int] = (10, 32)

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"kinds must be among {', '.join(map(repr, KINDS))}, got {self.kinds!r}")
        for name, least in (("lines", 1), ("boxes", 1), ("strokes", 1), ("text", 1), ("text_size", 4)):
            check_range(name, getattr(self, name), least)
            check_integers(name, getattr(self, name))
        check_range("line_width", self.line_width, 1)
        check_integers("line_width", self.line_width)
        check_range("box_side", self.box_side, 0.0, 1.0)
        check_range("stroke_width", self.stroke_width, 0.0, 1.0)

    def __call__(self, clean: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Hide parts of the image."""
        check_clean(clean)
        mask = self.mask((clean.shape[0], clean.shape[1]), rng)
        return Degraded(np.where(mask[..., None], np.uint8(GREY), clean), mask=mask)

    def mask(self, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
        """Draw a mask.

        Args:
            size: (height, width).
            rng: the source of the draws.

        Returns:
            (height, width) bool, True where unknown: at least one pixel.
        """
        mask = np.zeros(size, bool)
        KINDS[self.kinds[int(rng.integers(len(self.kinds)))]](self, mask, rng)
        if not mask.any():
            mask[int(rng.integers(size[0])), int(rng.integers(size[1]))] = True
        return mask


def draw_lines(config: Masked, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Draw straight lines between points anywhere in the image."""
    for _ in range(draw_integer(rng, config.lines)):
        start, end = _point(mask, rng), _point(mask, rng)
        draw_segment(mask, start, end, draw_integer(rng, config.line_width))


def draw_boxes(config: Masked, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Draw filled boxes that lie in the image."""
    for _ in range(draw_integer(rng, config.boxes)):
        height, width = (max(1, round(side * draw(rng, config.box_side))) for side in mask.shape)
        top = int(rng.integers(mask.shape[0] - height + 1))
        left = int(rng.integers(mask.shape[1] - width + 1))
        mask[top : top + height, left : left + width] = True


def draw_strokes(config: Masked, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Draw strokes of a round brush: 4 to 12 pieces, each turning a little from the one before.

    Reference: Yu et al. 2019, "Free-form image inpainting with gated convolution", algorithm 1.
    """
    side = min(mask.shape)
    for _ in range(draw_integer(rng, config.strokes)):
        width = max(1.0, side * draw(rng, config.stroke_width))
        point, heading = _point(mask, rng), draw(rng, (0.0, 2 * math.pi))
        for _ in range(draw_integer(rng, (4, 12))):
            heading += draw(rng, (-0.8, 0.8))
            reach = side * draw(rng, (0.05, 0.2))
            after = (point[0] + reach * math.sin(heading), point[1] + reach * math.cos(heading))
            draw_segment(mask, point, after, width)
            point = after


def draw_text(config: Masked, mask: np.ndarray, rng: np.random.Generator) -> None:
    """Write lines of random words."""
    height, width = mask.shape
    canvas = Image.new("L", (width, height))
    pen = ImageDraw.Draw(canvas)
    # "1": letters without grey edges, since a pixel is either known or not.
    pen.fontmode = "1"
    for _ in range(draw_integer(rng, config.text)):
        size = draw_integer(rng, config.text_size)
        letters = rng.choice(LETTERS, draw_integer(rng, (6, 24)))
        left = draw(rng, (-0.2, 0.6)) * width
        top = draw(rng, (0.0, 1.0)) * max(0, height - size)
        pen.text((left, top), "".join(letters), fill=255, font=_font(size))
    written = np.asarray(canvas) > 0
    # Bold by copies one pixel to the right and down: outlines of the font cost more than all the rest.
    for _ in range(draw_integer(rng, (0, 2))):
        written[:, 1:] |= written[:, :-1]
        written[1:] |= written[:-1]
    mask |= written


KINDS: dict[str, Callable[[Masked, np.ndarray, np.random.Generator], None]] = {
    "lines": draw_lines,
    "boxes": draw_boxes,
    "strokes": draw_strokes,
    "text": draw_text,
}
# Eight letters or digits for each blank or so make words of usual length.
LETTERS = np.array(list(string.ascii_letters + string.digits + 8 * " "))


def draw_segment(
    mask: np.ndarray, start: tuple[float, float], end: tuple[float, float], width: float
) -> None:
    """Set the pixels whose centres lie within half a width of a segment: a line with round ends.

    Args:
        mask: (height, width) bool, written to.
        start: (row, column) of one end; it may lie outside of the image.
        end: (row, column) of the other end.
        width: in pixels.
    """
    low = [max(0, math.floor(min(pair) - width / 2)) for pair in zip(start, end, strict=True)]
    high = [math.ceil(max(pair) + width / 2) + 1 for pair in zip(start, end, strict=True)]
    part = mask[low[0] : max(0, high[0]), low[1] : max(0, high[1])]
    length = math.dist(start, end)
    down, right = ((b - a) / (length or 1.0) for a, b in zip(start, end, strict=True))
    y = (np.arange(part.shape[0], dtype=np.float32) + (low[0] - start[0]))[:, None]
    x = np.arange(part.shape[1], dtype=np.float32) + (low[1] - start[1])
    along = y * down + x * right
    across = x * down - y * right
    beyond = along - np.clip(along, 0.0, length)
    part |= across * across + beyond * beyond < width * width / 4


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _point(mask: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    return draw(rng, (0.0, mask.shape[0] - 1.0)), draw(rng, (0.0, mask.shape[1] - 1.0))
