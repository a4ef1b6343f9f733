"""The report of `fewstep compare`: a chart as SVG, and one page of HTML that needs no other file."""

import base64
import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from torch import Tensor

from fewstep.core.comparison import Measurement
from fewstep.core.pictures import grid_of, is_picture, png_bytes

COLOURS = (
    "#2563a8",
    "#d1731c",
    "#2f8f4e",
    "#b5352f",
    "#7b56ad",
    "#7a5548",
    "#c6589f",
    "#5d6d7e",
    "#8f8f1f",
    "#1f9aa8",
)
WIDTH, HEIGHT, LEFT, BOTTOM = 380, 260, 58, 40
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}
td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:nth-child(-n+2),th:nth-child(-n+2){text-align:left}td.best{font-weight:600}
figure{display:inline-block;margin:.5rem 1rem .5rem 0}figcaption{font-size:13px}
img{image-rendering:pixelated;max-width:260px}
svg{max-width:100%;height:auto}"""


def draw_chart(found: Sequence[Measurement], floor: dict[str, float]) -> str:
    """One panel per metric: the distance against the network calls, both logarithmic, one line per sampler.

    The dashed line is the distance between the halves of the data. Distances that are not positive and finite
    (an unbiased one may fall below 0) are not drawn.
    """
    series = list(dict.fromkeys((one.model, one.sampler) for one in found))
    colours = {key: COLOURS[i % len(COLOURS)] for i, key in enumerate(series)}
    panels = [_panel(name, i, found, floor, colours) for i, name in enumerate(floor)]
    legend = [
        f'<g transform="translate(16 {HEIGHT + 26 + 20 * i})">'
        f'<path d="M0 0h22" stroke="{colour}" stroke-width="2"/>'
        f'<text x="30" y="4">{escape(f"{model}, {sampler}")}</text></g>'
        for i, ((model, sampler), colour) in enumerate(colours.items())
    ]
    width, height = WIDTH * len(floor), HEIGHT + 30 + 20 * len(series)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'font-family="system-ui,sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(panels)}{"".join(legend)}</svg>\n'
    )


def write_page(
    report: dict[str, Any], found: Sequence[Measurement], floor: dict[str, float], chart: str
) -> str:
    """The page: the chart, the table, and samples where they can be shown."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>fewstep compare</title>'
        f"<style>{STYLE}</style></head><body><h1>Quality against network calls</h1>"
        f"<p>{report['samples']} samples of each against as many of {escape(str(report['data']))}; "
        "smaller is better. The dashed lines, and the last row of the table, are the distance between the "
        f"two halves of the data, at half the number.</p>{chart}{_table(found, floor)}"
        f"{''.join(_figures(found))}</body></html>\n"
    )


def _panel(
    metric: str,
    number: int,
    found: Sequence[Measurement],
    floor: dict[str, float],
    colours: dict[tuple[str, str], str],
) -> str:
    lines: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for one in found:
        if _drawable(one.metrics[metric]):
            lines.setdefault((one.model, one.sampler), []).append((one.calls, one.metrics[metric]))
    values = [value for points in lines.values() for _, value in points]
    low_value = floor[metric] if _drawable(floor[metric]) else None
    values += [low_value] if low_value is not None else []
    inside = WIDTH - LEFT - 16, HEIGHT - BOTTOM - 34
    x = _Axis([one.calls for one in found], LEFT, LEFT + inside[0])
    y = _Axis(values or [1.0], 34 + inside[1], 34)
    parts = [f'<text x="{LEFT}" y="20" font-weight="600">{escape(metric)}</text>']
    for calls in sorted({one.calls for one in found}):
        parts.append(f'<text x="{x(calls):.1f}" y="{HEIGHT - 22}" text-anchor="middle">{calls}</text>')
    for value in y.ticks():
        at = y(value)
        parts.append(f'<path d="M{LEFT} {at:.1f}h{inside[0]}" stroke="#e5e5e5"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    if low_value is not None:
        parts.append(
            f'<path d="M{LEFT} {y(low_value):.1f}h{inside[0]}" stroke="#888" stroke-dasharray="5 4"/>'
        )
    for key, points in lines.items():
        places = [f"{x(calls):.1f} {y(value):.1f}" for calls, value in sorted(points)]
        parts.append(f'<path d="M{"L".join(places)}" fill="none" stroke="{colours[key]}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(calls):.1f}" cy="{y(value):.1f}" r="3" fill="{colours[key]}"/>'
            for calls, value in points
        ]
    middle = LEFT + inside[0] / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">network calls</text>')
    return f'<g transform="translate({number * WIDTH} 0)">{"".join(parts)}</g>'


class _Axis:
    """A logarithmic axis from the smallest value at `start` to the largest at `end`."""

    def __init__(self, values: Iterable[float], start: float, end: float) -> None:
        logs = [math.log(value) for value in values]
        self.low, self.high = min(logs), max(logs)
        if self.high - self.low < 1e-9:
            self.low, self.high = self.low - 0.5, self.high + 0.5
        self.start, self.end = start, end

    def __call__(self, value: float) -> float:
        share = (math.log(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten inside, or the powers alone where these are many."""
        first, last = math.floor(self.low / math.log(10)), math.ceil(self.high / math.log(10))
        for digits in ((1, 2, 5), (1,)):
            ticks = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
            inside = [tick for tick in ticks if self.low - 1e-9 <= math.log(tick) <= self.high + 1e-9]
            if len(inside) <= 8:
                return inside
        return inside[:: math.ceil(len(inside) / 8)]


def _drawable(value: float) -> bool:
    return value > 0 and math.isfinite(value)


def _table(found: Sequence[Measurement], floor: dict[str, float]) -> str:
    best = {name: min(one.metrics[name] for one in found) for name in floor}
    head = "".join(
        f"<th>{escape(name)}</th>" for name in ("model", "sampler", "calls", *floor, "ms a sample")
    )
    rows = []
    for one in found:
        cells = "".join(
            f"<td{' class=best' if one.metrics[name] == best[name] else ''}>{one.metrics[name]:.4g}</td>"
            for name in floor
        )
        rows.append(
            f"<tr><td>{escape(one.model)}</td><td>{escape(one.sampler)}</td><td>{one.calls}</td>{cells}"
            f"<td>{one.milliseconds:.2f}</td></tr>"
        )
    last = "".join(f"<td>{value:.4g}</td>" for value in floor.values())
    rows.append(f"<tr><td>half of the data</td><td></td><td></td>{last}<td></td></tr>")
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def _figures(found: Sequence[Measurement]) -> list[str]:
    figures = []
    for one in found:
        picture = _picture(one.shown)
        if picture is not None:
            title = escape(f"{one.model}, {one.sampler}, {one.calls} calls")
            figures.append(f"<figure>{picture}<figcaption>{title}</figcaption></figure>")
    return figures


def _picture(samples: Tensor) -> str | None:
    """Samples as an image of their own; None where they are no pictures."""
    if not is_picture(tuple(samples.shape[1:])):
        return None
    enlarge = max(1, 256 // (6 * samples.shape[-1]))
    data = base64.b64encode(png_bytes(grid_of(samples, columns=6), enlarge)).decode()
    return f'<img alt="samples" src="data:image/png;base64,{data}">'
