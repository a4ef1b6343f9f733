"""Plans as data: table, JSON, picture, stacking, folding, inversion, and refusal of what cannot run."""

import json
import sys

import pytest
import torch
from tests.core.solver_problems import PLANNED, kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths, predictions, solvers
from fewstep.core.builder import PlanBuilder
from fewstep.core.noise import GivenNoise
from fewstep.core.plan import Plan, Row, Term
from fewstep.core.run import run

EDM = paths.EDM()
EACH_PATH = {
    "edm": EDM,
    "vp": paths.VP.linear(),
    "table": paths.VP.from_betas([0.01 * (i + 1) for i in range(12)]),
    "flow": paths.RectifiedFlow(shift=3.0),
    "resshift": paths.ResShift(),
    "ouve": paths.OUVE(),
}


@pytest.mark.parametrize("path", EACH_PATH.values(), ids=EACH_PATH)
@pytest.mark.parametrize("name", PLANNED)
def test_json_gives_back_an_equal_plan(name, path):
    plan = solvers.get(name).compile(path, grids.uniform(path, 4))
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert hash(again) == hash(plan)
    assert again.path == path
    stacked = Plan.stack([plan, plan])
    assert Plan.from_json(stacked.to_json()) == stacked != plan
    pair = plan.keeping(2)
    assert Plan.from_json(pair.to_json()) == pair != plan


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "text is not a saved plan: JSONDecodeError"),
        ("[]", "text is not a saved plan: TypeError"),
        ('{"format": "other"}', "its format is 'other', not 'fewstep-plan-1'"),
        ('{"format": "fewstep-plan-1"}', "KeyError: 'rows'"),
    ],
)
def test_what_is_not_a_plan_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Plan.from_json(text)
    content = json.loads(solvers.get("ddim").compile(EDM, (2.0, 1.0)).to_json())
    content["rows"][1]["terms"][0][1] = 7
    with pytest.raises(ValueError, match=r"row 1 uses x\[7\] before it exists"):
        Plan.from_json(json.dumps(content))


def test_table_shows_every_row():
    build = PlanBuilder(paths.OUVE(), "toy")
    x = build.start(1.0)
    call = build.ask(x)
    v = build.vector({call.e: 2.0})
    build.step(0.5, {x: 0.25, v: -1.5}, noise=0.125)
    plan = build.build()
    lines = str(plan).splitlines()
    assert lines[0] == "toy on OUVE: 1 steps, 1 network calls"
    assert len(lines) == 2 + len(plan.rows)
    assert lines[2].split()[:2] == ["x[0]", "1"]
    assert lines[2].split()[-2:] == ["[0]", "given"]
    assert lines[3].split() == ["x[1]", "2", "E[0]"]
    assert "0.25 x[0] - 1.5 x[1] + 0.125 n[0] + " in lines[4]
    assert lines[4].endswith(" y")
    stacked = Plan.stack([solvers.get("ddim").compile(EDM, (t, 0.0)) for t in (2.0, 4.0)])
    assert "(2, 4)" in str(stacked)
    folded = solvers.get("ddim").compile(paths.RDDM(), grids.uniform(paths.RDDM(), 2))
    assert "out[0].1" in str(folded.folded(predictions.get("residual+noise")))


@pytest.mark.parametrize(
    ("name", "steps", "calls"), [("ddim", 7, 7), ("heun", 7, 13), ("dpmpp-3m", 7, 7), ("ancestral", 1, 1)]
)
def test_nfe_counts_network_calls(name, steps, calls):
    plan = solvers.get(name).compile(EDM, grids.karras(EDM, steps))
    asked = []
    run(
        plan.folded(predictions.get("x0")),
        lambda x, t: asked.append(t) or 0.5 * x,
        start_noise(),
        noise=GivenNoise(torch.randn_like),
    )
    assert plan.nfe == calls == len(asked)
    assert plan.steps == steps
    assert plan.start_time == 80.0
    assert asked[0] == 80.0


