"""The probability flow integrated with tolerances: end points, densities, SciPy, batches, frames."""

import math
from itertools import pairwise

import numpy
import pytest
import torch
from scipy.integrate import solve_ivp
from tests.core.goldens import Golden
from tests.core.solver_problems import smooth_mixture, start_noise
from tests.core.test_solvers import WithoutY

from fewstep.core import paths
from fewstep.core.likelihood import density_change
from fewstep.core.sample import sample
from fewstep.core.solvers.dormand_prince import Tolerance, dormand_prince
from fewstep.core.solvers.ode45 import RK45, Flow, carry

GOLDEN = Golden("exact_pf_ode")
MIXTURE = GOLDEN.mixture()
SMOOTH = smooth_mixture()


def problem(case):
    """(path, start time, end time)."""
    kind = case["name"].removeprefix("logp.").split("_")[0]
    path = {"vp": paths.VP.linear(), "edm": paths.EDM(sigma_min=1e-7), "flow": paths.RectifiedFlow()}[kind]
    start, end = (path.time_at(math.log(case[f"alpha_{k}"] / case[f"sigma_{k}"])) for k in "st")
    return path, float(start), float(end)


@GOLDEN.each(lambda case: not case["name"].startswith("logp"))
def test_end_points(case):
    path, start, end = problem(case)
    tight = Tolerance(1e-11, 1e-11)
    got = carry(MIXTURE.denoiser(path), path, GOLDEN.of(case, "in.x"), start, end, tight).z
    assert (got - GOLDEN.of(case, "out.x")).abs().max() < 1e-9


@GOLDEN.each(lambda case: case["name"].startswith("logp"))
def test_log_density_changes(case):
    path, start, end = problem(case)
    x = GOLDEN.tensors[f"{case['name'].removeprefix('logp.')}.in.x"]
    _, change = density_change(MIXTURE.denoiser(path), path, x, start, end, rtol=3e-9, atol=3e-9)
    wanted = GOLDEN.of(case, "out.logp_s") - GOLDEN.of(case, "out.logp_t")
    assert (change - wanted).abs().max() < 1e-6


def test_every_case_has_a_test():
    assert GOLDEN.unused() == []


@pytest.mark.parametrize(
    "path", [paths.VP.linear(), paths.SubVP(), paths.VE()], ids=lambda p: type(p).__name__
)
def test_official_mode_is_scipy(path):
    """One step size for the whole batch and the time as clock: the same calls, the same numbers."""
    x = path.start(start_noise())
    end, calls = path.t_min, []
    denoise = SMOOTH.denoiser(path)

    def drift(t, flat):
        a, _, sigma = path.coefficients(t)
        da, _, dsigma = path.derivatives(t)
        z = torch.from_numpy(flat).view_as(x)
        growth = 2 * sigma * dsigma - 2 * da / a * sigma**2
        score = (a * denoise(z, t) - z) / sigma**2
        return (da / a * z - 0.5 * growth * score).numpy().ravel()

    known = solve_ivp(drift, (1.0, end), x.numpy().ravel(), rtol=1e-5, atol=1e-5, method="RK45")
    got = carry(
        lambda z, t: calls.append(t) or denoise(z, t), path, x, 1.0, end, Tolerance(norm="batch"), "time"
    ).z
    assert len(calls) == known.nfev
    wanted = numpy.asarray(known.y[:, -1]).reshape(x.shape)
    assert (got - torch.from_numpy(wanted)).abs().max() < 1e-9


def test_a_sample_does_not_depend_on_its_batch_mates():
    path = paths.EDM()
    x = path.start(start_noise(6))
    x[0] *= 3.0  # a sample that needs other steps than the rest
    run = lambda x, norm="sample": sample(SMOOTH.denoiser(path), path, RK45(norm=norm), x=x)  # noqa: E731
    together, apart = run(x), torch.cat([run(x[i : i + 1]) for i in range(6)])
    assert (together - apart).abs().max() < 1e-12
    coupled = run(x, "batch")
    assert (coupled - torch.cat([run(x[i : i + 1], "batch") for i in range(6)])).abs().max() > 1e-9


def test_the_noise_levels_are_all_that_matters():
    """VP, EDM and flow forms give the same trajectory, at the same number of calls."""
    states, counts = [], []
    for path in (paths.EDM(), paths.VP.linear(), paths.RectifiedFlow(), paths.VP.cosine(t_max=1.0)):
        start, end = (float(path.time_at(-math.log(kappa))) for kappa in (20.0, 0.02))
        calls = []
        a = path.coefficients(start)[0]
        denoise = SMOOTH.denoiser(path)
        ask = lambda z, t, d=denoise, c=calls: c.append(t) or d(z, t)  # noqa: E731
        done = carry(ask, path, 20.0 * a * start_noise(), start, end, Tolerance())
        states.append(done.z / path.coefficients(end)[0])
        counts.append(len(calls))
    assert len(set(counts)) == 1
    for other in states[1:]:
        assert (other - states[0]).abs().max() < 1e-10


