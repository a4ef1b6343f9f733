"""Score-SDE as published: predictors, correctors, the whole sampler, likelihood; k-diffusion's likelihood."""

import pytest
import torch
from tests.core.goldens import Golden, assert_relative

from fewstep.core import paths, solvers
from fewstep.core.likelihood import log_likelihood
from fewstep.core.sample import sample
from fewstep.core.solvers.base import Level
from fewstep.core.solvers.langevin import Corrector
from fewstep.core.solvers.score_sde import ScoreSDE, published_increment
from fewstep.core.solvers.score_sde_pc import LangevinCorrected

GOLDEN = Golden("score_sde_official")
MIXTURE = GOLDEN.mixture()
PATHS = {"vp": paths.VP.linear(), "subvp": paths.SubVP(), "ve": paths.VE()}
RULES = {
    "euler_maruyama": "euler-maruyama",
    "reverse_diffusion": "reverse-diffusion",
    "ancestral_sampling": "ancestral",
}


@GOLDEN.each(lambda case: case["kind"] == "predictor")
def test_predictor(case):
    path = PATHS[case["sde"]]
    equation = "ode" if case["probability_flow"] else "sde"
    solver = ScoreSDE(RULES[case["predictor"]], equation, "published", case["N"])
    start = GOLDEN.of(case, "in.x")
    grid = (case["t"], case["t"] - 1 / case["N"])
    for part, noise in (("x", GOLDEN.recorded(case)), ("mean", torch.zeros_like)):
        got = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=start, noise=noise)
        assert_relative(got, GOLDEN.of(case, f"out.{part}"), 1e-9)


@GOLDEN.each(lambda case: case["kind"] == "corrector")
def test_corrector(case):
    path, t = PATHS[case["sde"]], case["t"]
    a, _, sigma = path.coefficients(t)
    rule = {"langevin": "snr", "ald": "annealed"}[case["corrector"]]
    corrector = Corrector(rule, case["snr"], case["n_steps"], norm="batch")
    alpha = published_increment(path, Level(t, a, sigma), case["N"]).keep ** 2
    got = corrector.correct(
        MIXTURE.denoiser(path), GOLDEN.of(case, "in.x"), Level(t, a, sigma), alpha, GOLDEN.recorded(case)
    )
    assert_relative(got, GOLDEN.of(case, "out.x"), 1e-9)


@GOLDEN.each(lambda case: case["kind"] == "pc_sampler")
def test_whole_sampler(case):
    """Equal times from T to eps, then the mean; the published VP table of 12 levels has betas above 1."""
    path = PATHS[case["sde"]]
    repeats = 0 if case["corrector"] == "none" else case["n_steps"]
    solver = LangevinCorrected(
        RULES[case["predictor"]], steps_as="published", snr=case["snr"], repeats=repeats, norm="batch"
    )
    grid = (*torch.linspace(1.0, case["eps"], case["N"], dtype=torch.float64).tolist(), 0.0)
    noise = GOLDEN.recorded(case)
    x = path.start_weights()[1] * noise(GOLDEN.z)
    wanted = GOLDEN.of(case, "out.x")
    if case["sde"] == "vp":
        assert wanted.isnan().all()
        with pytest.raises(
            ValueError, match=r"count 12 is too small for the published table: its beta is 1\.67"
        ):
            sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=x, noise=noise)
        return
    got = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=x, noise=noise)
    assert_relative(got, wanted, 1e-9)


@GOLDEN.each(lambda case: case["kind"] == "likelihood")
def test_likelihood(case):
    """The official run has a float32 state, which leaves an error of some 1e-6; 1e-7 here is well below."""
    path = PATHS[case["sde"]]
    found = log_likelihood(
        MIXTURE.denoiser(path),
        path,
        GOLDEN.of(case, "in.x0"),
        "hutchinson",
        t=case["eps"],
        probe=GOLDEN.of(case, "in.epsilon"),
        bin_width=2 / 256,
        rtol=1e-7,
        atol=1e-7,
    )
    assert (found.bits_per_dim - GOLDEN.of(case, "out.bpd")).abs().max() < 5e-6
    assert_relative(found.latent, GOLDEN.of(case, "out.z").double(), 1e-5)
    assert found.calls < case["nfe"]  # the angle is a better clock than the time