def test_plot_marks_every_network_call():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    plan = solvers.get("heun", churn=5.0).compile(EDM, grids.karras(EDM, 5))
    ax = plan.plot()
    assert ax.get_title() == "heun on EDM"
    (line,) = ax.lines
    assert list(line.get_xdata()) == list(range(6))
    assert line.get_ydata()[-1] == 0.0
    calls, draws = ax.collections
    assert len(calls.get_offsets()) == plan.nfe
    assert len(draws.get_offsets()) == plan.draws
    assert plan.plot(ax) is ax
    assert Plan.stack([plan, plan]).plot() is not ax
    assert (
        solvers.get("ddim").compile(paths.RectifiedFlow(), (1.0, 0.0)).plot().lines[0].get_ydata()[0] == 1.0
    )


def test_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'fewstep-core\[plot\]'"):
        solvers.get("ddim").compile(EDM, (1.0, 0.0)).plot()


def test_folding_keeps_y_and_counts_the_same_calls():
    path = paths.ResShift()
    plan = solvers.get("dpmpp-2m").compile(path, grids.uniform(path, 4))
    for name in ("x0", "eps", "residual", "scaled-eps"):
        folded = plan.folded(predictions.get(name))
        kinds = {term.kind for row in folded.rows for term in row.terms}
        assert kinds <= {"x", "out", "y"}
        assert folded.nfe == plan.nfe
        with pytest.raises(ValueError, match="plan is folded already"):
            folded.folded(predictions.get(name))
        with pytest.raises(ValueError, match="save the plan before it is folded"):
            folded.to_json()


def test_an_estimate_that_many_rows_use_becomes_one_row():
    plan = solvers.get("dpmpp-3m", lower_order_below=0).compile(EDM, kappa_grid(EDM, 10.0, 0.1, 10))
    direct = plan.folded(predictions.get("x0"))
    shared = plan.folded(predictions.get("eps"))
    assert len(direct.rows) == 11
    assert len(shared.rows) > 11
    assert shared.steps == direct.steps == 10
    assert max(len(row.terms) for row in shared.rows[8:]) <= 5  # 6 without sharing


def test_ddim_inverse_is_the_table_run_backwards():
    """One iteration: x_t = (x_s - c_e·eps(x_s, t))/c_x with the network told the noisier time."""
    path, grid = EACH_PATH["vp"], kappa_grid(EACH_PATH["vp"], 20.0, 0.05, 10, clean=True)
    denoise = smooth_mixture().denoiser(path)
    wanted = clean = 0.5 * start_noise()
    for s, t in zip(grid[:0:-1], grid[-2::-1], strict=True):
        (a, _, sigma), (at, _, st) = path.coefficients(s), path.coefficients(t)
        eps = (wanted - at * denoise(wanted, t)) / st
        wanted = at / a * (wanted - (sigma - a * st / at) * eps)
    x0 = predictions.get("x0")
    plan = solvers.get("ddim").compile(path, grid)
    inverse = plan.inverse()
    assert (inverse.nfe, inverse.steps, inverse.start_time) == (11, 11, 0.0)
    assert (run(inverse.folded(x0), denoise, clean) - wanted).abs().max() < 1e-11