@pytest.mark.parametrize("path", [paths.RectifiedFlow(), paths.VP.cosine(t_max=1.0)], ids=["flow", "cosine"])
def test_it_starts_from_pure_noise_and_ends_clean(path):
    """a = 0 at the start: D is the mean of the data there; the end is D, finite and close to the flow's."""
    x = start_noise()
    got = sample(SMOOTH.denoiser(path), path, "ode45", x=x, grid=(path.t_max, path.t_clean))
    fine = sample(SMOOTH.denoiser(path), path, "dpmpp-2m", 250, x=x)
    assert got.isfinite().all()
    assert (got - fine).abs().max() < 4e-3


def test_with_y_it_equals_the_plain_path_on_z():
    path, y, noise = paths.OUVE(), start_noise(seed=1), start_noise(seed=2)
    b = path.coefficients(path.t_max)[1]
    x = path.start(noise, y)
    got = sample(SMOOTH.denoiser(path, y), path, "ode45", x=x, y=y)
    plain = sample(SMOOTH.denoiser(path), WithoutY(path), "ode45", grid=(1.0, path.t_clean), x=x - b * y)
    assert (got - plain).abs().max() < 1e-12


def test_error_falls_with_the_tolerance_and_calls_are_few():
    path, x, found = paths.EDM(), 80.0 * start_noise(), {}
    exact = carry(SMOOTH.denoiser(path), path, x, 80.0, 0.002, Tolerance(1e-12, 1e-12)).z
    for tolerance in (1e-3, 1e-5, 1e-7):
        calls = []
        denoise = SMOOTH.denoiser(path)
        ask = lambda z, t, c=calls, d=denoise: c.append(t) or d(z, t)  # noqa: E731
        got = carry(ask, path, x, 80.0, 0.002, Tolerance(tolerance, tolerance)).z
        found[tolerance] = ((got - exact).abs().max().item(), len(calls))
    assert found[1e-3][0] < 1e-2
    assert found[1e-5][0] < 2e-4
    assert found[1e-7][0] < 1e-6
    assert found[1e-3][1] < found[1e-5][1] < found[1e-7][1] < 150
    assert found[1e-5][1] <= 56


def test_watchers_see_every_step_and_may_stop_and_edit():
    path, seen = paths.EDM(), []

    def watch(info):
        seen.append((info.t.clone(), info.x.clone(), info.nfe))
        if info.step == 2:
            info.x.mul_(0.5)
        return info.step < 4

    got = sample(SMOOTH.denoiser(path), path, "ode45", x=80.0 * start_noise(), on_step=watch)
    assert [nfe for *_, nfe in seen] == [
        8,
        14,
        21,
        27,
    ]  # first size 2, a step 6, edit 1
    assert torch.equal(got, seen[-1][1])
    assert all((late[0] <= early[0]).all() for early, late in pairwise(seen))
    assert (seen[2][1].abs() < 0.7 * seen[1][1].abs()).float().mean() > 0.9


def test_harmonic_motion_with_a_period_per_sample():
    speed = torch.tensor([[1.0], [7.0]], dtype=torch.float64)
    state = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    slope = lambda v, s: torch.cat([s[:, 1:], -s[:, :1]], 1) * speed  # noqa: E731
    ends = torch.zeros(2, dtype=torch.float64), torch.tensor([3.0, -2.0], dtype=torch.float64)
    v, got, last = dormand_prince(slope, *ends, state, Tolerance(1e-9, 1e-9))
    angle = (speed * ends[1][:, None])[:, 0]
    assert torch.equal(v, ends[1])
    assert (got - torch.stack([angle.cos(), -angle.sin()], 1)).abs().max() < 1e-7
    assert (last - slope(v, got)).abs().max() < 1e-12


def test_a_slope_that_is_not_finite_is_an_error_not_a_hang():
    with pytest.raises(RuntimeError, match="fell below the resolution of its clock"):
        sample(lambda x, t: x * float("nan"), paths.EDM(), "ode45", shape=(2, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rtol": 0.0}, "rtol must be a finite number above 0, not 0.0"),
        ({"atol": float("nan")}, "atol must be a finite number above 0, not nan"),
        ({"clock": "sigma"}, "clock must be 'angle' or 'time', not 'sigma'"),
        ({"norm": "max"}, "norm must be 'sample' or 'batch', not 'max'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        RK45(**options)
    if "clock" in options:
        with pytest.raises(ValueError, match=message):
            Flow(paths.EDM(), **options)
