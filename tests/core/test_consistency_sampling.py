"""Consistency and CTM sampling: published samplers, the jump of CTM, and what gamma means."""

import itertools
import math
from pathlib import Path as File

import pytest
import torch
from safetensors.torch import load_file
from tests.core.solver_problems import smooth_mixture, start_noise

from fewstep.core import grids, paths, sample, solvers
from fewstep.core.plan import Plan
from fewstep.core.solvers.consistency import Consistency, GammaSampling

FOLDER = File(__file__).parents[1] / "golden" / "core"
GOLDEN = load_file(FOLDER / "consistency_sampling.safetensors")
PATHS = {
    "edm": paths.EDM(),
    "vp": paths.VP.linear(),
    "flow": paths.RectifiedFlow(),
    "cosine to pure noise": paths.VP.cosine(t_max=1.0),
}


def official_network(x, sigma):
    """The consistency function of the golden file: F(c_in·x, 250·log sigma) with its boundary scalings."""
    data, least = 0.5, 0.002
    skip = data**2 / ((sigma - least) ** 2 + data**2)
    out = (sigma - least) * data / (sigma**2 + data**2) ** 0.5
    inner = x / (sigma**2 + data**2) ** 0.5
    time = math.cos(250 * math.log(sigma + 1e-44) / 100)
    return skip * x + out * (0.31 * inner.tanh() - 0.12 * inner + 0.05 * time)


