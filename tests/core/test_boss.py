"""The dynamic programme over grids: golden cases, exactness of the costs, grids that are better for DDIM."""

import itertools

import pytest
import torch
from tests.core.goldens import Golden
from tests.core.solver_problems import Mixture, kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths, solvers
from fewstep.core.sample import sample
from fewstep.core.search import ReferenceDistance, Starts, boss_times, shortest_path, step_costs

GOLDEN = Golden("misc_official")
PATHS = {"edm": paths.EDM(), "vp": paths.VP.linear(), "flow": paths.RectifiedFlow()}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@GOLDEN.each(lambda case: case["kind"] == "boss_dp")
def test_the_published_programme(case):
    indices, cost = shortest_path(GOLDEN.of(case, "in.cost"), case["steps"])
    assert indices == GOLDEN.of(case, "out.path").tolist()
    assert abs(cost - case["cost"]) < 1e-12


def test_every_boss_case_is_used():
    assert not [name for name in GOLDEN.unused() if name.startswith("boss")]


@pytest.mark.parametrize("steps", [1, 2, 3, 6])
def test_no_other_way_is_cheaper(steps):
    cost = torch.rand(7, 7, generator=torch.Generator().manual_seed(steps))
    indices, total = shortest_path(cost, steps)
    ways = [(0, *inner, 6) for inner in itertools.combinations(range(1, 6), steps - 1)]
    costs = [sum(cost[i, j].item() for i, j in itertools.pairwise(way)) for way in ways]
    assert len(indices) == steps + 1
    assert abs(total - min(costs)) < 1e-6


def test_what_lies_below_the_diagonal_is_not_read():
    cost = torch.rand(6, 6, dtype=torch.float64)
    poisoned = cost.triu(1) + torch.full_like(cost, -torch.inf).tril()
    assert shortest_path(poisoned.nan_to_num(nan=-1.0), 3) == shortest_path(cost, 3)


@pytest.mark.parametrize(
    ("cost", "steps", "message"),
    [
        (torch.zeros(3, 4), 1, r"cost must be a square matrix, its shape is \(3, 4\)"),
        (torch.zeros(4, 4), 0, "steps must be between 1 and 3 for 4 indices, not 0"),
        (torch.zeros(4, 4), 4, "steps must be between 1 and 3 for 4 indices, not 4"),
    ],
)
def test_bad_input_is_named(cost, steps, message):
    with pytest.raises(ValueError, match=message):
        shortest_path(cost, steps)


def trajectory(path, times, denoise):
    """States and denoised samples of first-order steps on a grid."""
    states, denoised = [], []

    def record(x, t):
        states.append(x.clone())
        denoised.append(denoise(x, t))
        return denoised[-1]

    first = path.coefficients(times[0])[2]
    end = sample(record, path, "ddim", grid=times, x=first * start_noise())
    return torch.stack([*states, end]), torch.stack(denoised)


@each_path
def test_the_cost_of_a_step_that_was_made_is_zero(path):
    times = kappa_grid(path, 20.0, 0.02, 6, clean=True)
    cost = step_costs(path, times, *trajectory(path, times, smooth_mixture().denoiser(path)))
    assert cost.diagonal(1).abs().max() < 1e-20
    assert cost.triu(2).max() > 1e-4
    assert cost.tril().abs().max() == 0.0


def test_costs_and_grids_are_the_same_on_every_path():
    """The frame z/a makes the cost a property of the trajectory, not of the path."""
    mixture, found, grids_found = smooth_mixture(), [], []
    for path in PATHS.values():
        times = kappa_grid(path, 20.0, 0.02, 12)
        cost = step_costs(path, times, *trajectory(path, times, mixture.denoiser(path)))
        found.append(cost)
        grids_found.append(shortest_path(cost, 4)[0])
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-9
    assert grids_found[1:] == grids_found[:1] * 2


def test_one_gaussian_costs_nothing_from_pure_noise():
    """At a = 0 the denoised sample is the mean, and one step is exact for a point mass."""
    path = paths.RectifiedFlow()
    mixture = Mixture(torch.ones(1, 12).double(), torch.tensor([1e-9]).double(), torch.ones(1).double())
    times = (1.0, 0.6, 0.3, 0.0)
    cost = step_costs(path, times, *trajectory(path, times, mixture.denoiser(path)))
    assert cost.max() < 1e-12


@each_path
def test_the_grid_serves_ddim_better_than_log_snr(path):
    denoise = Golden("gm_accuracy").mixture().denoiser(path)
    starts = Starts.draw(denoise, path, (48, 3, 4, 4), 7, dtype=torch.float64)
    score = ReferenceDistance(starts, "median", 64)
    times = boss_times(denoise, path, 6, starts.first(24).at(path.t_max), points=60)
    assert len(times) == 7
    assert (times[0], times[-1]) == (path.t_max, path.t_clean)
    ddim = solvers.get("ddim")
    # measured: 0.10 against 0.19 to 0.21
    assert score(ddim.compile(path, times)) < 0.75 * score(ddim.compile(path, grids.logsnr(path, 6)))


def test_a_path_with_y_and_a_table():
    path = paths.ResShift()
    y, noise = start_noise(seed=1), start_noise(seed=2)
    denoise = smooth_mixture().denoiser(path, y)
    times = boss_times(denoise, path, 4, path.start(noise, y), y=y)
    assert all(t == round(t) for t in times)
    assert (times[0], times[-1]) == (path.t_max, path.t_clean)
