"""The two-stage grid: the published construction on Stable Diffusion's table, early stop, bad input."""

import math
from itertools import pairwise

import pytest
import torch
from tests.core.path_cases import PATHS, SQRT_LINEAR_BETAS

from fewstep.core import grids, paths, sample, solvers
from fewstep.core.grids.two_stage import PRESETS, Preset, two_stage

TABLE = paths.VP.from_betas(SQRT_LINEAR_BETAS)


def karras(count, high, low, rho):
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    return (high ** (1 / rho) + ramp * (low ** (1 / rho) - high ** (1 / rho))) ** rho


@pytest.mark.parametrize(
    ("steps", "points", "stop", "rho"), [(8, 12, 9, 7.0), (6, 8, 6, 5.0), (5, 8, 6, 5.0), (4, 8, 5, 5.0)]
)
def test_published_construction(steps, points, stop, rho):
    """Karras levels of the table, the timestep of one of them, and a grid of power 1.2 down to it."""
    abar = torch.cumprod(1 - SQRT_LINEAR_BETAS, 0)
    log_sigma = (0.5 * (1 - abar).log() - 0.5 * abar.log()).double()
    level = karras(points, log_sigma[-1].exp().item(), log_sigma[0].exp().item(), rho)[stop].log()
    index = int(torch.searchsorted(log_sigma, level)) - 1
    end = index + ((level - log_sigma[index]) / (log_sigma[index + 1] - log_sigma[index])).item()
    wanted = karras(steps + 1, 999.0, end, 1.2)
    got = torch.tensor(two_stage(TABLE, steps, final="early"), dtype=torch.float64)
    # they interpolate log sigma between table entries, our path log a: less than 0.02 of an index apart
    assert (got - wanted).abs().max() < 0.02
    assert got[0] == 999


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_ends(path, steps):
    early = two_stage(path, steps, final="early")
    clean = two_stage(path, steps)
    cut = two_stage(path, steps, final="t_min")
    assert early[:-1] == clean[:-1] == cut[:-1]
    assert (clean[-1], cut[-1]) == (path.t_clean, path.t_min)
    for times in (early, clean, cut):
        assert len(times) == steps + 1
        assert times[0] == path.t_max
        assert all(s > t for s, t in pairwise(times))
    high, low = (path.half_log_snr(t) for t in (path.t_max, path.t_min))
    assert max(high, grids.SNR_FLOOR) < path.half_log_snr(early[-1]) < low


def test_early_stop_keeps_the_noise_of_its_level():
    """On data at one point the state ends at kappa_e; "clean" ends at the point, for the same calls."""
    path, point = paths.EDM(), 0.3
    x = torch.full((1, 1), 80.0, dtype=torch.float64)
    denoise = lambda x, t: torch.full_like(x, point)  # noqa: E731
    early = two_stage(path, 8, final="early")
    got = sample(denoise, path, "ddim", grid=early, x=x + point)
    assert got.item() == pytest.approx(point + early[-1], rel=1e-12)
    assert sample(denoise, path, "ddim", grid=two_stage(path, 8), x=x + point).item() == point
    high, low = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    assert early[-1] == pytest.approx((high + 9 / 11 * (low - high)) ** 7, rel=1e-12)


def test_the_grid_is_the_same_for_the_same_noise_levels():
    """Outside VP paths the timestep is that of VP.linear at the same sigma/a."""
    edm = paths.EDM(sigma_min=0.01, sigma_max=150.0)
    flow = paths.RectifiedFlow()
    for steps in (4, 8):
        times = two_stage(edm, steps, final="early")
        taus = [paths.VP.linear().time_at(-math.log(sigma)) ** (1 / 1.2) for sigma in times]
        gaps = [s - t for s, t in pairwise(taus)]
        assert max(gaps) - min(gaps) < 1e-9
        assert two_stage(flow, steps)[1] < 1.0


def test_other_budgets_take_the_nearest_preset_below():
    for steps, published in ((2, 4), (7, 6), (12, 8)):
        assert two_stage(TABLE, steps) == two_stage(TABLE, steps, preset=PRESETS[published])


def test_by_name():
    assert grids.get("two-stage")(TABLE, 5) == two_stage(TABLE, 5)
    plan = solvers.get("dpmpp-2m").compile(TABLE, two_stage(TABLE, 8))
    assert plan.nfe == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 4, "final": "soon"}, "final must be 'clean' or 't_min', got 'soon'"),
        ({"steps": 4, "rho": -1.0}, "rho must be a finite number above 0, got -1.0"),
        ({"steps": 4, "preset": Preset(8, 8, 5.0)}, "preset must have 0 < stop < points"),
        ({"steps": 4, "preset": Preset(8, 4, 0.0)}, "preset must have .* rho > 0"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        two_stage(TABLE, **options)