def test_multistep_consistency_official():
    """Indices 0, 22 and 39 of their 40 Karras levels: two calls; sigma_min stays out of the noise."""
    sigmas = [(80 ** (1 / 7) + i / 39 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in (0, 22, 39)]
    draws = iter([GOLDEN["in.sample.multistep.draw1"]])
    got = sample(
        official_network,
        paths.EDM(),
        "consistency",
        grid=(*sigmas[:2], 0.002),
        x=80.0 * GOLDEN["in.sample.multistep.draw0"],
        noise=lambda like: next(draws),
    )
    assert (got.clamp(-1, 1) - GOLDEN["out.sample.multistep"]).abs().max() < 1e-9


def test_one_step_consistency_official():
    got = sample(
        official_network,
        paths.EDM(),
        "consistency",
        grid=(80.0, 0.002),
        x=80.0 * GOLDEN["in.sample.onestep.draw0"],
    )
    assert (got.clamp(-1, 1) - GOLDEN["out.sample.onestep"]).abs().max() < 1e-6  # their level is float32


@pytest.mark.parametrize("inner", ["edm", "cm", "no"])
def test_the_jump_is_that_of_ctm(inner):
    """G(x_t, t, s) from g = denoised: one deterministic step per sample, each with its own times."""
    t, s, x = GOLDEN["ctm.t"].tolist(), GOLDEN["ctm.s"].tolist(), GOLDEN["ctm.x_t"]
    plan = Plan.stack([GammaSampling(0.0).compile(paths.EDM(), pair) for pair in zip(t, s, strict=True)])
    got = sample(lambda x, t: GOLDEN[f"ctm.{inner}.euler.denoised"], solver=plan, x=x)
    wanted = GOLDEN[f"ctm.{inner}.euler.G"]
    assert (got - wanted).abs().max() <= 1e-7 * wanted.abs().max()  # their s/t is float32


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_whole_jump_is_taken_as_it_is(path):
    """With returns="state" the deterministic sampler is the chain of the network's own jumps."""
    jump = lambda x, t, u: 0.7 * x + 0.1 * torch.sin(3 * x) + u - 0.5 * t  # noqa: E731
    times, ctm = grids.logsnr(path, 4), GammaSampling()
    got = sample(ctm.asking(jump, path, times, returns="state"), path, ctm, grid=times, x=start_noise())
    x = start_noise()
    for t, u in itertools.pairwise(times):
        x = jump(x, t, u)
    assert (got - x).abs().max() < 1e-10 * x.abs().max()


@pytest.mark.parametrize("gamma", [0.3, 0.8, 1.0])
def test_gamma_sampling_official_rule(gamma):
    """s = sqrt(1 − gamma²)·(sigma' − sigma_min) + sigma_min, then noise sqrt(sigma'² − s²)."""
    jump = lambda x, t, u: (u / t) * x + (1 - u / t) * (0.5 * x.tanh() + 0.1 * u)  # noqa: E731
    times, path, ctm = (80.0, 5.0, 0.4, 0.002), paths.EDM(), GammaSampling(gamma)
    draws = [start_noise(seed=s) for s in (5, 6)]
    left = iter(draws)
    x = 80.0 * start_noise()
    got = sample(
        ctm.asking(jump, path, times, returns="state"),
        path,
        ctm,
        grid=times,
        x=x,
        noise=lambda like: next(left),
    )
    for t, after, draw in zip(times, times[1:], [*draws, torch.zeros(())], strict=False):
        s = (1 - gamma**2) ** 0.5 * (after - 0.002) + 0.002
        x = jump(x, t, s) + (after**2 - s**2) ** 0.5 * draw
    assert (got - x).abs().max() < 1e-9


def test_gamma_zero_with_a_denoiser_is_ddim_and_gamma_one_is_consistency():
    path = paths.VP.linear()
    denoise, x, noise = smooth_mixture().denoiser(path), start_noise(), start_noise(seed=9)
    for name, gamma in (("ddim", 0.0), ("consistency", 1.0)):
        got = sample(denoise, path, GammaSampling(gamma), 6, x=x, noise=lambda like: noise)
        wanted = sample(denoise, path, name, 6, x=x, noise=lambda like: noise)
        assert (got - wanted).abs().max() < 1e-12


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_the_noise_level_is_kept(gamma):
    """With the exact denoiser of a point the state at s is a_s·point + sigma_s·(unit normal)."""
    path = paths.VP.linear()
    times = grids.logsnr(path, 6)
    plan = GammaSampling(gamma).compile(path, times)
    variance = [path.coefficients(times[0])[2] ** 2]
    for k, row in enumerate(plan.rows[1:], 1):
        weight = {term.kind: term.coefficient for term in row.terms}
        keep, spread = float(weight.get("x", 0.0)), float(weight.get("n", 0.0))  # type: ignore[arg-type]
        variance.append(keep**2 * variance[-1] + spread**2)
        a, _, sigma = path.coefficients(times[k])
        assert variance[-1] == pytest.approx(sigma**2, rel=1e-12)
        before = path.coefficients(times[k - 1])[0]
        assert keep * before + float(weight["d"]) == pytest.approx(a, rel=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [*PATHS.values(), paths.ResShift()], ids=[*PATHS, "resshift"])
@pytest.mark.parametrize("solver", [Consistency(), GammaSampling(0.0), GammaSampling(0.5)], ids=str)
def test_calls_draws_and_ends(path, solver):
    plan = solver.compile(path, grids.uniform(path, 3))
    assert plan.nfe == 3
    assert plan.draws == (0 if solver == GammaSampling(0.0) else 2)
    assert [term.kind for term in plan.rows[-1].terms] == ["d"]
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GammaSampling(1.5), "gamma must lie between 0 and 1, not 1.5"),
        (lambda: solvers.get("ctm", gamma=-0.1), "gamma must lie between 0 and 1, not -0.1"),
        (lambda: _asking(returns="v"), "returns must be 'x0' or 'state', not 'v'"),
        (lambda: _asking(path=paths.ResShift(), returns="state"), "returns must be 'x0' on ResShift"),
        (lambda: _asking()(start_noise(), 0.77), "t must be one of the grid's times .* got 0.77"),
        (lambda: Consistency().compile(paths.EDM(), (1.0,)), "at least two times"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _asking(path: paths.Path = paths.EDM(), returns="x0"):  # noqa: B008 — paths are immutable
    return GammaSampling(0.5).asking(lambda x, t, u: x, path, grids.uniform(path, 3), returns)
