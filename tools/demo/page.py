"""The pieces of the demo page as HTML: a document, tables, before/after sliders and rows of pictures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Picture:
    """A picture file with the words under it; `full` is the file a click opens (by default the same)."""

    file: str
    caption: str
    full: str | None = None


@dataclass(frozen=True)
class Column:
    """A table column: its heading, the digits behind the point, and which values are best (None: no best)."""

    name: str
    digits: int
    larger_is_better: bool | None = None


@dataclass(frozen=True)
class Row:
    """A table row: its name, a number for each column (None: not measured), whether the result is ours.

    `asides` are shown behind the numbers in small letters, such as an interval; "": nothing.
    """

    name: str
    cells: Sequence[float | None]
    ours: bool = False
    asides: Sequence[str] = ()


def document(title: str, lead: str, sections: Mapping[str, str], facts: Mapping[str, str]) -> str:
    """The whole page: `sections` maps a heading to its HTML, `facts` is what the footer states.

    Style and script are written into the page, pictures are relative files: it opens from a folder without
    a server or a network.
    """
    links = "".join(f'<a href="#{_anchor(name)}">{escape(name)}</a>' for name in sections)
    body = "".join(
        f'<section id="{_anchor(name)}"><h2>{escape(name)}</h2>{html}</section>'
        for name, html in sections.items()
    )
    footer = " · ".join(f"{escape(key)} {escape(value)}" for key, value in facts.items())
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{(HERE / 'page.css').read_text()}</style>"
        f"</head><body><main><h1>{escape(title)}</h1><p>{escape(lead)}</p><nav>{links}</nav>{body}"
        f"<footer>{footer}</footer></main><script>{(HERE / 'page.js').read_text()}</script></body></html>\n"
    )


def card(title: str, text: str, *parts: str) -> str:
    """A framed block with a heading, a sentence and HTML parts."""
    return (
        f'<div class="card"><h3>{escape(title)}</h3><p class="soft">{escape(text)}</p>{"".join(parts)}</div>'
    )


def paragraph(text: str) -> str:
    """A paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def slider(before: Picture, after: Picture, size: tuple[int, int]) -> str:
    """Two pictures of one size over each other, with a handle that uncovers the second."""
    width, height = size
    return (
        f'<div class="compare" '
        f'style="aspect-ratio:{width}/{height};max-width:calc(78vh*{width / height:.4f})">'
        f'<img src="{escape(before.file)}" alt="{escape(before.caption)}">'
        f'<img class="after" src="{escape(after.file)}" alt="{escape(after.caption)}">'
        f'<div class="bar"></div><span class="left">{escape(before.caption)}</span>'
        f'<span class="right">{escape(after.caption)}</span>'
        f'<input type="range" min="0" max="100" step="0.1" value="50" '
        f'aria-label="{escape(before.caption)} against {escape(after.caption)}"></div>'
    )


def strip(pictures: Iterable[Picture]) -> str:
    """Pictures side by side, each with its caption; a click opens the full file."""
    figures = "".join(
        f'<figure><a href="{escape(p.full or p.file)}">'
        f'<img src="{escape(p.file)}" alt="{escape(p.caption)}"></a>'
        f"<figcaption>{escape(p.caption)}</figcaption></figure>"
        for p in pictures
    )
    return f'<div class="strip">{figures}</div>'


def film(file: str, caption: str) -> str:
    """A film that plays by itself, without end and without sound, with its caption."""
    return (
        f'<figure class="film"><video src="{escape(file)}" controls loop muted autoplay playsinline></video>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def table(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table of numbers in which the best of a column is bold."""
    head = "".join(f"<th>{escape(column.name)}</th>" for column in columns)
    texts = [[_text(cell, column) for cell, column in zip(row.cells, columns, strict=True)] for row in rows]
    best = [_best([row.cells[k] for row in rows], column) for k, column in enumerate(columns)]
    lines = ""
    for row, cells in zip(rows, texts, strict=True):
        # Compared as they are shown: two equal numbers are both best.
        asides = [f" <small>{escape(aside)}</small>" if aside else "" for aside in row.asides]
        asides += [""] * (len(cells) - len(asides))
        marked = "".join(
            f"<td{' class=best' if text in best[k] else ''}>{text}{asides[k]}</td>"
            for k, text in enumerate(cells)
        )
        lines += f"<tr{' class=ours' if row.ours else ''}><td>{escape(row.name)}</td>{marked}</tr>"
    parts = f"<thead><tr><th></th>{head}</tr></thead><tbody>{lines}</tbody>"
    return f'<div class="scroll"><table>{parts}</table></div>'


def _best(cells: Sequence[float | None], column: Column) -> tuple[str, ...]:
    numbers = [cell for cell in cells if cell is not None]
    if column.larger_is_better is None or not numbers:
        return ()
    return (_text(max(numbers) if column.larger_is_better else min(numbers), column),)


def _text(cell: float | None, column: Column) -> str:
    return "–" if cell is None else f"{cell:.{column.digits}f}"


def _anchor(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name.lower())
