"""Constraints on the state through on_step: inpainting and colourisation of the score-SDE paper."""

import itertools
import math

import pytest
import torch
from tests.core.solver_problems import smooth_mixture, start_noise

from fewstep.core import paths, sample, solvers
from fewstep.core.guidance import AveragePool, Grayscale, Mask, Replacement, Steering, in_turn
from fewstep.core.noise import SampleNoise

SHAPE = (3, 2, 2)
MIX = smooth_mixture()
KNOWN = Mask(torch.tensor([[[1, 0], [0, 1]]]))
PATHS = [paths.VP.linear(), paths.EDM(), paths.RectifiedFlow()]


def orthonormal():
    """An orthonormal basis of the channels whose first vector is grey, as columns."""
    first = torch.ones(3, 1).double()
    return torch.linalg.qr(torch.cat([first, torch.eye(3).double()[:, :2]], dim=1)).Q


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
def test_inpainting_is_the_published_update(path):
    """x <- x·(1 - m) + m·(a·y + sigma·n) after each step of a hand-written DDIM."""
    times = [path.time_at(-math.log(r)) for r in (30.0, 5.0, 1.0, 0.2, 0.05)]
    mask, data, x = KNOWN.known.double(), 0.5 * start_noise(2, SHAPE, 8), start_noise(2, SHAPE)
    denoise = MIX.denoiser(path)
    constraint = Replacement(KNOWN, KNOWN.forward(data), path, seed=4)
    got = sample(denoise, path, "ddim", grid=times, x=x, on_step=constraint)
    noise, draw = SampleNoise(4, 2), torch.empty(2, *SHAPE, dtype=torch.float64)
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        (a, _, sigma), (a2, _, sigma2) = path.coefficients(t), path.coefficients(s)
        x0 = denoise(x, t)
        x = a2 * x0 + sigma2 * (x - a * x0) / sigma
        noise.fill(draw)
        level = 0.0 if i == 3 else sigma2
        x = x * (1 - mask) + mask * (a2 * data + level * draw)
    torch.testing.assert_close(got, x, rtol=1e-12, atol=1e-12)


def test_colourisation_is_the_published_update():
    """The grey channel of an orthonormal basis is replaced, the other two are left alone."""
    path, x, data = paths.VP.linear(), start_noise(2, SHAPE), start_noise(2, SHAPE, 8)
    basis, draw = orthonormal(), start_noise(2, SHAPE, 9)
    constraint = Replacement(Grayscale(), Grayscale().forward(data), path)
    a, _, sigma = path.coefficients(0.4)

    def turned(image):
        return torch.einsum("bihw,ij->bjhw", image, basis)

    wanted = turned(x)
    wanted[:, 0] = (a * turned(data.mean(1, keepdim=True).expand_as(data)) + sigma * turned(draw))[:, 0]
    torch.testing.assert_close(turned(constraint.applied(x, 0.4, draw)), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("operator", [KNOWN, AveragePool(2), Grayscale()], ids=["mask", "pool", "gray"])
@pytest.mark.parametrize(
    "solver", [n for n in ("ancestral", "dpmpp-2m", "heun", "unipc-2") if n in solvers.names()]
)
def test_the_end_agrees_with_the_observation(operator, solver):
    path = paths.EDM()
    y = operator.forward(start_noise(2, SHAPE, seed=3))
    out = sample(MIX.denoiser(path), path, solver, steps=6, x=80 * start_noise(2, SHAPE),
                 on_step=Replacement(operator, y, path))  # fmt: skip
    torch.testing.assert_close(operator.forward(out), y, rtol=1e-10, atol=1e-10)


def test_the_state_of_a_data_dependent_solver_can_be_edited():
    class Halving(solvers.StepwiseSolver):
        name, order = "halving", 1

        def integrate(self, ask, path, grid, z, noise, on_step):
            for t in grid[1:]:
                z = z * 0.5
                on_step(z, t, z)
            return z

    path = paths.ResShift()
    y = torch.full((1, 1, 2), 3.0)
    grid = [path.t_max, 0.5 * path.t_max, path.t_min]

    def edit(info):
        info.x[:, :, 0] = 7.0

    x = sample(lambda x, t: x, path, Halving(), grid=grid, x=torch.ones(1, 1, 2), y=y, on_step=edit)
    seen = sample(lambda x, t: x, path, Halving(), grid=grid, x=torch.ones(1, 1, 2), y=y)
    assert x[0, 0].tolist() == [7.0, seen[0, 0, 1].item()]
    with torch.inference_mode():
        again = sample(lambda x, t: x, path, Halving(), grid=grid, x=torch.ones(1, 1, 2), y=y, on_step=edit)
    assert again[0, 0, 0] == 7.0


def test_many_corrections_reach_the_gaussian_posterior():
    """Two correlated values, one seen: x_u given x_k = v is N(rho·v, 1 - rho²)."""
    path, rho, seen, count = paths.EDM(), 0.8, 1.2, 4000
    cov = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)

    def denoise(x, t):
        gain = cov @ torch.linalg.inv(cov + t**2 * torch.eye(2).double())
        return x @ gain.T

    mask = Mask(torch.tensor([[1, 0]]))
    constraint = Replacement(mask, torch.tensor([[[seen, 0.0]]]).double(), path)
    grid = [80.0 * (0.01 / 80.0) ** (i / 60) for i in range(61)]

    def corrected(info):  # Langevin steps at the level of the state, the constraint after each
        sigma = float(info.t)
        for _ in range(6):
            score = (denoise(info.x, sigma) - info.x) / sigma**2
            size = 0.1 * (1 - rho**2 + sigma**2)
            noise = torch.randn(info.x.shape, dtype=torch.float64, generator=draws)
            info.x.add_(size * score + math.sqrt(2 * size) * noise)
            noise = torch.randn(info.x.shape, dtype=torch.float64, generator=draws)
            info.x.copy_(constraint.applied(info.x, sigma, noise))

    torch.manual_seed(0)
    draws = torch.Generator().manual_seed(0)
    x = 80 * torch.randn(count, 1, 2, dtype=torch.float64, generator=draws)
    options = {"grid": grid, "x": x, "on_step": corrected, "noise": torch.randn_like}
    out = sample(denoise, path, "ancestral", **options)[:, 0, 1]
    error = math.sqrt((1 - rho**2) / count)
    assert abs(out.mean() - rho * seen) < 4 * error
    assert abs(out.var() - (1 - rho**2)) < 0.1 * (1 - rho**2)


