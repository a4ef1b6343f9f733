"""Solvers whose steps depend on the data run behind the same call."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from tests.core.solver_problems import smooth_mixture, start_noise

from fewstep.core import paths
from fewstep.core.sample import sample
from fewstep.core.solvers import StepwiseSolver

MIXTURE = smooth_mixture()
EDM = paths.EDM()


@dataclass(frozen=True)
class Halving(StepwiseSolver):
    """Toy with data-dependent steps: extrapolated Euler, redone with half the step where it disagrees."""

    tolerance: float = 0.02
    name = "halving"

    def integrate(self, ask, path, grid, z, noise, on_step):
        t, last = grid[0], path.half_log_snr(path.t_min)
        step = (last - path.half_log_snr(t)) / 4
        while t > path.t_min:
            lam = path.half_log_snr(t)
            s = path.t_min if lam + step > last - 1e-6 else float(path.time_at(lam + step))
            middle = float(path.time_at(0.5 * (lam + path.half_log_snr(s))))
            x0 = ask(z, t)
            half = self._euler(path, z, x0, t, middle)
            better = self._euler(path, half, ask(half, middle), middle, s)
            change = better - self._euler(path, z, x0, t, s)
            if change.abs().max() > self.tolerance and step > 0.02:
                step *= 0.5
                continue
            z, t, step = better + change, s, step * 1.5
            if not on_step(z, t, x0):
                return z
        return self._euler(path, z, ask(z, t), t, grid[-1])

    def _euler(self, path, z, x0, t, s):
        (at, _, st), (a, _, sigma) = path.coefficients(t), path.coefficients(s)
        return sigma / st * z + (a - sigma / st * at) * x0


@pytest.mark.parametrize("path", [EDM, paths.OUVE()], ids=["edm", "with y"])
def test_data_dependent_solver_runs_behind_the_same_call(path):
    y = start_noise(seed=1) if path.uses_y else None
    denoise = MIXTURE.denoiser(path, y)
    counts = []
    end = path.t_clean
    fine = sample(denoise, path, "dpmpp-2m", 400, x=path.start(start_noise(), y), y=y)
    got = sample(
        denoise,
        path,
        Halving(),
        x=path.start(start_noise(), y),
        y=y,
        grid=(path.t_max, end),
        on_step=lambda info: counts.append((info.step, info.nfe)),
    )
    assert (got - fine).abs().max() < 0.05
    assert [c[0] for c in counts] == list(range(1, len(counts) + 1))
    assert counts[-1][1] >= 2 * len(counts)


@dataclass(frozen=True)
class LoopedDDIM(StepwiseSolver):
    """DDIM as a loop, to be compared with the plan."""

    name = "looped"

    def integrate(self, ask, path, grid, z, noise, on_step):
        for t, s in pairwise(grid):
            (at, _, st), (a, _, sigma) = path.coefficients(t), path.coefficients(s)
            x0 = ask(z, t)
            z = sigma / st * z + (a - sigma / st * at) * x0
            if not on_step(z, s, x0):
                break
        return z


@pytest.mark.parametrize("stop", [2, 9])
def test_it_lives_in_the_frame_without_y(stop):
    """On a path with y, also where the grid or the caller ends the run at b != 0."""
    path, y, x = paths.OUVE(), start_noise(seed=1), start_noise()
    grid = (1.0, 0.8, 0.6, 0.4)
    states = [], []
    options = [
        {"solver": solver, "on_step": lambda info, seen=seen: seen.append(info.x.clone()) or info.step < stop}
        for solver, seen in zip((LoopedDDIM(), "ddim"), states, strict=True)
    ]
    looped, planned = (sample(MIXTURE.denoiser(path, y), path, grid=grid, x=x, y=y, **o) for o in options)
    assert (looped - planned).abs().max() < 1e-12
    assert len(states[0]) == len(states[1]) == min(stop, 3)
    assert (torch.stack(states[0]) - torch.stack(states[1])).abs().max() < 1e-12
    assert torch.equal(looped, states[0][-1])


def test_it_stops_when_on_step_says_so():
    seen = []

    def watch(info):
        seen.append(info.x.clone())
        return info.step < 3

    got = sample(MIXTURE.denoiser(EDM), EDM, Halving(), shape=(2, 3, 2, 2), on_step=watch)
    assert len(seen) == 3
    assert torch.equal(got, seen[-1])


def test_gradients_flow_only_on_request():
    gain = torch.tensor(0.5, requires_grad=True)
    denoise = lambda x, t: gain * x / (1 + t * t)  # noqa: E731
    assert not sample(denoise, EDM, Halving(1.0), shape=(2, 3)).requires_grad
    (slope,) = torch.autograd.grad(sample(denoise, EDM, Halving(1.0), shape=(2, 3), grad=True).sum(), gain)
    assert slope.isfinite()


def test_draws_come_from_the_samples_own_seeds():
    @dataclass(frozen=True)
    class Jump(StepwiseSolver):
        name = "jump"

        def integrate(self, ask, path, grid, z, noise, on_step):
            return ask(z, grid[0]) + noise(z)

    batch = sample(MIXTURE.denoiser(EDM), EDM, Jump(), shape=(3, 3, 2, 2), seed=4, dtype=torch.float64)
    alone = sample(MIXTURE.denoiser(EDM), EDM, Jump(), shape=(1, 3, 2, 2), seed=6, dtype=torch.float64)
    assert (batch[2:] - alone).abs().max() < 1e-12


def test_it_has_no_plan_and_needs_y_where_the_path_does():
    with pytest.raises(ValueError, match="halving has no plan, its steps depend on the data"):
        Halving().compile(EDM, (2.0, 1.0))
    with pytest.raises(ValueError, match="y is missing: OUVE"):
        sample(MIXTURE.denoiser(EDM), paths.OUVE(), Halving(), x=start_noise())