def test_likelihood_of_k_diffusion():
    other = Golden("k_diffusion")
    x0, probe = (GOLDEN.tensors[f"vp.likelihood.in.{part}"] for part in ("x0", "epsilon"))
    path = paths.EDM(sigma_min=0.001, sigma_max=50.0)
    found = log_likelihood(
        other.mixture().denoiser(path), path, x0, "hutchinson", probe=probe, rtol=1e-7, atol=1e-7
    )
    assert (found.nats - other.tensors["log_likelihood.out.ll"]).abs().max() < 5e-5


def test_every_case_has_a_test():
    assert GOLDEN.unused() == []


def test_steps_of_a_table_are_its_own():
    """On a DDPM table the chain of "integrated" steps is the published one: r² = 1 − beta, G² = beta."""
    betas = torch.linspace(1e-3, 0.2, 20, dtype=torch.float64)
    path = paths.VP.from_betas(betas)
    plan = ScoreSDE("reverse-diffusion").compile(path, [float(t) for t in range(19, -2, -1)])
    for row, t in zip(plan.rows[1:-1], range(19, 0, -1), strict=True):
        found = {term.kind: term.coefficient for term in row.terms}
        beta, (a, _, sigma) = float(betas[t]), path.coefficients(float(t))
        assert found["n"] == pytest.approx(beta**0.5, rel=1e-11)
        assert found["x"] == pytest.approx(2 - (1 - beta) ** 0.5 - beta / sigma**2, rel=1e-11)
        assert found["d"] == pytest.approx(beta * a / sigma**2, rel=1e-11)


@pytest.mark.parametrize("path", [*PATHS.values(), paths.EDM(), paths.OUVE()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("rule", ["euler-maruyama", "reverse-diffusion"])
def test_the_three_ways_to_discretise_agree_for_small_steps(path, rule):
    """ "local" and "integrated" differ by the square of the step, in the drift and in the diffusion."""
    t = 0.5 * path.t_max
    gaps = []
    for length in (2e-3 * t, 1e-3 * t):
        s = t - length
        here, there = (Level(u, *path.coefficients(u)[::2]) for u in (t, s))
        local, integrated = (
            ScoreSDE(rule, steps_as=how).update(path, here, there, 1) for how in ("local", "integrated")
        )
        gaps.append(max(abs(local.x - integrated.x), abs(local.x0 - integrated.x0)))
        assert local.noise == pytest.approx(integrated.noise, rel=20 * length / t)
    assert gaps[0] < 1e-3
    assert 3.5 < gaps[0] / gaps[1] < 4.5


def test_ancestral_rule_is_the_posterior():
    path, grid = paths.EDM(), (80.0, 10.0, 1.0, 0.1, 0.0)
    ours, known = ScoreSDE("ancestral").compile(path, grid), solvers.get("ancestral").compile(path, grid)
    for row, other in zip(ours.rows, known.rows, strict=True):
        found, wanted = ({t.kind: t.coefficient for t in r.terms} for r in (row, other))
        for kind in wanted:
            assert found[kind] == pytest.approx(wanted[kind], rel=1e-12)


@pytest.mark.parametrize("equation", ["sde", "ode"])
@pytest.mark.parametrize("rule", ["euler-maruyama", "reverse-diffusion"])
def test_ends_of_a_path(rule, equation):
    """No signal at the start, none of the noise at the end: exact, not by a limit."""
    plan = ScoreSDE(rule, equation).compile(paths.RectifiedFlow(), (1.0, 0.5, 0.0))
    first = {term.kind: term.coefficient for term in plan.rows[1].terms}
    assert first == ({"d": 0.5, "n": 0.5} if equation == "sde" else {"x": 0.5, "d": 0.5})
    assert {term.kind: term.coefficient for term in plan.rows[2].terms} == {"d": 1.0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "heun"}, "rule must be one of euler-maruyama, reverse-diffusion, ancestral; not 'heun'"),
        ({"equation": "pde"}, "equation must be 'sde' or 'ode', not 'pde'"),
        ({"rule": "ancestral", "equation": "ode"}, "equation must be 'sde' for rule 'ancestral'"),
        ({"steps_as": "exact"}, "steps_as must be one of integrated, local, published; not 'exact'"),
        ({"count": -1}, "count must not be negative, it is -1"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ScoreSDE(**options)


def test_published_tables_exist_for_three_paths_only():
    with pytest.raises(ValueError, match="'published' knows VP linear, sub-VP and VE, not EDM"):
        ScoreSDE(steps_as="published").compile(paths.EDM(), (80.0, 1.0))