def test_runs_repeat_and_samples_stand_alone():
    path = paths.EDM()
    y = KNOWN.forward(start_noise(3, SHAPE, seed=3))
    x = 80 * start_noise(3, SHAPE)
    constraint = Replacement(KNOWN, y, path, seed=7)
    options = {"path": path, "solver": "ddim", "steps": 5}
    first = sample(MIX.denoiser(path), x=x, on_step=constraint, **options)
    assert torch.equal(sample(MIX.denoiser(path), x=x, on_step=constraint, **options), first)
    alone = Replacement(KNOWN, y[1:2], path, seed=8)
    out = sample(MIX.denoiser(path), x=x[1:2], on_step=alone, **options)
    torch.testing.assert_close(out, first[1:2], rtol=1e-12, atol=1e-12)


def test_one_time_for_each_sample_and_the_y_of_the_path():
    path = paths.ResShift()
    y, x, data = (start_noise(2, SHAPE, seed) for seed in (1, 2, 3))
    draw = torch.zeros_like(x)
    times = torch.tensor([0.3, 0.6]).double() * path.t_max
    constraint = Replacement(KNOWN, KNOWN.forward(data), path, y=y)
    got = constraint.applied(x, times, draw)
    for i in range(2):
        a, b, _ = path.coefficients(float(times[i]))
        wanted = torch.where(KNOWN.known.bool(), a * data[i] + b * y[i], x[i])
        torch.testing.assert_close(got[i], wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="y is missing: ResShift uses the degraded input"):
        Replacement(KNOWN, y, path)


def test_hooks_run_in_turn_and_any_of_them_stops():
    path = paths.EDM()
    y = KNOWN.forward(start_noise(2, SHAPE, seed=3))
    seen = []

    def stop(info):
        seen.append(info.step)
        return info.step < 3

    hooks = in_turn(stop, Steering(KNOWN, y, 0.1, "sum"), Replacement(KNOWN, y, path))
    out = sample(MIX.denoiser(path), path, "ddim", 8, x=80 * start_noise(2, SHAPE), on_step=hooks)
    assert seen == [1, 2, 3]
    assert not torch.allclose(KNOWN.forward(out), y, atol=0.1)  # still noisy where it was stopped
