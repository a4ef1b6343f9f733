"""The table of training methods: paper, configuration, its length, what holds it, what it reached.

    python -m tools.distill_table

writes it into docs/distillation.md between its markers. The last column is the median sliced Wasserstein
distance of one call (of the number in brackets, where that is more) on the ring benchmark, read from
docs/assets/distill/ring.json, which `python -m tests.bench.bench_distill_ring --write` leaves.
"""

import ast
import inspect
import json
import textwrap
from pathlib import Path

from tools.solver_pages import write_between

from fewstep.core.objectives import methods
from fewstep.core.objectives.methods import Method

PAGE = Path(__file__).parents[1] / "docs" / "distillation.md"
MEASURED = PAGE.parent / "assets" / "distill" / "ring.json"
MARKERS = ("<!-- table: python -m tools.distill_table -->", "<!-- end of table -->")

EXACT = {
    "add": "closed form of target and gradient",
    "apt": "the approximate R1's rate in σ, told times",
    "boss": "zero on straight flows",
    "cd": "golden (6 losses and gradients), order of the loss on the exact map",
    "ct": "golden (6 losses and gradients, schedules), order of the loss on the exact map",
    "ctm": "golden (9 parametrisations), zero on the exact map",
    "ddgan": "posterior of the chain on every path",
    "decoupled-dmd": "parts add up to guided DMD",
    "denoise": "golden (losses and gradients of DSM)",
    "diff-instruct": "golden; Gaussian identities",
    "disback": "recording of a Gaussian",
    "dmd": "golden (DMD2's matching); Gaussian identities; converges on a Gaussian",
    "dmd2": "golden (matching and fake score); simulated chain",
    "ect": "golden (3 variants)",
    "emdm": "posterior of the chain; masked term",
    "fdistill": "golden (7 weights); identity of every divergence",
    "flash-dmd": "bands partition the times; reward's gradient",
    "flow-matching": "the published loss",
    "gan": "golden (losses of judge and student); log ratio of two Gaussians",
    "hipa": "only adapters move; merged weights",
    "ict": "golden (schedule, shares, weights, distance)",
    "improved-reflow": "moment of the density",
    "instaflow": "the published loss",
    "ladd": "hinge by hand; shares of levels",
    "mdt": "exact flows; gradient identity",
    "meanflow": "golden (2 losses and gradients); zero on the exact flow map",
    "meanflow-distill": "zero with the exact teacher",
    "msd": "zero at the teacher; partition of the conditions",
    "nitrofusion": "refresh repeats; resumes bit for bit",
    "oftsr": "boundary zero and trajectory of higher order on the exact student",
    "online-distillation": "exact Gaussian flow",
    "ot-cfm": "best of all permutations",
    "perflow": "zero on straight flows",
    "progressive": "golden (6 losses and gradients); zero with a linear teacher",
    "reflow": "line ends in the start state on every path",
    "scm": "tangent vanishes on the exact function, five paths",
    "sct": "tangent vanishes on the exact function, five paths",
    "shortcut": "zero with a linear flow and on the exact map",
    "sid": "golden; Fisher identity; converges on a Gaussian",
    "sign": "zero on an idempotent map; closed form of a linear one",
    "sim": "golden; Fisher identity; converges on a Gaussian",
    "slimflow": "golden (annealing)",
    "slimflow-distill": "target in the paper's letters",
    "snoopi": "distribution of the scales",
    "swiftbrush": "shared weights; teacher unchanged bit for bit",
    "tad-sr": "exact Gaussian flow; linear teacher",
    "tcm": "frozen half and boundary by formula",
    "tdm": "equals DMD for one step; converges to the exact flow map",
    "twinflow": "exact map to first order; target by formula",
    "uni-instruct": "golden (h = 1); Gaussian identities",
    "vsd": "normaliser by formula; Gaussian identities",
}


def lines_of(method: Method) -> int:
    """Lines of the function that makes the objective, without its docstring."""
    source = textwrap.dedent(inspect.getsource(method.make))
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    doc = function.body[0] if ast.get_docstring(function) else None
    told = 0 if doc is None else (doc.end_lineno or doc.lineno) - doc.lineno + 1
    return len(source.strip().splitlines()) - told


def table() -> str:
    """The table in Markdown."""
    measured = json.loads(MEASURED.read_text("utf-8")) if MEASURED.is_file() else {}
    lines = [
        "| name | paper | what it is | needs | lines | held by | ring |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in methods.names():
        method = methods.get(name)
        reached = _reached(*measured[name]) if name in measured else "–"
        needs = ", ".join(method.needs) + (", a second time" if method.two_times else "")
        lines.append(
            f"| `{name}` | {method.paper} | {method.summary} | {needs} | {lines_of(method)} "
            f"| {EXACT[name]} | {reached} |"
        )
    return "\n".join(lines)


def _reached(calls: int, distance: float) -> str:
    return f"{distance:.4f}" if calls == 1 else f"{distance:.4f} ({calls} calls)"


if __name__ == "__main__":
    write_between(PAGE, table(), MARKERS)
    print(PAGE)
