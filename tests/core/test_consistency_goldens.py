"""Consistency models against the published code: losses, gradients, scalings, schedules and samplers."""

import itertools
import json
import math

import pytest
import torch
from tests.core.goldens import assert_relative
from tests.core.trajectory_cases import FOLDER, OfficialNet, Parameters, golden, sigma_path, situation

from fewstep.core import grids, paths, predictions, sample
from fewstep.core.builder import PlanBuilder
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import AbsoluteError, PseudoHuber, SquaredError
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.trajectory.consistency import Consistency, pair_weighting
from fewstep.core.objectives.trajectory.ctm_terms import DenoisingTerm
from fewstep.core.objectives.trajectory.curricula import (
    AdaptiveDecay,
    DoublingPoints,
    ProgressivePoints,
    halved_steps,
)
from fewstep.core.objectives.trajectory.easy_consistency import ShrinkingPairs
from fewstep.core.objectives.trajectory.pairs import GridPairs, interval_shares
from fewstep.core.objectives.trajectory.progressive import HalvedSteps, half_grid
from fewstep.core.objectives.weights import weighting
from fewstep.core.training import Moment

INFO, TENSORS = golden("consistency_models")
FLOWS, FLOW_TENSORS = golden("score_and_flow_losses")
FORMULAS = json.loads((FOLDER / "formulas.json").read_text())
PATH = paths.EDM()
NORMS = {"l1": AbsoluteError(), "l2": SquaredError()}
NOISE, DATA = TENSORS["in.noise"], TENSORS["in.x_start"]
EASY = [name for name in FLOWS["cases"] if name.startswith("ect")]


def flow(who, prediction="edm-boundary"):
    return FlowMap(OfficialNet(INFO[who]), PATH, prediction)


def levels(index, intervals):
    """Their noise levels, which are made in float32."""
    ends = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    return ((ends[0] + index.float() / intervals * (ends[1] - ends[0])) ** 7).double()


def loss_of(case, student):
    """The loss of a case at its times, and those times."""
    kind, norm, weight = case.split(".")
    index = TENSORS[f"in.{case}.indices"]
    if kind == "pd":
        t, m, s = (levels(index + half, 18) for half in (0, 0.5, 1))
        rule = HalvedSteps("karras", NORMS[norm], weight)
        return rule.between(student, flow("teacher_p", "edm"), SampleBatch(DATA), NOISE, t, m, s), t
    t, r = levels(index, 17), levels(index + 1, 17)
    rule = Consistency(GridPairs(18), {"cd": "heun", "ct": "data"}[kind], NORMS[norm], weight)
    about = situation(PATH, DATA, student, flow("target_p"), flow("teacher_p", "edm"))
    return rule.between(about, NOISE, t, r), t


@pytest.mark.parametrize("case", INFO["cases"])
def test_loss_and_gradient(case):
    """Their scalars are float32: estimates of order one differ by 1e-7, which weights up to 4e4 magnify."""
    student = flow("student_p")
    loss, t = loss_of(case, student)
    loss.mean().backward()
    _, norm, weight = case.split(".")
    scale = weighting(weight)(PATH, t)
    power = 0.5 if norm == "l2" else 1.0
    apart = (loss.detach() / scale) ** power - (TENSORS[f"out.{case}.loss"] / scale) ** power
    assert apart.abs().max() < 1e-7
    plain = case.startswith(("cd", "ct")) or weight == "uniform"
    assert_close(student.net.p.grad, TENSORS[f"out.{case}.grad_p"], 1e-6 if plain else 4e-5)


def assert_close(got, wanted, tolerance):
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


def test_the_grids_are_theirs():
    """Trap: N points (N − 1 intervals) for consistency, N intervals for progressive distillation."""
    ours = GridPairs(18).times(PATH, Moment())
    assert_close(ours, levels(torch.arange(18), 17), 1e-6)
    halves = half_grid(PATH, "karras", 18, "cpu")
    assert_close(halves, levels(torch.arange(37) / 2, 18), 1e-6)


def test_denoising_loss():
    student = flow("student_p", "edm")
    term = DenoisingTerm()
    sigmas = TENSORS["in.dsm.sigmas"]
    loss = term.between(student, SampleBatch(DATA), NOISE, sigmas)
    loss.mean().backward()
    assert_relative(loss, TENSORS["out.dsm.loss"], 1e-10)
    assert_close(student.net.p.grad, TENSORS["out.dsm.grad_p"], 1e-10)


@pytest.mark.parametrize(("name", "scalings"), [("edm", "edm"), ("edm-boundary", "boundary")])
def test_scalings(name, scalings):
    sigma = TENSORS["in.scal.sigma"]
    weights = [predictions.get(name).x0_weights(PATH, float(t)) for t in sigma]
    skip, out = torch.tensor([w.x for w in weights]), torch.tensor([w.out[0] for w in weights])
    got = torch.stack([skip, out, PATH.input_scale_at(sigma)]).double()
    assert_close(got, TENSORS[f"out.scal.{scalings}"], 1e-7)


@pytest.mark.parametrize("name", INFO["schedules"])
def test_schedules(name):
    table = INFO["schedules"][name]
    _, decay, mode, start, end, total, length = table[next(iter(table))]
    for step, ema, scales in zip(table["step"], table["ema"], table["scales"], strict=True):
        moment = Moment(step, step / total)
        if mode == "progressive":
            points = ProgressivePoints(start, end)
            assert points(moment) == scales
            if name.endswith("adaptive"):
                assert AdaptiveDecay(points, decay)(moment) == pytest.approx(ema, rel=1e-14)
        elif mode == "progdist":
            assert halved_steps(step / length, start) == scales
        else:
            assert (start, decay) == (scales, ema)  # nothing to compute


