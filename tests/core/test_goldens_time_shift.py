"""The Time-Shift sampler against the published code, and what it promises besides."""

import numpy
import pytest
import torch
from tests.core.goldens import Golden, assert_relative
from tests.core.solver_problems import Asked, smooth_mixture, start_noise

from fewstep.core import grids, paths, predictions, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers.time_shift import TimeShift, matching_times

GOLDEN = Golden("ts_dpm_official")
# Their table and the coefficients of a step are float32: a few roundings of 6e-8 in each of up to 49 steps.
TOLERANCE = 5e-6
METHODS = {"euler": "ddim", "s_pndm": "s-pndm", "f_pndm": "f-pndm"}


def float32_path():
    """The path whose alpha-bar table is theirs: a running product in float32."""
    betas = torch.from_numpy(numpy.linspace(1e-4, 0.02, 1000)).float()
    level = (1.0 - betas).cumprod(0).double()
    return paths.VP.from_betas(1.0 - level / torch.cat([level.new_ones(1), level[:-1]]))


PATH = float32_path()


def rounding_network():
    """Noise prediction that knows only integer times, as the published one in the recording."""

    def x0(x, t):
        times = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        told = times.round()
        a, _, sigma = PATH.evaluate(told)
        eps = (x - column(a) * GOLDEN.mixture().x0(x, a, sigma)) / column(sigma)
        a, _, sigma = PATH.evaluate(times)
        return (x - column(sigma) * eps) / column(a)

    return Asked(x0, PATH, predictions.get("eps"))


def column(values):
    return values.view(-1, 1, 1, 1)


def nominal_times(case):
    return [*[float(t + 1) for t in reversed(range(0, 1000, 1000 // case["S"]))][1:], 0.0]


@GOLDEN.each()
def test_trajectory(case):
    times = nominal_times(case)
    solver = TimeShift(
        METHODS[case["method"]],
        "official",
        window=float(case["window_size"] or 0),
        cutoff=float(case["cut_off_value"] or 0),
    )
    states = []
    got = sample(
        rounding_network(),
        solver=solver,
        grid=times,
        x=GOLDEN.z,
        on_step=lambda info: states.append(info.x.clone()),
    )
    assert_relative(torch.stack(states), GOLDEN.of(case, "out.traj"), TOLERANCE)
    assert_relative(got, GOLDEN.of(case, "out.x"), TOLERANCE)


@GOLDEN.each(lambda case: case["shift"])
def test_chosen_times(case):
    """The published times after each step but the first, from the published states before it."""
    targets, half = nominal_times(case)[2:], case["window_size"] // 2
    for t, state, wanted in zip(
        targets, GOLDEN.of(case, "out.traj"), GOLDEN.of(case, "out.tnext"), strict=False
    ):
        near = [t + k for k in range(-half, half + 1)]
        got = matching_times(PATH, state, near) if t > case["cut_off_value"] else torch.full_like(wanted, t)
        assert torch.equal(got, wanted)
        assert not (t > 500 and case["window_size"] == 60) or (got != t).any()


def test_every_case_is_used():
    assert not GOLDEN.unused()


MIXTURE = smooth_mixture()
METHOD_NAMES = list(METHODS.values())
VP = paths.VP.linear()


@pytest.mark.parametrize(
    "path", [paths.VP.linear(), paths.RectifiedFlow(), PATH], ids=["vp", "flow", "table"]
)
@pytest.mark.parametrize("method", METHOD_NAMES)
def test_without_a_window_it_is_the_plain_method(method, path):
    denoise, grid = MIXTURE.denoiser(path), grids.trailing(path, 12)
    wanted = sample(denoise, path, solvers.get(method), grid=grid, x=start_noise())
    # the published Runge-Kutta start tells the network the middle between two entries of a table
    for mode in ("paper",) if method == "f-pndm" and path.is_discrete else ("paper", "official"):
        got = sample(denoise, path, TimeShift(method, mode, window=0), grid=grid, x=start_noise())
        assert (got - wanted).abs().max() < 1e-11


def test_the_network_is_told_the_fitting_time_of_each_sample():
    asked, states = [], []

    def denoise(x, t):
        asked.append(t)
        states.append(x)
        return MIXTURE.denoiser(PATH)(x, t)

    grid, solver = grids.trailing(PATH, 10), TimeShift(window=30, cutoff=300)
    got = sample(denoise, PATH, solver, grid=grid, x=start_noise())
    assert torch.equal(got, MIXTURE.denoiser(PATH)(states[-1], asked[-1]))
    moved = 0
    for t, told, x in zip(grid, asked, states, strict=False):
        if t in (grid[0], *(late for late in grid if late <= 300)):
            assert told == t
            continue
        assert told.shape == (4,)
        assert torch.equal(told, matching_times(PATH, x, [t + k for k in range(-15, 16)]))
        moved += (told != t).sum().item()
    assert moved > 10


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("mode", ["paper", "official"])
def test_a_sample_does_not_depend_on_its_batch_mates(method, mode):
    solver, denoise = TimeShift(method, mode, window=60), MIXTURE.denoiser(PATH)
    together = sample(denoise, PATH, solver, grid="trailing", x=start_noise())
    for i in range(4):
        alone = sample(denoise, PATH, solver, grid="trailing", x=start_noise()[i : i + 1])
        assert (together[i : i + 1] - alone).abs().max() < 1e-12


@pytest.mark.parametrize("variance", [0.0, 0.25])
def test_matching_times_find_the_level_of_a_sample(variance):
    """The variance of 60 000 elements is known to about 0.6 %, here to two table entries."""
    generator = torch.Generator().manual_seed(0)
    a, _, sigma = PATH.coefficients(300.0)
    x0, noise = torch.randn(2, 4, 3, 100, 200, generator=generator, dtype=torch.float64)
    z = a * variance**0.5 * x0 + sigma * noise
    found = matching_times(PATH, z, [250.0 + k for k in range(101)], variance)
    assert (found - 300.0).abs().max() < 6


def test_a_run_can_be_stopped():
    times = []

    def stop(info):
        times.append(info.t)
        return len(times) < 3

    grid = grids.trailing(PATH, 10)
    got = sample(MIXTURE.denoiser(PATH), PATH, "ts-ddim", grid=grid, x=start_noise(), on_step=stop)
    assert times == list(grid[1:4])
    assert got.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TimeShift("euler"), "method must be one of ddim, s-pndm, f-pndm; not 'euler'"),
        (lambda: TimeShift(mode="mine"), "mode must be 'paper' or 'official', not 'mine'"),
        (lambda: TimeShift(window=-1.0), "window must be a finite number of at least 0, not -1.0"),
        (lambda: TimeShift(cutoff=float("nan")), "cutoff must be a number, not nan"),
        (lambda: TimeShift(data_variance=-0.1), "data_variance must be a finite number of at least 0"),
        (lambda: TimeShift().compile(PATH, (2.0, 1.0)), "ts-ddim has no plan"),
        (
            lambda: sample(lambda x, t: x, PATH, "ts-ddim", grid="trailing", shape=(3, 1)),
            "needs two elements at least",
        ),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
