"""One page of HTML with every photograph of a run, before and after, that needs no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewstep.core.files import atomic_path

from .images import Picture

# Longest side of a preview, and what all pictures of a page may take: browsers open it at once.
SIDE = 1200
BUDGET = 48_000_000
_QUALITY = 88
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1240px;color:#1d2430}
body{margin:2rem auto;padding:0 1rem}
h1{letter-spacing:-.02em}section{margin:2.5rem 0}h2{font-size:1.1rem;margin:.2rem 0}
.pair{position:relative;max-width:100%;overflow:hidden;background:#eee}
.pair img{position:absolute;inset:0;width:100%;height:100%}
.pair img.after{clip-path:inset(0 0 0 var(--at,50%))}
.pair i{position:absolute;top:0;bottom:0;left:var(--at,50%);width:2px;background:#fff}
.pair input{position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:ew-resize}
.pair b{position:absolute;bottom:6px;padding:0 .5em;border-radius:4px;background:#000a}
.pair b{color:#fff;font-weight:400;font-size:13px;pointer-events:none}
.pair b:first-of-type{left:6px}.pair b:last-of-type{right:6px}
.map{max-width:480px;width:100%}p{margin:.3rem 0}.bad{color:#a3201a}"""
_SCRIPT = """for (const slider of document.querySelectorAll('.pair input'))
  slider.addEventListener('input', () => slider.parentNode.style.setProperty('--at', slider.value + '%'));"""


@dataclass(frozen=True)
class Shown:
    """One photograph of the page.

    Args:
        name: of its file.
        size: (width, height) of the result.
        facts: what is written below it.
        before: the input as WebP; empty: too much for the page.
        after: the result as WebP.
        uncertainty: map of the standard deviation as WebP, or empty.
    """

    name: str
    size: tuple[int, int]
    facts: str
    before: bytes = b""
    after: bytes = b""
    uncertainty: bytes = b""

    @property
    def weight(self) -> int:
        """Bytes of its pictures."""
        return len(self.before) + len(self.after) + len(self.uncertainty)


class Gallery:
    """Collects the photographs of a page while they are made.

    Args:
        file: of the page.
        title: its heading.
        budget: bytes that all pictures may take; photographs beyond it are listed without.
    """

    def __init__(self, file: str | Path, title: str, budget: int = BUDGET) -> None:
        self.file = Path(file).expanduser()
        self.title = title
        self.budget = budget
        self.shown: list[Shown] = []
        self._used = 0

    def add(
        self, name: str, before: Picture, after: Picture, facts: str, uncertainty: Picture | None = None
    ) -> None:
        """Take one more photograph.

        Args:
            name: of its file.
            before: the input.
            after: the result.
            facts: a line about it.
            uncertainty: map of the standard deviation.
        """
        size = (after.width, after.height)
        map_ = b"" if uncertainty is None else preview(uncertainty, SIDE // 2)
        entry = Shown(name, size, facts, preview(before), preview(after), map_)
        if self._used + entry.weight > self.budget:
            entry = Shown(name, size, f"{facts} (not shown: the page would be too large)")
        self._used += entry.weight
        self.shown.append(entry)

    def write(self, failed: Sequence[str] = ()) -> Path:
        """Write the page.

        Args:
            failed: a sentence on each photograph that could not be restored.

        Returns:
            Its file.

        Raises:
            OSError: it cannot be written.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.file) as temporary:
            temporary.write_text(page(self.title, self.shown, failed), encoding="utf-8")
        return self.file


def page(title: str, shown: Sequence[Shown], failed: Sequence[str] = ()) -> str:
    """The HTML.

    Args:
        title: heading.
        shown: photographs.
        failed: sentences.

    Returns:
        A document without references to other files.
    """
    bad = "".join(f'<p class="bad">{escape(sentence)}</p>' for sentence in failed)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"<p>{_counted(len(shown), 'photograph')}. Pull the line over a picture: before on the left, "
        f"after on the right.</p>{bad}{''.join(map(_section, shown))}"
        f"<script>{_SCRIPT}</script></body></html>\n"
    )


def preview(picture: Picture, side: int = SIDE) -> bytes:
    """A photograph as WebP, reduced to a longest side, transparent parts over white.

    Args:
        picture: the photograph.
        side: in pixels.

    Returns:
        The content of a WebP file.
    """
    # Large photographs lose pixels first, so that no second copy of them is made.
    step = max(1, max(picture.width, picture.height) // (2 * side))
    small = picture.with_pixels(np.ascontiguousarray(picture.pixels[::step, ::step])).to_pil()
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    if small.mode in ("LA", "RGBA"):
        white = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(white, small.convert("RGBA"))
    buffer = io.BytesIO()
    # A profile of a grey photograph does not fit the three channels that WebP has.
    profile = picture.icc if picture.colour.shape[2] == 3 else None
    small.convert("RGB").save(buffer, "WEBP", quality=_QUALITY, method=4, icc_profile=profile or b"")
    return buffer.getvalue()


def describe(details: dict[str, Any], model: str) -> str:
    """A line on a photograph out of the facts of a report.

    Args:
        details: as of the JSON report.
        model: its name.

    Returns:
        The line.
    """
    width, height = details["size"]
    new_width, new_height = details["result_size"]
    parts = [
        f"{width} × {height} → {new_width} × {new_height}",
        f"{details['seconds']:.2f} s",
        _counted(details["calls"], "network call"),
        f"{model}, {details['mode']}",
    ]
    if details.get("sigma") is not None:
        parts.append(f"noise {details['sigma']:.1f}")
    return "; ".join(parts)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _section(one: Shown) -> str:
    head = f"<section><h2>{escape(one.name)}</h2><p>{escape(one.facts)}</p>"
    if not one.after:
        return f"{head}</section>"
    width, height = one.size
    shown = min(1200, max(480, width))
    pair = (
        f'<div class="pair" style="width:{shown}px;aspect-ratio:{width}/{height}">'
        f'<img src="{_data(one.before)}" alt="before">'
        f'<img class="after" src="{_data(one.after)}" alt="after">'
        '<i></i><b>before</b><b>after</b><input type="range" min="0" max="100" value="50" step="0.1" '
        'aria-label="how much of the picture is before"></div>'
    )
    if one.uncertainty:
        pair += (
            "<p>Where the samples differ: dark, hardly; bright, most.</p>"
            f'<img class="map" src="{_data(one.uncertainty)}" alt="standard deviation of the samples">'
        )
    return f"{head}{pair}</section>"


def _data(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode()}"
