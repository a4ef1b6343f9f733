"""The students of the ring benchmark: method, teacher, length of training.

Not here, because eight points on a circle have nothing for them to work on: methods whose point is a network
that is too large to train (HiPA and SwiftBrush, by low-rank adapters), guidance by classes (SNOOPI;
Decoupled DMD without guidance is DMD), a part of the classes (MSD), a degraded input (TAD-SR), and the two
objectives that the teachers are trained with (denoise, flow-matching).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """One student.

    Args:
        method: its name.
        teacher: "edm", "flow", or another row whose student is the teacher.
        recipe: fields of DistillRecipe other than the method's own.
        options: of the method.
        calls: numbers of calls that are measured.
        middle: times of the second call, where they are not the sampling's own.
        limit: largest median of sw2 for one call that the plan allows (None: none is stated).
        pairs: train on pairs of the flow teacher.
        seeds: at most so many runs.
    """

    method: str
    teacher: str = "edm"
    recipe: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    calls: tuple[int, ...] = (1, 2)
    middle: tuple[float, ...] = ()
    limit: float | None = None
    pairs: bool = False
    seeds: int = 3


TRAJECTORY = {"batch_size": 512, "ema": 0.998, "learning_rate": 1e-3}
SCORE = {"batch_size": 256, "ema": 0.998, "learning_rate": 3e-4}
JUDGED = {"batch_size": 256, "ema": 0.998}
LIMITED: dict[str, Row] = {
    "reflow": Row(
        "reflow", "flow", {**TRAJECTORY, "updates": 6_000}, limit=0.025, pairs=True, calls=(1, 2, 4)
    ),
    "reflow + distil": Row(
        "instaflow", "reflow", {**TRAJECTORY, "updates": 2_500}, limit=0.020, pairs=True, calls=(1,)
    ),
    "cd": Row("cd", "edm", {**TRAJECTORY, "updates": 2_000}, middle=(0.8,), limit=0.032),
    "ict": Row("ict", "edm", {**TRAJECTORY, "updates": 5_000}, middle=(1.5,), limit=0.13),
    "ect": Row("ect", "edm", {**TRAJECTORY, "updates": 4_000}, middle=(1.5,), limit=0.13),
    "ctm": Row("ctm", "edm", {**TRAJECTORY, "updates": 1_500}, middle=(10.0,), limit=0.05, calls=(1, 2, 4)),
    "meanflow": Row("meanflow", "flow", {**TRAJECTORY, "batch_size": 256, "updates": 4_000}, limit=0.12),
    "dmd": Row("dmd", "edm", {**SCORE, "updates": 600}, limit=0.05, calls=(1,)),
    "dmd2": Row("dmd2", "edm", {**SCORE, "updates": 500}, limit=0.05, calls=(1,)),
    "sid": Row("sid", "edm", {**SCORE, "updates": 1_000}, limit=0.06, calls=(1,)),
    "sim": Row("sim", "edm", {**SCORE, "updates": 1_000}, limit=0.06, calls=(1,)),
    "uni-instruct": Row("uni-instruct", "edm", {**SCORE, "updates": 800}, limit=0.06, calls=(1,)),
    "fdistill": Row("fdistill", "edm", {**SCORE, "updates": 700}, limit=0.042, calls=(1,)),
}


def _once(
    method: str,
    teacher: str,
    updates: int,
    calls: tuple[int, ...] = (1,),
    settings: Mapping[str, Any] = TRAJECTORY,
    **others: Any,
) -> Row:
    return Row(method, teacher, {**settings, "updates": updates}, calls=calls, seeds=1, **others)


ONCE: dict[str, Row] = {
    "ct": _once("ct", "edm", 1_200, (1, 2), middle=(0.8,)),
    "sct": _once("sct", "edm", 700, (1, 2), middle=(0.8,)),
    "scm": _once("scm", "edm", 700, (1, 2), middle=(0.8,)),
    "tcm": _once("tcm", "cd", 1_000, settings={**TRAJECTORY, "learning_rate": 1e-4}),
    "progressive": _once("progressive", "flow", 1_050),
    "shortcut": _once("shortcut", "flow", 900, (1, 2, 4)),
    "meanflow-distill": _once("meanflow-distill", "flow", 1_000, (1, 2)),
    "twinflow": _once("twinflow", "flow", 800, (1, 2)),
    "oftsr": _once("oftsr", "flow", 1_000),
    "mdt": _once("mdt", "flow", 800),
    "online-distillation": _once("online-distillation", "flow", 600),
    "improved-reflow": _once("improved-reflow", "flow", 1_500, (1, 2), pairs=True),
    "slimflow": _once("slimflow", "flow", 1_500, (1, 2), pairs=True),
    "slimflow-distill": _once("slimflow-distill", "reflow", 1_000, pairs=True),
    "ot-cfm": _once("ot-cfm", "flow", 1_000, (1, 2, 4)),
    "boss": _once("boss", "flow", 600, (4,)),
    "perflow": _once("perflow", "flow", 600, (4,)),
    "diff-instruct": _once("diff-instruct", "edm", 1_000, settings=SCORE),
    "vsd": _once("vsd", "edm", 1_000, settings=SCORE),
    "sign": _once("sign", "edm", 400, settings=SCORE),
    "disback": _once("disback", "edm", 400, settings=SCORE),
    "tdm": _once("tdm", "edm", 700, (4,), settings=SCORE),
    "flash-dmd": _once("flash-dmd", "edm", 350, (4,), settings=SCORE),
    "gan": _once("gan", "edm", 600, settings=JUDGED),
    "add": _once("add", "edm", 600, (1, 4), settings=JUDGED),
    "ladd": _once("ladd", "edm", 600, (1, 4), settings=JUDGED),
    "nitrofusion": _once("nitrofusion", "edm", 600, settings=JUDGED),
    "apt": _once("apt", "cd", 600, settings=JUDGED),
    "ddgan": _once("ddgan", "edm", 900, (4,), settings=JUDGED),
    "emdm": _once("emdm", "edm", 900, (4,), settings=JUDGED),
}
ROWS: dict[str, Row] = {**LIMITED, **ONCE}
