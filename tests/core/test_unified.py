"""The unified solver equals the solvers it contains, step choices are checked, and its space is sound."""

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.core.solver_problems import kappa_grid, smooth_mixture, start_noise

from fewstep.core import grids, paths, solvers
from fewstep.core.builder import PlanBuilder
from fewstep.core.plan import Plan
from fewstep.core.sample import sample
from fewstep.core.search import UnifiedSpace
from fewstep.core.search.unified import mean_split
from fewstep.core.solvers import DPMSolverPP
from fewstep.core.solvers.base import Solver, levels
from fewstep.core.solvers.unified import StepChoice, UnifiedSolver
from fewstep.core.statistics import ModelStatistics

MIXTURE = smooth_mixture()
PATHS = {"edm": paths.EDM(), "vp": paths.VP.linear(), "flow": paths.RectifiedFlow()}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


class Midpoint(Solver):
    """DPM-Solver++(2S) written out: a stage halfway in log-SNR, then the step again from its start."""

    name, order = "2s", 2

    def compile(self, path, grid):
        points = levels(path, grid)
        build = PlanBuilder(path, self.name)
        x, before = build.start(points[0].t), points[0]
        for middle, s in zip(points[1::2], points[2::2], strict=True):
            first = build.ask(x).d
            stage = build.step(middle.t, {x: middle.sigma / before.sigma, first: self._gain(before, middle)})
            second = build.ask(stage).d
            h = s.half_log_snr - before.half_log_snr
            r = (middle.half_log_snr - before.half_log_snr) / h
            slope = s.a * h * ((math.exp(-h) - 1 + h) / h**2) / r
            gain = self._gain(before, s)
            x = build.step(s.t, {x: s.sigma / before.sigma, first: gain - slope, second: slope})
            before = s
        return build.build()

    @staticmethod
    def _gain(t, s):
        return -s.a * math.expm1(t.half_log_snr - s.half_log_snr)


def chain(**genes):
    return UnifiedSolver(otherwise=StepChoice(**{"corrector": False, **genes}))


def unipc(form):
    options = {"variant": "vary", "corrector": "exact", "lower_order_final": False}
    return solvers.get("unipc-3", form=form, **options)


EQUAL = {
    "ddim": (chain(order=1), solvers.get("ddim")),
    "ddim in eps": (chain(order=1, prediction="eps"), solvers.get("ddim")),
    "2M taylor": (chain(order=2), DPMSolverPP(2, "taylor", lower_order_below=0)),
    "3M exact": (chain(order=3), DPMSolverPP(3, "taylor", "exact", lower_order_below=0)),
    "UniPC": (chain(order=3, corrector=True), unipc("data")),
    "UniPC in eps": (chain(order=3, corrector=True, prediction="eps"), unipc("noise")),
    "2S": (
        UnifiedSolver(tuple(StepChoice(order=1 + i % 2, base=i % 2, corrector=False) for i in range(8))),
        Midpoint(),
    ),
}


@each_path
@pytest.mark.parametrize("name", EQUAL)
def test_it_contains_the_published_solvers(name, path):
    ours, theirs = EQUAL[name]
    grid = kappa_grid(path, 20.0, 0.02, 8)
    x = 20.0 * path.coefficients(grid[0])[0] * start_noise()
    denoise = MIXTURE.denoiser(path)
    got, wanted = (sample(denoise, path, solver, grid=grid, x=x) for solver in (ours, theirs))
    assert (got - wanted).abs().max() < 1e-11


def test_low_derivatives_are_divided_differences():
    """Order 3 with D1 from the two newest values and D2 from three, by hand."""
    path, grid = paths.EDM(), (8.0, 4.0, 1.0, 0.5)
    plan = chain(order=3, derivatives="low").compile(path, grid)
    weights: dict[int, Any] = {
        term.index: term.coefficient for term in plan.rows[-1].terms if term.kind == "d"
    }
    h, l1, l2 = math.log(2), -math.log(4), -math.log(8)
    r1, r2 = l1 / h, l2 / h
    phi = [-math.expm1(-h) / h]
    phi.append((phi[0] - 1) / -h)
    phi.append((phi[1] - 0.5) / -h)
    for index, value in ((0, 0.3), (1, -0.2), (2, 1.7)):
        m = [0.0] * 3
        m[2 - index] = value
        d1 = (m[0] - m[1]) / (0 - r1)
        d2 = (d1 - (m[1] - m[2]) / (r1 - r2)) / (0 - r2)
        wanted = h * (phi[0] * m[0] + phi[1] * d1 + 2 * phi[2] * d2)
        assert weights[index] * value == pytest.approx(wanted, rel=1e-12)


ORDERS = {
    "x0, order 2, corrector": (UnifiedSolver(), 3.0),
    "eps, order 2": (chain(prediction="eps"), 2.0),
    "between, order 2, corrector": (chain(prediction=(0.5, -0.5), corrector=True), 3.0),
    "low, order 3, corrector": (chain(order=3, derivatives="low", corrector=True), 3.0),
}


@pytest.fixture(scope="module")
def exact():
    path = paths.EDM()
    fine = chain(order=3, corrector=True)
    return sample(
        MIXTURE.denoiser(path), path, fine, grid=kappa_grid(path, 5.0, 0.1, 320), x=5 * start_noise()
    )


