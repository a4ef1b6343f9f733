"""EVODiff against trajectories of the published code, and what the published code cannot do."""

import pytest
import torch
from tests.core.goldens import Golden, assert_relative
from tests.core.solver_problems import kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths
from fewstep.core.sample import sample
from fewstep.core.solvers import get

GOLDEN = Golden("evodiff_official")
EDM = paths.EDM()


def times(case):
    if case["skip_type"] == "time_uniform":
        inner = torch.linspace(80.0, 0.002, case["steps"] + 1, dtype=torch.float64).tolist()
    else:
        grid = {"logSNR": grids.logsnr, "edm": grids.karras}[case["skip_type"]]
        inner = list(grid(EDM, case["steps"], final="t_min"))
    return [*inner, 0.0] if case["denoise_to_zero"] else inner


@GOLDEN.each()
def test_evodiff_official(case):
    """Also the states at which the network is asked."""
    asked = []

    def denoise(x, t):
        asked.append(x)
        return GOLDEN.mixture().denoiser(EDM)(x, t)

    solver = get("evodiff", lower_order_final=case["lower_order_final"])
    got = sample(denoise, EDM, solver, grid=times(case), x=80.0 * GOLDEN.z)
    assert_relative(got, GOLDEN.of(case, "out.x"), 1e-9)
    assert_relative(torch.stack(asked), GOLDEN.of(case, "out.evals"), 1e-9)
    assert len(asked) == case["nfe"]


def test_no_case_is_forgotten():
    assert GOLDEN.unused() == []


@pytest.mark.parametrize("shape", [(12,), (3, 4), (3, 2, 2), (3, 1, 2, 2)])
def test_samples_of_any_rank_follow_the_same_rule(shape):
    """The published code takes (batch, channels, height, width) only; one pixel row more changes nothing."""
    x = 80.0 * start_noise()
    grid = grids.karras(EDM, 6)
    path = sample(smooth_mixture().denoiser(EDM), EDM, "evodiff", grid=grid, x=x)
    got = sample(smooth_mixture().denoiser(EDM), EDM, "evodiff", grid=grid, x=x.reshape(4, *shape))
    if shape != (12,):  # without pixels the products sum over the whole sample
        assert torch.allclose(got.reshape(x.shape), path, atol=1e-12)
    whole = get("evodiff", over="sample")
    one, other = (
        sample(smooth_mixture().denoiser(EDM), EDM, whole, grid=grid, x=x.reshape(4, *form))
        for form in (shape, (12,))
    )
    assert torch.allclose(one.flatten(1), other, atol=1e-12)
    assert got.isfinite().all()


@pytest.mark.parametrize("path", [paths.VP.linear(), paths.RectifiedFlow(), paths.OUVE()])
def test_it_lives_in_the_normalised_frame(path):
    """The same trajectory of z/a on every path, y or not; a sample does not depend on its batch mates."""
    y = start_noise(seed=1) if path.uses_y else None
    found = []
    for where, shift in ((EDM, None), (path, y)):
        grid = kappa_grid(where, 1.2, 0.06, 6)
        (a, b, _), (a_end, b_end, _) = where.coefficients(grid[0]), where.coefficients(grid[-1])
        offset, end = (0.0, 0.0) if shift is None else (b * shift, b_end * shift)
        x = 1.2 * a * start_noise() + offset
        denoise = smooth_mixture().denoiser(where, shift)
        found.append((sample(denoise, where, "evodiff", grid=grid, x=x, y=shift) - end) / a_end)
        if shift is None:
            alone = sample(denoise, where, "evodiff", grid=grid, x=x[2:3])
            assert (alone / a_end - found[0][2:3]).abs().max() < 1e-12
    assert (found[0] - found[1]).abs().max() < 1e-10


def test_a_channel_without_content_does_not_become_nan():
    got = sample(lambda x, t: torch.zeros_like(x), EDM, "evodiff", grid=grids.karras(EDM, 5), x=start_noise())
    assert torch.equal(got, torch.zeros_like(got))


def test_it_stops_when_told_and_names_a_wrong_option():
    seen = []
    sample(
        smooth_mixture().denoiser(EDM),
        EDM,
        "evodiff",
        grid=grids.karras(EDM, 6),
        x=80.0 * start_noise(),
        on_step=lambda info: seen.append(info.nfe) or info.step < 3,
    )
    assert seen == [1, 3, 4]
    with pytest.raises(ValueError, match="over must be 'channel' or 'sample', not 'pixel'"):
        get("evodiff", over="pixel")
