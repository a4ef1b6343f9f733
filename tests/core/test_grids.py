"""Grids: decreasing, exact ends, the published conventions, bad input."""

import functools
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.core.path_cases import LINEAR_BETAS, PATHS, SQRT_LINEAR_BETAS

from fewstep.core import grids, paths

GOLDEN = load_file(Path(__file__).parents[1] / "golden" / "core" / "schedules.safetensors")
TABLE = paths.VP.from_betas(SQRT_LINEAR_BETAS)


@pytest.mark.parametrize("name", grids.names())
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_shape_and_ends(path, name):
    # EDM's VP levels crowd at the noisy end, where a table of four times has one
    for steps in (1, 2) if name == "edm-vp" and path.is_discrete else (1, 2, 3, 4):
        check_shape_and_ends(path, name, steps, grids.get(name)(path, steps))


def check_shape_and_ends(path, name, steps, times):
    assert len(times) == steps + 1
    assert all(isinstance(t, float) for t in times)
    assert all(s > t for s, t in pairwise(times))
    assert times[-1] == path.t_clean
    assert times[-2] >= path.t_min
    # these begin at a level of their own table, or below the noisiest time on purpose
    if name not in ("leading", "mrs-leading", "ddim-quadratic", "edm-iddpm"):
        assert times[0] == path.t_max
    path.coefficients_at(times)  # inside the path


@pytest.mark.parametrize("name", ["uniform", "quadratic", "logsnr", "karras", "linspace"])
@pytest.mark.parametrize("key", ["vp-linear", "edm", "flow", "ouve", "vp-table", "bridge-ve"])
def test_final_t_min(key, name):
    path = PATHS[key]
    times = getattr(grids, name)(path, 5, final="t_min")
    assert len(times) == 6
    assert times[0] == path.t_max
    assert times[-1] == path.t_min
    assert all(s > t for s, t in pairwise(times))


def test_resshift_visits_its_whole_table():
    assert grids.uniform(paths.ResShift(), 4) == (3, 2, 1, 0, -1)
    assert grids.trailing(paths.ResShift(steps=15, min_noise_level=0.04), 15) == tuple(range(14, -2, -1))


def test_rddm_times():
    """Integers of linspace(-1, 999, steps + 1), rounded down."""
    assert grids.uniform(paths.RDDM(), 5) == (999, 799, 599, 399, 199, -1)
    assert grids.uniform(paths.RDDM(), 2) == (999, 499, -1)
    assert grids.uniform(paths.RDDM(), 3) == (999, 665, 332, -1)


@pytest.mark.parametrize("steps", [3, 6, 10])
def test_index_grids_of_diffusers(steps):
    leading = grids.leading(TABLE, steps, offset=1)
    assert list(leading[:-1]) == GOLDEN[f"diffusers.leading.{steps}"].tolist()
    assert list(grids.linspace(TABLE, steps)[:-1]) == GOLDEN[f"diffusers.linspace.{steps}"].tolist()
    assert list(grids.trailing(TABLE, steps)[:-1]) == GOLDEN[f"diffusers.trailing.{steps}"].tolist()


def test_trailing_rounds_before_it_shifts():
    assert grids.trailing(TABLE, 16)[1] == 937  # round(937.5) - 1, halves to even


def test_linspace_that_does_not_ask_at_its_end():
    times = grids.linspace(TABLE, 3, final="t_min")
    assert list(times[:-1]) == GOLDEN["diffusers.linspace_t_min.3"].tolist()
    assert times[-1] == 0


def test_ddim_quadratic_indices():
    expected = [int(x * x) for x in torch.linspace(0, math.sqrt(800), 10, dtype=torch.float64).tolist()]
    times = grids.ddim_quadratic(TABLE, 10)
    assert list(times[:-1]) == pytest.approx(expected[::-1], abs=0)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("vp_linear", paths.VP.linear()),
        ("discrete_ddpm", paths.VP.from_betas(LINEAR_BETAS)),
        ("discrete_sd", TABLE),
    ],
)
def test_logsnr_grid_of_dpm_solver(name, path):
    times = torch.tensor(grids.logsnr(path, 10, final="t_min"), dtype=torch.float64)
    golden = GOLDEN[f"dpm_solver.{name}.grid.logSNR.10"]
    expected = golden * 1000 - 1 if path.is_discrete else golden
    torch.testing.assert_close(times, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("grid", "name"), [("uniform", "time_uniform"), ("quadratic", "time_quadratic")])
def test_time_grids_of_dpm_solver(grid, name):
    times = torch.tensor(getattr(grids, grid)(paths.VP.linear(), 10, final="t_min"), dtype=torch.float64)
    torch.testing.assert_close(times, GOLDEN[f"dpm_solver.vp_linear.grid.{name}.10"], rtol=1e-12, atol=1e-14)


