"""UniPC beyond the published trajectories: orders, the folded corrector, the ends of a path, bad input."""

import itertools
import math

import pytest
import torch
from tests.core.solver_problems import Asked, kappa_grid, smooth_mixture, start_noise
from tests.core.test_solvers import reference

from fewstep.core import paths, predictions, solvers
from fewstep.core.plan import Plan
from fewstep.core.sample import sample
from fewstep.core.solvers.exponential import phi
from fewstep.core.solvers.predictor_corrector import rule_weights
from fewstep.core.solvers.unipc import UniPC

MIXTURE = smooth_mixture()
ALL = [
    UniPC(order, variant, form, corrector)
    for order in (1, 2, 3, 4)
    for variant in ("bh1", "bh2", "vary")
    for form in ("data", "noise")
    for corrector in ("unified", "exact", "official", "none")
    if variant == "bh1" or (order, corrector) != (1, "exact")
]
SOME = [solver for solver in ALL if solver.solver_order != 2 or solver.variant == "vary"][::3]


def label(solver):
    return "-".join(map(str, (solver.name, solver.variant, solver.form, solver.corrector)))


@pytest.fixture(scope="module")
def exact():
    return reference(paths.EDM(), 5.0, 0.1, 5.0 * start_noise())


# range of the slope: from three values on between the 3 of the first steps and the 4 of the others
SLOPES = {
    UniPC(1): (1.85, 2.15),
    UniPC(2): (2.85, 3.15),
    UniPC(3): (3.2, 3.7),
    UniPC(4): (3.1, 3.7),
    UniPC(3, "bh1"): (2.85, 3.15),
    UniPC(2, "vary"): (2.85, 3.15),
    UniPC(2, "bh2", "noise"): (2.85, 3.15),
    UniPC(3, "vary", "noise"): (2.85, 3.35),
    UniPC(3, corrector="none"): (1.85, 2.15),
    UniPC(2, "vary", corrector="official"): (0.85, 1.15),
}


@pytest.mark.parametrize("solver", SLOPES, ids=label)
def test_order_of_convergence(solver, exact):
    path, errors = paths.EDM(), []
    free = UniPC(solver.solver_order, solver.variant, solver.form, solver.corrector, lower_order_final=False)
    for steps in (40, 160):
        grid = kappa_grid(path, 5.0, 0.1, steps)
        got = sample(MIXTURE.denoiser(path), path, free, grid=grid, x=5.0 * start_noise())
        errors.append((got - exact).square().mean().sqrt().item())
    low, high = SLOPES[solver]
    slope = math.log2(errors[0] / errors[1]) / 2
    assert low < slope < high, errors
    assert slope > free.order - 0.15


def test_the_last_step_of_order_1_limits_the_chain(exact):
    path, errors = paths.EDM(), []
    for steps in (40, 160):
        grid = kappa_grid(path, 5.0, 0.1, steps)
        got = sample(MIXTURE.denoiser(path), path, "unipc-3", grid=grid, x=5.0 * start_noise())
        errors.append((got - exact).square().mean().sqrt().item())
    assert abs(math.log2(errors[0] / errors[1]) / 2 - solvers.get("unipc-3").order) < 0.15


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_step_is_one_row_of_few_terms(order):
    """The corrector costs one more value; with a network that predicts what is interpolated nothing else."""
    for form, prediction, path in (("data", "x0", paths.EDM()), ("noise", "eps", paths.VP.linear())):
        grid = kappa_grid(path, 20.0, 0.05, 12, clean=True)
        for corrector, terms in (("unified", order + 2), ("none", order + 1)):
            plan = UniPC(order, form=form, corrector=corrector).compile(path, grid)
            folded = plan.folded(predictions.get(prediction))
            assert len(folded.rows) == len(grid)
            assert max(len(row.terms) for row in folded.rows[:-1]) == terms
            assert plan.nfe == len(grid) - 1


def test_on_step_reports_the_states_at_which_the_network_is_asked():
    path, asked, seen = paths.EDM(), [], []
    denoise = MIXTURE.denoiser(path)
    sample(
        lambda x, t: asked.append(x.clone()) or denoise(x, t),
        path,
        "unipc-3",
        grid=kappa_grid(path, 20.0, 0.05, 8),
        x=20.0 * start_noise(),
        on_step=lambda info: seen.append(info.x.clone()),
    )
    assert torch.equal(torch.stack(asked[1:]), torch.stack(seen[:-1]))


