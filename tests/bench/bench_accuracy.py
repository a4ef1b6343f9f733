"""Accuracy of every sampler on GM-A: distance to the exact end of each trajectory, beside other codes.

The mixture GM-A has a closed-form denoiser, so a sampler's error is known exactly and no network hides it.
Prints a table for each track and writes it between the markers of docs/accuracy.md.

    python -m tests.bench.bench_accuracy [--track edm] [--write] [--json results.json]
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path as File

import torch

from fewstep.core import solvers
from tests.core import gm_a
from tests.core.goldens import FOLDER

PAGE = File(__file__).parents[2] / "docs" / "accuracy.md"
GRIDS = {  # code in the table: (name, what it ends with)
    "edm": {
        "L": ("logsnr", "t_min"),
        "l": ("logsnr", "clean"),
        "K": ("karras", "t_min"),
        "k": ("karras", "clean"),
    },
    "vp": {"l": ("logsnr", "clean"), "k": ("karras", "clean"), "t": ("trailing", "clean")},
    "flow": {"l": ("logsnr", "clean"), "k": ("karras", "clean"), "u": ("uniform", "clean")},
}
TITLES = {
    "edm": "EDM track",
    "vp": "VP track",
    "flow": "Flow track",
}
KAPPAS = (4.0, 10.0)


@dataclass
class Row:
    """One line: `kind` is "plain", "informed" (knows something of the data or the network) or "peer"."""

    kind: str
    name: str
    cells: dict[int, tuple[gm_a.Error, str]] = field(default_factory=dict)

    def offer(self, budget: int, error: gm_a.Error | None, code: str) -> None:
        """Keep the grid with the least median."""
        best = self.cells.get(budget)
        if error is not None and (best is None or error.median < best[0].median):
            self.cells[budget] = error, code


def plain(track: gm_a.Track) -> Iterator[Row]:
    """Every solver by name that is deterministic and has something to sample from this start."""
    for name in solvers.names():
        row = Row("plain", name)
        try:
            for code, (grid, final) in GRIDS[track.name].items():
                for budget in gm_a.BUDGETS:
                    row.offer(budget, gm_a.measured(track, solvers.get(name), grid, budget, final), code)
        except gm_a.Stochastic:
            continue
        except ValueError as reason:
            print(f"left out on {track.name}: {name}: {str(reason).splitlines()[0][:100]}")
            continue
        if row.cells:
            yield row


def informed(track: gm_a.Track) -> Iterator[Row]:
    """DPM-Solver-v3 with statistics, and solvers after a Gaussian jump."""
    statistics = gm_a.statistics(track.name)
    told = {
        f"dpm-v3, order {order}, statistics": solvers.get("dpm-v3", solver_order=order, statistics=statistics)
        for order in (2, 3)
    }
    starts = told | {name: solvers.get(name) for name in ("lambda-ab-2", "lambda-ab-3", "unipc-3")}
    for name, solver in told.items():
        row = Row("informed", name)
        for code, (grid, final) in GRIDS[track.name].items():
            for budget in gm_a.BUDGETS:
                row.offer(budget, gm_a.measured(track, solver, grid, budget, final), code)
        yield row
    for kappa in KAPPAS:
        for name, solver in starts.items():
            row = Row("informed", f"jump to σ/a = {kappa:g}, {name}")
            for code, (grid, final) in GRIDS[track.name].items():
                if grid in ("logsnr", "karras"):
                    for budget in gm_a.BUDGETS:
                        row.offer(budget, gm_a.teleported(track, solver, kappa, grid, budget, final), code)
            yield row


def peers(track: gm_a.Track) -> Iterator[Row]:
    """diffusers, run now, and what other codes gave when the golden file was made."""
    live: dict[str, dict[int, gm_a.Error]] = {}
    try:
        from tests.bench import accuracy_peers

        live = {name: found for where, name, found in accuracy_peers.rows() if where == track.name}
    except ImportError:
        print("diffusers is not installed: its rows are the stored ones")
    stored = json.loads((FOLDER / "gm_accuracy.json").read_text())["anchors"]
    for key, found in stored.items():
        where, name = key.split("|")
        if where != track.name:
            continue
        errors = live.pop(name, None) or {
            int(budget): gm_a.Error(e["rms"], e["median"], e["nfe"]) for budget, e in found.items()
        }
        knows = name.startswith("off v3") and "degen" not in name
        label = name.replace("off ", "official ") + (", statistics" if knows else "")
        yield Row("informed peer" if knows else "peer", label, {b: (e, "") for b, e in errors.items()})
    for name, errors in live.items():
        yield Row("peer", name, {b: (e, "") for b, e in errors.items()})


def cell(row: Row, budget: int) -> str:
    """rms / median, the grid's code, and the number of calls where it is not the budget."""
    if budget not in row.cells:
        return "–"
    error, code = row.cells[budget]
    calls = "" if error.calls in (budget, 0) else f" ({error.calls})"
    return f"{error}{' ' + code if code else ''}{calls}"


