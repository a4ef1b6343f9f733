"""GM-A: our best sampler is at or below the best published row at every budget, on every track.

The published figures are those of the golden file: official codes, k-diffusion and diffusers. Samplers are
chosen by name and grids by name, never tuned on the exact end points.
"""

import json

import pytest
from tests.core import gm_a
from tests.core.goldens import FOLDER

from fewstep.core import solvers

ANCHORS = json.loads((FOLDER / "gm_accuracy.json").read_text())["anchors"]
PLAIN = ("lambda-ab-2", "lambda-ab-3", "ipndm-3", "ipndm-4", "unipc-4", "bdia")
GRIDS = {
    "edm": (("logsnr", "t_min"), ("karras", "t_min"), ("karras", "clean")),
    "vp": (("logsnr", "clean"), ("karras", "clean"), ("trailing", "clean")),
    "flow": (("logsnr", "clean"), ("karras", "clean"), ("uniform", "clean")),
}


def anchor(track, budget, key, informed):
    """Least published error; only v3 with its statistics knows something of the network."""
    rows = {
        name: row[str(budget)][key]
        for name, row in ANCHORS.items()
        if name.startswith(track) and informed == ("v3" in name and "degen" not in name)
    }
    return min(rows.values())


@pytest.mark.parametrize("budget", gm_a.BUDGETS)
@pytest.mark.parametrize("name", gm_a.TRACKS)
def test_plain_solvers_reach_the_best_published_row(name, budget):
    """In the median and in the root mean square, each by some solver that knows nothing of the data."""
    track = gm_a.TRACKS[name]
    found = [
        gm_a.measured(track, solvers.get(solver), grid, budget, final)
        for solver in PLAIN
        for grid, final in GRIDS[name]
    ]
    errors = [error for error in found if error is not None]
    assert all(error.calls <= budget for error in errors)
    for key in ("median", "rms"):
        assert min(getattr(error, key) for error in errors) <= anchor(name, budget, key, informed=False), key


@pytest.mark.parametrize("budget", gm_a.BUDGETS)
def test_statistics_and_a_gaussian_jump_reach_the_best_published_statistics(budget):
    track = gm_a.TRACKS["edm"]
    solver = solvers.get("dpm-v3", statistics=gm_a.statistics())
    errors = [gm_a.teleported(track, solver, kappa, "karras", budget, "t_min") for kappa in (4.0, 6.0, 10.0)]
    assert all(error.calls == budget for error in errors)
    for key in ("median", "rms"):
        assert min(getattr(error, key) for error in errors) <= anchor("edm", budget, key, informed=True), key


@pytest.mark.parametrize("budget", gm_a.BUDGETS)
def test_statistics_alone_are_as_good_as_the_published_ones(budget):
    """Ours are estimated from other draws, hence the tenth."""
    track = gm_a.TRACKS["edm"]
    errors = [
        gm_a.measured(
            track,
            solvers.get("dpm-v3", solver_order=order, statistics=gm_a.statistics(), variant=variant),
            grid,
            budget,
            "t_min",
        )
        for order, grid in ((2, "karras"), (3, "karras"), (3, "logsnr"))
        for variant in ("exact", "official")
    ]
    best = min(error.median for error in errors if error is not None)
    assert best <= 1.1 * anchor("edm", budget, "median", informed=True)


def test_a_jump_alone_improves_a_plain_solver():
    track = gm_a.TRACKS["edm"]
    for budget in gm_a.BUDGETS:
        plain = gm_a.measured(track, solvers.get("unipc-3"), "logsnr", budget, "t_min")
        jumped = gm_a.teleported(track, solvers.get("unipc-3"), 10.0, "logsnr", budget, "t_min")
        assert plain is not None
        assert jumped.median < 0.6 * plain.median