def test_grids_of_deis():
    path = paths.VP.linear()
    for golden, times in (
        ("t_ab0.None.t2.n10", grids.power(path, 10, "t_min", exponent=2.0)),
        ("t_ab1.None.log1.n3", grids.logsnr(path, 3, "t_min")),
        ("rho_rk0.3kutta.rho7.n6", grids.karras(path, 6, "t_min", rho=7.0)),
    ):
        torch.testing.assert_close(
            torch.tensor(times, dtype=torch.float64), GOLDEN["deis." + golden], rtol=1e-9, atol=1e-10
        )


def test_karras_sigmas():
    ours = torch.tensor(grids.karras(paths.EDM(sigma_min=0.02), 10), dtype=torch.float64)
    torch.testing.assert_close(ours, GOLDEN["k_diffusion.karras.10"], rtol=1e-12, atol=0)
    exponential = torch.tensor(grids.logsnr(paths.EDM(sigma_min=0.02), 10), dtype=torch.float64)
    torch.testing.assert_close(exponential, GOLDEN["k_diffusion.exponential.10"], rtol=1e-12, atol=0)
    edm = torch.tensor(grids.karras(paths.EDM(), 10))
    torch.testing.assert_close(edm, GOLDEN["diffusers.edm.10"].float(), rtol=2e-6, atol=0)


def test_karras_on_a_table_lies_between_the_integers():
    times = torch.tensor(grids.karras(TABLE, 6), dtype=torch.float64)
    ratio = torch.exp(-TABLE.half_log_snr_at(times[:-1]))
    golden = GOLDEN["diffusers.karras_sigmas.6"][:-1].double()
    # their table is float32, its cleanest sigma known to 1e-5
    torch.testing.assert_close(ratio, golden, rtol=2e-5, atol=0)
    # their time interpolates log sigma, ours log a: the same levels, times within a tenth of an index
    assert (times[:-1] - GOLDEN["diffusers.karras.6"]).abs().max() < 0.1


def test_logsnr_steps_are_equal():
    path = paths.OUVE()
    lam = path.half_log_snr_at(torch.tensor(grids.logsnr(path, 8, final="t_min"), dtype=torch.float64))
    gaps = lam.diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-11, atol=0)


@pytest.mark.parametrize("key", ["flow", "rddm", "resfusion-12", "bridge-ve", "vp-cosine-to-pure-noise"])
def test_logsnr_starts_exactly_where_there_is_no_signal(key):
    path = PATHS[key]
    times = grids.logsnr(path, 4)
    assert times[0] == path.t_max
    deeper = grids.logsnr(path, 4, floor=-8.0)
    assert deeper[1] > times[1]  # a lower floor spends more of the grid near pure noise


def test_many_uniform_steps_never_ask_below_t_min():
    path = paths.VP.linear()
    times = grids.uniform(path, 2000)
    assert times[-2] == path.t_min
    assert times[-1] == 0


def test_explicit_times():
    grid = grids.explicit([3, 1, -1])
    assert grid(paths.ResShift(), 2) == (3.0, 1.0, -1.0)
    assert hash(grid) == hash(grids.explicit((3.0, 1.0, -1.0)))
    assert grids.get([3, 1, -1]) == grid
    assert grids.get(grids.karras) is grids.karras
    gentle = grids.get(functools.partial(grids.karras, rho=3.0))
    assert gentle(paths.EDM(), 3)[1] > grids.karras(paths.EDM(), 3)[1]


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: grids.get("cosine"), ValueError, "grid must be one of .*'uniform'.*got 'cosine'"),
        (lambda: grids.uniform(paths.EDM(), 0), ValueError, "steps must be at least 1, got 0"),
        (lambda: grids.logsnr(paths.EDM(), 5, final="zero"), ValueError, "final must be 'clean' or 't_min'"),
        (lambda: grids.uniform(paths.ResShift(), 5), ValueError, "steps=5 is too many"),
        (lambda: grids.leading(paths.ResShift(), 9), ValueError, "steps=9 is too many"),
        (lambda: grids.leading(TABLE, 5, final="t_min"), ValueError, "already asks at 0"),
        (lambda: grids.karras(paths.EDM(), 5, rho=0.0), ValueError, "rho"),
        (lambda: grids.power(paths.EDM(), 5, exponent=-1.0), ValueError, "exponent"),
        (lambda: grids.explicit([1.0]), ValueError, "start and an end"),
        (lambda: grids.explicit([0.2, 0.7]), ValueError, "strictly decreasing"),
        (lambda: grids.explicit([2.0, 0.0])(paths.RectifiedFlow(), 1), ValueError, "got 2.0"),
        (lambda: grids.explicit([1.0, 0.0])(paths.RectifiedFlow(), 3), ValueError, "steps must be 1"),
    ],
)
def test_bad_input_names_the_argument(make, error, words):
    with pytest.raises(error, match=words):
        make()