@pytest.mark.parametrize("name", ORDERS)
def test_order_of_convergence(name, exact):
    solver, order = ORDERS[name]
    path, errors = paths.EDM(), []
    for steps in (40, 160):
        grid = kappa_grid(path, 5.0, 0.1, steps)
        got = sample(MIXTURE.denoiser(path), path, solver, grid=grid, x=5 * start_noise())
        errors.append((got - exact).square().mean().sqrt().item())
    assert abs(math.log2(errors[0] / errors[1]) / 2 - order) < 0.15
    assert solver.order == order


def test_a_jump_costs_no_call_and_keeps_the_noise():
    steps = (StepChoice(20.0, order=0), StepChoice(1.0), StepChoice(0.0))
    plan = UnifiedSolver(steps).plan(paths.EDM())
    assert (plan.nfe, plan.steps) == (2, 3)
    assert [tuple(term) for term in plan.rows[1].terms] == [("x", 0, 0.25, 0)]


def test_own_times_replace_those_of_the_grid():
    steps = (StepChoice(5.0), StepChoice(), StepChoice(0.0))
    plan = UnifiedSolver(steps).compile(paths.EDM(), (80.0, 9.0, 2.0, 0.1))
    assert [row.t for row in plan.rows if row.step] == [80.0, 5.0, 2.0, 0.0]


def test_a_plan_comes_back_from_json():
    plan = UnifiedSolver(otherwise=StepChoice(order=3)).compile(paths.EDM(), grids.karras(paths.EDM(), 6))
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepChoice(prediction="v"), "prediction must be 'x0', 'eps' or a pair, not 'v'"),
        (lambda: StepChoice(prediction=(1.0, math.nan)), "a pair of numbers"),
        (lambda: StepChoice(order=5), "order must be 0 to 4, not 5"),
        (lambda: StepChoice(derivatives="some"), "derivatives must be 'full' or 'low', not 'some'"),
        (lambda: StepChoice(base=2), "base must be 0 or 1, not 2"),
        (lambda: UnifiedSolver((StepChoice(),)).compile(paths.EDM(), (3.0, 2.0, 1.0)), "must have 2 times"),
        (lambda: UnifiedSolver((StepChoice(),)).plan(paths.EDM()), "needs a time t of its own"),
        (lambda: UnifiedSolver((StepChoice(0.0, order=0),)).plan(paths.EDM()), "at least 1 in the step to"),
        (lambda: UnifiedSpace(paths.EDM(), 0), "budget must be at least 1 network call, not 0"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SPACES = {**PATHS, "cosine": paths.VP.cosine(t_max=1.0), "table": paths.ResShift(steps=9)}


@pytest.mark.parametrize("path", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("budget", [1, 2, 6])
def test_every_genome_has_the_budget(path, budget):
    rng, space = random.Random(0), UnifiedSpace(path, budget)
    genomes = [space.draw(rng) for _ in range(10)] + space.seeds(grids.uniform(path, budget))
    for _ in range(150):
        child = space.cross(rng.choice(genomes), rng.choice(genomes), rng)
        genomes.append(space.mutate(child, rng, 0.4, 0.4))
    kinds = set()
    for genome in genomes:
        plan = space.plan(genome)
        assert plan.nfe == budget
        times = [path.t_max, *(choice.t for choice in genome)]
        assert all(t > s >= path.t_clean for t, s in itertools.pairwise(times))
        kinds.add((genome[0].order == 0, genome[-1].t == path.t_clean))
    if budget == 6:  # jumps and early ends are reached
        assert {jump for jump, _ in kinds} == {end for _, end in kinds} == {False, True}


def test_a_full_table_leaves_nothing_to_choose():
    path = paths.ResShift()
    count = round(path.t_max - path.t_clean)
    rng, space = random.Random(0), UnifiedSpace(path, count)
    for genome in [space.draw(rng), space.mutate(space.draw(rng), rng, 1.0, 0.5)]:
        assert tuple(choice.t for choice in genome) == grids.uniform(path, count)[1:]


def test_statistics_become_splits():
    path, lam = paths.EDM(), ModelStatistics.degenerate(paths.EDM(), 400)
    statistics = replace(lam, l=lam.half_log_snr.exp() / 100, s=-lam.half_log_snr)
    t, s = 4.0, 1.0
    linear, growth = mean_split(path, statistics, t, s)
    assert growth == pytest.approx(-(path.half_log_snr(t) + path.half_log_snr(s)) / 2, abs=0.02)
    assert linear == pytest.approx((1 - 0.25) / 100 / math.log(4), rel=0.03)
    tiny = mean_split(path, statistics, 1.0, 0.9999)  # between two points of the statistics
    assert tiny[0] == pytest.approx(0.01, rel=0.05)
    genomes = UnifiedSpace(path, 2).seeds((80.0, 1.0, 0.0), statistics)
    assert any(choice.split == mean_split(path, statistics, 80.0, 1.0) for g in genomes for choice in g)


def test_state_dtype_and_batch():
    path = paths.EDM()
    denoise, x = MIXTURE.denoiser(path), 80 * start_noise(6)
    whole = sample(denoise, path, "unified", steps=6, x=x)
    parts = torch.cat([sample(denoise, path, "unified", steps=6, x=part) for part in x.split(2)])
    assert (whole - parts).abs().max() < 1e-12