@pytest.mark.parametrize("solver", SOME, ids=label)
def test_paths_with_the_same_noise_levels_give_the_same_trajectory(solver):
    found = []
    for path in (paths.EDM(), paths.VP.linear(), paths.RectifiedFlow()):
        grid = kappa_grid(path, 20.0, 0.02, 8)
        first, last = path.coefficients(grid[0])[0], path.coefficients(grid[-1])[0]
        x = 20.0 * first * start_noise()
        found.append(sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=x) / last)
    for other in found[1:]:
        assert (other - found[0]).abs().max() < 1e-10


@pytest.mark.parametrize("solver", SOME, ids=label)
def test_pure_noise_start_and_clean_end_are_exact(solver):
    path, values = paths.RectifiedFlow(), []
    denoise = MIXTURE.denoiser(path)
    grid = (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0)

    def remembered(x, t):
        values.append(denoise(x, t))
        return values[-1]

    got = sample(remembered, path, solver, grid=grid, x=start_noise())
    assert torch.equal(got, values[-1])
    for prediction in ("v", "velocity"):
        asked = Asked(denoise, path, predictions.get(prediction))
        other = sample(asked, solver=solver, grid=grid, x=start_noise())
        assert (other - got).abs().max() < 1e-11


@pytest.mark.parametrize("variant", ["bh1", "bh2", "vary"])
def test_the_clean_end_is_the_limit_of_small_sigma(variant):
    """Where diffusers divides infinity by infinity: bh1 with a last sigma of 0."""
    path = paths.EDM()
    solver = UniPC(3, variant)
    ends = []
    for last in (1e-9, 0.0):
        grid = (80.0, 10.0, 2.0, 0.5, 0.1, last)
        ends.append(sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=80.0 * start_noise()))
    assert (ends[0] - ends[1]).abs().max() < 1e-7


@pytest.mark.parametrize("solver", ALL, ids=label)
def test_a_constant_denoiser_is_solved_exactly_in_data_form(solver):
    """Weights that add up to the integral; also the published wrong ones keep this."""
    if solver.form == "noise":
        path, x0 = paths.EDM(), 0.0  # there eps = x/sigma is constant along the solution
    else:
        path, x0 = paths.VP.linear(), 0.4
    grid = kappa_grid(path, 20.0, 0.05, 7)
    (a, _, sigma), (a_end, _, sigma_end) = path.coefficients(grid[0]), path.coefficients(grid[-1])
    got = sample(
        lambda z, t: torch.full_like(z, x0), path, solver, grid=grid, x=a * x0 + sigma * start_noise()
    )
    assert (got - a_end * x0 - sigma_end * start_noise()).abs().max() < 1e-12


def test_lower_order_final_and_warm_up():
    path = paths.EDM()
    grid = kappa_grid(path, 20.0, 0.05, 7)

    def values(**options):
        rows = UniPC(3, corrector="none", **options).compile(path, grid).rows
        return [sum(term.kind == "d" for term in row.terms) for row in rows[1:]]

    assert values() == [1, 2, 3, 3, 3, 2, 1]
    assert values(lower_order_final=False) == [1, 2, 3, 3, 3, 3, 3]


@pytest.mark.parametrize("rule", ["bh1", "bh2", "vary"])
@pytest.mark.parametrize("positions", [[0.0], [0.0, -0.7], [0.0, 1.0], [0.0, -0.7, -1.9, 1.0]], ids=str)
def test_rule_weights_integrate_polynomials(rule, positions):
    for z in (-0.3, 0.3, -1e-7, -4.0):
        weights = rule_weights(positions, z, rule)
        simple = rule != "vary" and len(positions) == 2
        for k in range(1 if simple else len(positions)):
            moment = sum(w * r**k for w, r in zip(weights, positions, strict=True))
            assert moment == pytest.approx(math.factorial(k) * phi(k + 1, z), rel=1e-12)
        if simple:
            moment = sum(w * r for w, r in zip(weights, positions, strict=True))
            assert moment == pytest.approx(0.5 if rule == "bh1" else 0.5 * phi(1, z), rel=1e-12)
    assert rule_weights(positions[::-1], -0.3, rule) == pytest.approx(
        rule_weights(positions, -0.3, rule)[::-1], rel=1e-12
    )


def test_plans_are_data():
    grid = kappa_grid(paths.VP.linear(), 20.0, 0.05, 6)
    for name, variant in itertools.product(("unipc-1", "unipc-4"), ("bh1", "vary")):
        plan = solvers.get(name, variant=variant).compile(paths.VP.linear(), grid)
        assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver_order": 0}, "solver_order must be 1, 2, 3 or 4, not 0"),
        ({"variant": "bh3"}, "variant must be 'bh1' or 'bh2' or 'vary', not 'bh3'"),
        ({"form": "v"}, "form must be 'data' or 'noise', not 'v'"),
        ({"corrector": "yes"}, "corrector must be .*'none', not 'yes'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        solvers.get("unipc-2", **options)
