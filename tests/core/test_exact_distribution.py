"""Samplers that draw noise sample the data: energy distance to the exact law, with its error bar.

Every coordinate of a sample is an independent draw from one mixture of two normals, so that the energy
distance of all of them together, 2·int (F_n − F)² dx, is computed against the exact distribution function F.
The error bar comes from exact draws of the same number: mean plus six standard deviations.
"""

import math

import pytest
import torch

from fewstep.core import grids, paths, solvers
from fewstep.core.sample import sample
from fewstep.core.solvers import StepwiseSolver

WEIGHT, MEAN, STD = (0.4, 0.6), (-0.7, 0.6), (0.4, 0.5)
COUNT = 50_000
SHAPE = (COUNT, 1)
PATH = paths.EDM(sigma_min=0.01, sigma_max=10.0)
FIELD = torch.linspace(-4.0, 4.0, 4001, dtype=torch.float64)
EXACT = sum(w * torch.special.ndtr((FIELD - m) / s) for w, m, s in zip(WEIGHT, MEAN, STD, strict=True))


def denoise(x, t):
    """E[x0 | x] of each coordinate by itself; a = 1 on this path."""
    t = t.view(-1, *[1] * (x.ndim - 1)) if isinstance(t, torch.Tensor) and t.ndim else float(t)
    first, second = (s * s + t * t for s in STD)
    near, far = x - MEAN[0], x - MEAN[1]
    ratio = torch.as_tensor(second / first, dtype=torch.float64).log() * 0.5 + math.log(WEIGHT[0] / WEIGHT[1])
    share = torch.sigmoid(far * far * (0.5 / second) - near * near * (0.5 / first) + ratio.to(x))
    return torch.lerp(far * (STD[1] ** 2 / second) + MEAN[1], near * (STD[0] ** 2 / first) + MEAN[0], share)


def draw(generator, shape=SHAPE):
    which = (torch.rand(shape, generator=generator) > WEIGHT[0]).long()
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    return torch.tensor(MEAN).double()[which] + torch.tensor(STD).double()[which] * noise


def energy_distance(x):
    below = torch.searchsorted(x.double().flatten().sort().values, FIELD, right=True)
    return float(2.0 * (below / x.numel() - EXACT).square().sum() * (FIELD[1] - FIELD[0]))


@pytest.fixture(scope="module")
def limit():
    generator = torch.Generator().manual_seed(3)
    exact = torch.tensor([energy_distance(draw(generator)) for _ in range(40)])
    return float(exact.mean() + 6 * exact.std())


def distance(solver, steps, factor=1.0, shape=SHAPE, grid="logsnr"):
    """Energy distance of a run from exact noisy data at sigma = 10, its draws scaled by a factor."""
    start, draws = torch.Generator().manual_seed(5), torch.Generator().manual_seed(7)
    x = draw(start, shape) + 10.0 * torch.randn(shape, dtype=torch.float64, generator=start)
    noise = lambda like: factor * torch.randn(like.shape, dtype=like.dtype, generator=draws)  # noqa: E731
    return energy_distance(sample(denoise, PATH, solver, steps, grid, x=x.float(), noise=noise))


SKIPPED = {"consistency": "a few jumps through D do not follow the reverse process"}


def stochastic():
    """Every registered plan that draws noise, once for each different plan, and predictor–corrector."""
    found, known = {}, set()
    grid = grids.get("logsnr")(PATH, 12)
    for name in sorted(solvers.names(), key=lambda name: name.startswith(("ir-", "mrs-"))):
        solver = solvers.get(name)
        if name in SKIPPED or isinstance(solver, StepwiseSolver):
            continue
        plan = solver.compile(PATH, grid)
        rows = tuple(
            tuple(sorted((t.kind, t.index, f"{t.coefficient:.9g}") for t in row.terms)) for row in plan.rows
        )
        if plan.draws and rows not in known:
            known.add(rows)
            found[name] = solver
    return found | {
        "local euler-maruyama": solvers.get("euler-maruyama", steps_as="local"),
        "pc, annealed": solvers.get("pc", corrector="annealed"),
    }


STOCHASTIC = stochastic()


def steps_of(name, solver):
    """Enough that the bias of the method is well below what a noise that is off by 5 % does."""
    return 300 if solver.order == 1 or name == "dpmpp-sde" else 100


@pytest.mark.parametrize("name", STOCHASTIC)
def test_it_samples_the_data(name, limit):
    solver = STOCHASTIC[name]
    steps = steps_of(name, solver)
    assert distance(solver, steps) < limit
    # sensitivity: too much noise shows, or, where the bias of the method hides it, too little does
    assert any(distance(solver, steps, factor) > 1.5 * limit for factor in (1.05, 0.95))


def test_all_published_families_are_among_them():
    assert {"ancestral", "euler-maruyama", "dpmpp-2m-sde", "sa-solver"} <= STOCHASTIC.keys()


@pytest.mark.parametrize("name", ["euler-maruyama", "reverse-diffusion"])
def test_on_a_variance_preserving_path(name, limit):
    """The two rules are one on the path above, where the forward chain does not decay."""
    path = paths.VP.linear()
    grid = [float(path.time_at(-math.log(10.0 * 1e-3 ** (i / 399)))) for i in range(400)] + [0.0]
    a, _, sigma = path.coefficients(grid[0])
    start, draws = torch.Generator().manual_seed(5), torch.Generator().manual_seed(7)
    x = a * draw(start) + sigma * torch.randn(SHAPE, dtype=torch.float64, generator=start)

    def scaled(x, t):
        a, _, sigma = path.coefficients(float(t))
        return denoise(x / a, sigma / a)

    noise = lambda like: torch.randn(like.shape, dtype=like.dtype, generator=draws)  # noqa: E731
    assert energy_distance(sample(scaled, path, name, grid=grid, x=x.float(), noise=noise)) < limit


def test_step_size_by_norms_needs_many_values():
    """The snr rule takes its step from the state: right for many values a sample, wrong for one."""
    wide, narrow = ((COUNT // 500, 500), (COUNT // 2, 1))
    solver = solvers.get("pc")
    assert distance(solver, 200, shape=wide) < 1e-4
    assert distance(solver, 50, shape=narrow) > 1e-2
    assert distance(solvers.get("pc", norm="batch"), 200, shape=narrow) < 2.5e-4


def test_the_denoiser_is_exact():
    """D = x + sigma²·d log p/dx, by automatic differentiation of the density."""
    x = torch.linspace(-3, 3, 41, dtype=torch.float64)[:, None].requires_grad_()
    sigma = 0.7
    each = [
        w * torch.exp(-0.5 * (x - m) ** 2 / (s * s + sigma**2)) / math.sqrt(s * s + sigma**2)
        for w, m, s in zip(WEIGHT, MEAN, STD, strict=True)
    ]
    (score,) = torch.autograd.grad(torch.stack(each).sum(0).log().sum(), x)
    assert (denoise(x, sigma) - x - sigma**2 * score).abs().max() < 1e-12