def midpoint(grid):
    """Their "dpm": the midpoint rule in a Karras grid of exponent 3, the last step included."""
    build = PlanBuilder(PATH, "karras midpoint")
    x = build.start(grid[0])
    for t, s in itertools.pairwise(grid):
        middle = ((t ** (1 / 3) + s ** (1 / 3)) / 2) ** 3
        inner = build.step(middle, {x: 1.0, build.ask(x).e: middle - t}, inner=True)
        x = build.step(s, {x: 1.0, build.ask(inner).e: s - t})
    return build.build()


@pytest.mark.parametrize("case", INFO["samplers"], ids=[case["sampler"] for case in INFO["samplers"]])
def test_samplers(case):
    """Consistency samplers ask with boundary scalings, the others with EDM's."""
    name, steps = case["sampler"], case["steps"]
    draws = iter([TENSORS[f"in.sample.{name}.draw{i}"] for i in range(case["n_draws"])])
    full, ending = grids.karras(PATH, steps), grids.karras(PATH, steps, "t_min")
    points = grids.karras(PATH, steps - 1, "t_min")
    solver, grid, prediction = {
        "onestep": ("consistency", (80.0, 0.002), "edm-boundary"),
        "multistep": ("consistency", [points[i] for i in case.get("ts", ())], "edm-boundary"),
        "heun": ("heun", full, "edm"),
        "euler": ("ddim", full, "edm"),
        "ancestral": ("ancestral", full, "edm"),
        "progdist": ("ddim", ending, "edm"),
        "dpm": (midpoint(full), None, "edm"),
    }[name]
    start = 80 * next(draws)
    got = sample(
        flow("student_p", prediction).denoiser,
        PATH,
        solver,
        x=start,
        noise=lambda like: next(draws),
        **({} if grid is None else {"grid": grid}),
    )
    assert (got.clamp(-1, 1) - TENSORS[f"out.sample.{name}"]).abs().max() < 1e-6  # their levels are float32


class EasyNet(Parameters):
    """The x0 of the flow goldens: cs·x + co·(a·tanh(x/sqrt(sigma² + 1/4)) + b + c·sin(ln sigma))."""

    def forward(self, x, t):
        sigma = t.reshape(-1, 1, 1, 1)
        norm = (sigma**2 + 0.25).sqrt()  # the network sees x/norm
        wave = self.p[0] * x.tanh() + self.p[1] + self.p[2] * sigma.log().sin()
        return 0.25 / norm * x + 0.5 * sigma / norm * wave


@pytest.mark.parametrize("name", EASY)
def test_easy_consistency(name):
    case = FLOWS["cases"][name]
    path = sigma_path(sigma_min=1e-6, sigma_max=1e6)
    pairs = ShrinkingPairs(q=case["q"], mapping="sigmoid" if "sigmoid" in name else "constant", k=case["k"])
    partner = pairs.partner(path, FLOW_TENSORS["in.ect.t"], case["stage"])
    assert_close(partner, FLOW_TENSORS[f"out.{name}.t_to_r"], 1e-14)
    student = FlowMap(EasyNet(FLOWS["fake_p"]), path, "x0")
    t = (2.0 * FLOW_TENSORS["in.z_normal"] - 1.1).exp()
    rule = Consistency(pairs, "data", PseudoHuber(case["c"]), "gap")
    about = situation(path, FLOW_TENSORS["in.images"], student)
    loss = rule.between(
        about, FLOW_TENSORS["in.noise_after_normal"], t, pairs.partner(path, t, case["stage"])
    )
    loss.mean().backward()
    assert_close(loss, FLOW_TENSORS[f"out.{name}.loss"], 1e-12)
    assert_close(student.net.p.grad, FLOW_TENSORS[f"out.{name}.grad_p"], 1e-12)


def test_improved_training_formulas():
    """N(k), levels, shares of the intervals and weights; their index goes up, a grid of ours down."""
    points = DoublingPoints(FORMULAS["s0"], FORMULAS["s1"])
    moments = [Moment(k, k / FORMULAS["K"]) for k in FORMULAS["k"]]
    assert [points(moment) for moment in moments] == FORMULAS["N"]
    times = GridPairs(points).times(PATH, moments[0])
    up = times.flip(0)
    assert_close(up, torch.tensor(FORMULAS["sigma_N0"], dtype=torch.float64), 1e-12)
    shares = interval_shares(times, PATH, FORMULAS["P_mean"], FORMULAS["P_std"]).flip(0)
    assert_close(shares, torch.tensor(FORMULAS["prob_N0"], dtype=torch.float64), 1e-12)
    weight = pair_weighting("gap")(PATH, up[1:], up[:-1])
    assert_close(weight, torch.tensor(FORMULAS["lambda_N0"], dtype=torch.float64), 1e-12)


def test_pseudo_huber():
    x = torch.tensor(FORMULAS["huber_in"], dtype=torch.float64, requires_grad=True)
    assert math.isclose(0.00054 * math.sqrt(x.shape[1]), FORMULAS["c_huber"], rel_tol=1e-14)
    loss = PseudoHuber()(x, torch.zeros_like(x))
    loss.sum().backward()
    assert_close(loss, torch.tensor(FORMULAS["huber_out"], dtype=torch.float64), 1e-12)
    assert_close(x.grad, torch.tensor(FORMULAS["huber_grad"], dtype=torch.float64), 1e-12)
