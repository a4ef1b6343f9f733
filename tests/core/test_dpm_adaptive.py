"""Adaptive DPM-Solver: tolerance, samples that do not depend on their batch, the ends of a path, refusals."""

import math

import pytest
import torch
from tests.core.goldens import Golden
from tests.core.solver_problems import kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers.dpm_adaptive import DPMAdaptive
from fewstep.core.solvers.dpm_control import PID, Integral

MIXTURE = smooth_mixture()
PATHS = {"edm": paths.EDM(), "vp": paths.VP.linear(), "flow": paths.RectifiedFlow()}
ADAPTIVE = ("dpm-12", "dpm-23", "dpmpp-12", "dpmpp-23")


def run_adaptive(solver, path=PATHS["vp"], x=None, grid=(1.0, 1e-3), **options):
    calls = []

    def keep(info):
        calls.append(info.nfe)

    x = start_noise(6) if x is None else x
    got = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=x, on_step=keep, **options)
    return got, calls


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_smaller_tolerance_gives_a_smaller_error_for_more_calls(name):
    fine, _ = run_adaptive(DPMAdaptive(rtol=1e-5, atol=1e-6))
    found = []
    for tolerance in (1e-1, 1e-2, 1e-3):
        got, calls = run_adaptive(solvers.get(name, rtol=tolerance, atol=0.1 * tolerance))
        found.append(((got - fine).square().mean().sqrt().item(), calls[-1]))
    assert found[0][0] > 2 * found[1][0] > 4 * found[2][0]
    assert found[0][1] < found[1][1] < found[2][1]
    assert found[2][0] < 2e-3


def test_adaptive_samples_do_not_depend_on_their_batch():
    x = start_noise(6) * torch.tensor([0.1, 1.0, 3.0, 1.0, 1.0, 0.5], dtype=torch.float64).view(-1, 1, 1, 1)
    together, _ = run_adaptive("dpm-23", x=x)
    alone = torch.cat([run_adaptive("dpm-23", x=row[None])[0] for row in x])
    assert (together - alone).abs().max() < 1e-12
    coupled = solvers.get("dpm-23", error_norm="batch")
    assert (run_adaptive(coupled, x=x)[0] - alone).abs().max() > 1e-6


def test_adaptive_starts_from_pure_noise_ends_clean_and_can_be_stopped():
    path = paths.RectifiedFlow()
    grid = grids.uniform(path, 3)
    solver = solvers.get("dpmpp-23", rtol=1e-3, atol=1e-3)
    got, calls = run_adaptive(solver, path, grid=grid)
    assert calls[-1] > 10
    single, _ = run_adaptive(solver, path, x=start_noise(6).float(), grid=grid)
    assert single.dtype == torch.float32
    assert (single - got).abs().max() < 1e-2
    states = []
    stopped = sample(
        MIXTURE.denoiser(path),
        path,
        "dpmpp-23",
        grid=grid,
        x=start_noise(6),
        on_step=lambda info: states.append(info.x.clone()) or len(states) < 4,
    )
    assert torch.equal(stopped, states[3])


def test_adaptive_gives_up_with_a_reason():
    path = PATHS["vp"]
    with pytest.raises(RuntimeError, match=r"did not reach t = 0\.001 in max_trials = 5"):
        run_adaptive(DPMAdaptive(max_trials=5))
    with pytest.raises(RuntimeError, match="not finite"):
        sample(lambda x, t: x * math.nan, path, "dpm-12", grid=(1.0, 1e-3), x=start_noise())


def test_pid_remembers_kept_steps_only():
    error = torch.tensor([0.5, 8.0], dtype=torch.float64)
    verdict = PID(p=0.1, d=0.05)(error, 2, None)
    assert verdict.accepted.tolist() == [True, False]
    assert verdict.memory is not None
    inverse = 1.0 / (error + 1e-8)
    again = PID(p=0.1, d=0.05)(2 * error, 2, verdict.memory)
    assert torch.equal(verdict.memory[1], inverse)
    assert again.memory is not None
    assert again.memory[1].tolist() == [1.0 / (1.0 + 1e-8), inverse[1].item()]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_path_does_not_matter(name):
    found = []
    for path in PATHS.values():
        grid = kappa_grid(path, 20.0, 0.02, 1)
        first, last = path.coefficients(grid[0])[0], path.coefficients(grid[-1])[0]
        found.append(run_adaptive(name, path, 20.0 * first * start_noise(), grid)[0] / last)
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-10


@pytest.mark.parametrize(("name", "limit", "most"), [("dpm-23", 3e-3, 60), ("dpmpp-23", 4e-3, 60)])
def test_adaptive_on_narrow_modes(name, limit, most):
    """The accuracy problem GM-A from sigma = 80 to the clean end, with the default tolerances."""
    golden, path, calls = Golden("gm_accuracy"), paths.EDM(), []
    got = sample(
        golden.mixture().denoiser(path),
        path,
        name,
        x=80.0 * golden.z,
        on_step=lambda info: calls.append(info.nfe),
    )
    gap = got - golden.tensors["out.edm80_to_1e-6"]
    assert gap.square().flatten(1).mean(1).sqrt().median() < limit
    assert calls[-1] < most


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPMAdaptive(1), "order must be 2 or 3, not 1"),
        (lambda: DPMAdaptive(rtol=0.0), "rtol must be a finite number above 0, not 0.0"),
        (lambda: DPMAdaptive(error_norm="max"), "error_norm must be 'sample' or 'batch' or 'batch-rms'"),
        (lambda: Integral(safety=1.5), r"safety must lie in \(0, 1\], not 1.5"),
        (lambda: PID(accept=0.0), r"accept must lie in \(0, 1\], not 0.0"),
        (lambda: PID(p=math.nan), "p, i and d must be finite, they are nan, 1.0 and 0.0"),
        (lambda: solvers.get("dpm-12").compile(paths.EDM(), (1.0, 0.5)), "dpm-12 has no plan"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