def test_ddim_inverse_converges_to_the_exact_one():
    path, x0 = EACH_PATH["vp"], predictions.get("x0")
    denoise = smooth_mixture().denoiser(path)
    plan = solvers.get("ddim").compile(path, kappa_grid(path, 20.0, 0.05, 40, clean=True))
    x = start_noise()
    clean = run(plan.folded(x0), denoise, x)
    errors = [(run(plan.inverse(n).folded(x0), denoise, clean) - x).abs().max().item() for n in (1, 3, 30)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-9


def test_inverse_moves_between_frames_of_y():
    path, x0 = EACH_PATH["ouve"], predictions.get("x0")
    y = start_noise(seed=3)
    denoise = smooth_mixture().denoiser(path, y)
    plan = solvers.get("ddim").compile(path, (1.0, 0.9, 0.8, 0.7, 0.6, 0.5))
    x = y + 0.3 * start_noise()
    back = run(plan.inverse(40).folded(x0), denoise, run(plan.folded(x0), denoise, x, y), y)
    assert (back - x).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (solvers.get("ancestral").compile(EDM, (2.0, 1.0)), "ancestral draws noise and has no inverse"),
        (solvers.get("heun").compile(EDM, (2.0, 1.0, 0.5)), "heun has no inverse: its rows are neither"),
        (solvers.get("dpmpp-3m").compile(EDM, (4.0, 2.0, 1.0, 0.5)), "dpmpp-3m has no inverse"),
        (solvers.get("ddim").compile(EDM, (2.0, 1.0)).folded(predictions.get("eps")), "before it is folded"),
    ],
)
def test_plans_without_an_inverse_say_so(plan, message):
    with pytest.raises(ValueError, match=message):
        plan.inverse()


def test_inverse_needs_an_iteration():
    with pytest.raises(ValueError, match="iterations must be at least 1, not 0"):
        solvers.get("ddim").compile(EDM, (2.0, 1.0)).inverse(0)


def test_stack_and_unstack():
    plans = [solvers.get("dpmpp-2m").compile(EDM, (8.0, t, 1.0, 0.0)) for t in (4.0, 2.0, 6.0)]
    stacked = Plan.stack(plans)
    assert stacked.batch == 3
    assert [stacked.unstack(i) for i in range(3)] == plans
    with pytest.raises(ValueError, match=r"sample must lie in \[0, 3\) for this plan, got 3"):
        stacked.unstack(3)
    with pytest.raises(ValueError, match=r"plan 1 \(ddim, 3 rows\) differs from plan 0 \(dpmpp-2m, 4 rows\)"):
        Plan.stack([plans[0], solvers.get("ddim").compile(EDM, (2.0, 1.0, 0.0))])
    with pytest.raises(ValueError, match="at least one plan"):
        Plan.stack([])
    with pytest.raises(ValueError, match="must not be stacked already"):
        Plan.stack([stacked, stacked])


START = Row((), 1.0, True)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ((START, Row((), 0.5)), {}, "row 1 must have terms"),
        ((Row((Term("x", 0, 1.0),), 1.0),), {}, "row 0 must be given"),
        ((START, Row((Term("d", 1, 1.0),), 0.5)), {}, r"row 1 uses d\[1\] before it exists"),
        ((START, Row((Term("x", 0, float("nan")),), 0.5)), {}, r"row 1 needs a finite coefficient on x\[0\]"),
        ((START, Row((Term("x", 0, 1.0),), None, True)), {}, "row 1 asks the network but has no time"),
        ((START,), {"starts": 2}, "starts must be between 1 and the number of rows 1, got 2"),
        ((START,), {"results": (3,)}, r"results must name rows 0 to 0, got \(3,\)"),
    ],
)
def test_a_table_that_cannot_run_is_refused(rows, options, message):
    with pytest.raises(ValueError, match=message):
        Plan(rows, EDM, **options)


def test_builder_refuses_misuse():
    build = PlanBuilder(EDM)
    x = build.start(2.0)
    with pytest.raises(ValueError, match="a plan needs at least one step"):
        build.build()
    build.ask(x)
    with pytest.raises(ValueError, match="asked at this state already"):
        build.ask(x)
    build.step(1.0, {x: 0.5})
    with pytest.raises(ValueError, match="ask takes the newest state"):
        build.ask(x)
    with pytest.raises(ValueError, match="start must come before the first step"):
        build.start(1.0)
    with pytest.raises(ValueError, match="no term with a coefficient other than 0"):
        build.step(0.5, {x: 0.0})
    with pytest.raises(ValueError, match="count must be between 1 and 2"):
        build.build().keeping(3)