def best_of(rows: list[Row], budget: int, key: str, *kinds: str) -> tuple[float, str]:
    """The least error of the kinds, with the name of its row."""
    found = [
        (getattr(row.cells[budget][0], key), row.name)
        for row in rows
        if row.kind in kinds and budget in row.cells
    ]
    return min(found, default=(float("nan"), "–"))


def summary(track: str, rows: list[Row]) -> list[str]:
    """The least median of each kind at each budget."""
    lines = [
        f"| {TITLES[track]}: least median | " + " | ".join(f"{b} calls" for b in gm_a.BUDGETS) + " |",
        "| --- |" + " --- |" * len(gm_a.BUDGETS),
    ]
    groups = {
        "others, without knowledge": ("peer",),
        "fewstep, without knowledge": ("plain",),
        "others, with statistics": ("informed peer",),
        "fewstep, with statistics or jump": ("informed",),
    }
    for title, kinds in groups.items():
        best = [best_of(rows, budget, "median", *kinds) for budget in gm_a.BUDGETS]
        if any(value == value for value, _ in best):
            cells = [f"{value:.1e} {name}" if value == value else "–" for value, name in best]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return lines


def table(rows: list[Row]) -> list[str]:
    """All rows, the best median of 10 calls first in each kind."""
    lines = [
        "| sampler | " + " | ".join(f"{b} calls" for b in gm_a.BUDGETS) + " |",
        "| --- |" + " --- |" * len(gm_a.BUDGETS),
    ]
    titles = {
        "plain": "**fewstep**",
        "informed": "**fewstep, told something of data or network**",
        "peer": "**others**",
        "informed peer": "**others, told something of the network**",
    }
    for kind, title in titles.items():
        chosen = [row for row in rows if row.kind == kind]
        if chosen:
            lines.append(f"| {title} |" + " |" * len(gm_a.BUDGETS))
        for row in sorted(chosen, key=lambda row: row.cells[10][0].median if 10 in row.cells else 9.0):
            name = f"`{row.name}`" if kind == "plain" else row.name
            lines.append(f"| {name} | " + " | ".join(cell(row, b) for b in gm_a.BUDGETS) + " |")
    return lines


def put(text: str, marker: str, lines: list[str]) -> str:
    """The page with other lines between <!-- marker --> and <!-- /marker -->."""
    head, rest = text.split(f"<!-- {marker} -->\n")
    _, tail = rest.split(f"<!-- /{marker} -->")
    return head + f"<!-- {marker} -->\n\n" + "\n".join(lines) + f"\n\n<!-- /{marker} -->" + tail


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--track", choices=gm_a.TRACKS, action="append", help="all by default")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/accuracy.md")
    parser.add_argument("--json", type=File, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in options.track or gm_a.TRACKS:
        start = time.perf_counter()
        track = gm_a.TRACKS[name]
        rows = [row for family in (plain, informed, peers) for row in family(track)]
        lines = {f"best {name}": summary(name, rows), f"all {name}": table(rows)}
        print("\n".join(["", *lines[f"best {name}"], "", *lines[f"all {name}"]]))
        print(f"{len(rows)} rows in {time.perf_counter() - start:.0f} s")
        if options.write:
            page = PAGE.read_text("utf-8")
            for marker, content in lines.items():
                page = put(page, marker, content)
            PAGE.write_text(page, "utf-8")
        results[name] = [
            {"kind": row.kind, "name": row.name} | {str(b): [*e, code] for b, (e, code) in row.cells.items()}
            for row in rows
        ]
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
