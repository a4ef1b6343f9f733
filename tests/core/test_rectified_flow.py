"""Reflow and what follows it: exact cases, distillation rules, straightening, the methods by name."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from fewstep.core import paths
from fewstep.core.clock import clock_at, time_of_clock
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.couplings import Annealed, Mirrored, OptimalTransport, Paired
from fewstep.core.objectives.methods import Material
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.times import Choice
from fewstep.core.objectives.trajectory.base import Situation
from fewstep.core.objectives.trajectory.regression import (
    FlowGuided,
    PairDistillation,
    TeacherSolution,
    Together,
    solved,
)
from fewstep.core.objectives.trajectory.straightening import Straightening, even_boundaries
from fewstep.core.training import Moment
from fewstep.core.training.phases import STUDENT

FLOW = paths.RectifiedFlow(time="t")
PATHS = {
    "edm": paths.EDM(),
    "vp": paths.VP.linear(),
    "flow": FLOW,
    "table": paths.VP.from_betas(torch.linspace(1e-4, 0.02, 1000).tolist()),
}
MINE = (
    "denoise",
    "flow-matching",
    "ot-cfm",
    "reflow",
    "improved-reflow",
    "slimflow",
    "instaflow",
    "online-distillation",
    "slimflow-distill",
    "boss",
    "perflow",
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


def gaussian(path, std=0.5):
    """The exact denoiser of normal data on a path, as a map of x0."""

    class Exact(nn.Module):
        def forward(self, x, t):
            a, _, sigma = (c[:, None] for c in path.evaluate(t.double()))
            return a * std**2 / (a**2 * std**2 + sigma**2) * x

    return FlowMap(Exact(), told_itself(path), "x0")


def told_itself(path):
    """The path, whose network is told the path's own time and an unscaled state."""
    path = paths.from_config({**path.to_config(), "time": "t"})
    object.__setattr__(path, "input_scale_at", lambda t: torch.ones_like(t, dtype=torch.float64))
    object.__setattr__(path, "input_scale", lambda t: 1.0)
    return path


def spread_of(path, t, std=0.5):
    a, _, sigma = path.evaluate(t)
    return (a**2 * std**2 + sigma**2).sqrt()


def point(path, value=0.7):
    """The exact denoiser of data that is one point: all paths are straight."""
    return FlowMap(lambda x, t: torch.full_like(x, value), path, "x0")


def situation(student, batch, teacher=None, seed=0, moment=None):
    return Situation(student, student, teacher, batch, seeded(seed), moment or Moment())


@pytest.mark.parametrize("name", ["edm", "vp", "flow"])
def test_midpoint_steps_converge_to_the_exact_flow(name):
    path, flow = PATHS[name], gaussian(PATHS[name])
    t, s = (torch.full((5,), time, dtype=torch.float64) for time in (path.t_max, path.time_at(math.log(1.5))))
    x = spread_of(path, t)[:, None] * drawn(5, 3)
    wanted = x * (spread_of(path, s) / spread_of(path, t))[:, None]
    errors = [float((solved(flow, x, t, s, steps) - wanted).abs().max()) for steps in (16, 32, 64)]
    assert errors[0] < 0.02
    for one, other in pairwise(errors):
        # Order 2 in general; on normal data, where z² is quadratic in tau, one more.
        assert math.log2(one / other) == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("name", PATHS)
def test_one_step_is_enough_where_paths_are_straight(name):
    path = PATHS[name]
    t = torch.full((4,), path.t_max, dtype=torch.float64)
    x = drawn(4, 2) * path.coefficients(path.t_max)[2]
    end = solved(point(path), x, t, torch.full_like(t, path.t_clean), 1)
    a, _, sigma = path.coefficients(path.t_clean)
    assert float((end - a * 0.7).abs().max()) <= 6 * sigma + 1e-9


@pytest.mark.parametrize("name", PATHS)
def test_losses_are_zero_for_an_exact_student_of_straight_paths(name):
    path = PATHS[name]
    exact, batch = point(path), SampleBatch(torch.full((16, 2), 0.7, dtype=torch.float64), drawn(16, 2))
    rules = [
        PairDistillation(),
        FlowGuided(),
        Together(((1.0, PairDistillation(Choice(even_boundaries(path, 4)[:-1]))), (0.5, FlowGuided()))),
    ]
    for rule in rules:
        losses = rule(situation(exact, batch, exact))
        total = losses["loss"] if isinstance(losses, dict) else losses
        assert float(torch.as_tensor(total).abs().max()) < 1e-20
    if not path.is_discrete:
        grid = even_boundaries(path, 3)
        for start in ("noise", "data"):
            losses = Straightening(grid, 1, start)(situation(exact, batch, exact))
            assert losses.shape == (16,)
            assert float(losses.max()) < 1e-14
        assert float(TeacherSolution(2)(situation(exact, batch, exact)).max()) < 1e-20


def test_one_step_distillation_is_the_published_regression():
    # InstaFlow in its own letters: z0 noise, z1 data, loss ‖(z0 + v(z0)) − z1‖², v towards the data.
    net = MLP(MLPConfig(shape=(3,), width=8, depth=1)).double()
    nn.init.normal_(net.last.weight, generator=seeded())
    batch = SampleBatch(drawn(6, 3), drawn(6, 3, seed=2))
    assert batch.noise is not None
    found = PairDistillation()(situation(FlowMap(net, FLOW, "velocity"), batch))
    ones = torch.ones(6, dtype=torch.float64)
    wanted = (batch.noise - net(batch.noise, ones) - batch.x0).square().mean(1)
    torch.testing.assert_close(found, wanted)


def test_flow_guidance_is_two_euler_steps_of_the_teacher():
    teacher, student = (
        FlowMap(lambda x, t, k=k: torch.sin(k * x) + t[:, None], FLOW, "velocity") for k in (2, 3)
    )
    batch = SampleBatch(torch.zeros(6, 3, dtype=torch.float64))
    found = FlowGuided()(situation(student, batch, teacher, seed=7))
    generator = seeded(7)
    z = torch.randn(6, 3, dtype=torch.float64, generator=generator)
    share = 0.2 + 0.6 * torch.rand(6, 1, dtype=torch.float64, generator=generator)
    # The published time runs from noise to data, and its velocity with it.
    first = z - share * (torch.sin(2 * z) + 1)
    target = first - (1 - share) * (torch.sin(2 * first) + (1 - share))
    said = z - (torch.sin(3 * z) + 1)
    torch.testing.assert_close(found, (said - target).square().mean(1))


def test_straightening_in_the_letters_of_rectified_flow():
    teacher = gaussian(FLOW)
    student = FlowMap(lambda x, t: 0.3 * x + t[:, None], FLOW, "velocity")
    batch = SampleBatch(drawn(8, 2), drawn(8, 2, seed=2))
    found = Straightening((1.0, 0.4, 0.0), 3, "data")(situation(student, batch, teacher, seed=5))
    generator, times = seeded(5), torch.tensor([1.0, 0.4, 0.0], dtype=torch.float64)
    k = torch.randint(2, (8,), generator=generator)
    first, last = times[k], times[k + 1]
    assert batch.noise is not None
    x = FLOW.corrupt(batch.x0, first, batch.noise)
    end = solved(teacher, x, first, last, 3)
    t = last + (first - last) * torch.rand(8, dtype=torch.float64, generator=generator)
    velocity = (x - end) / (first - last)[:, None]
    line = end + (t - last)[:, None] * velocity
    torch.testing.assert_close(
        found, (0.3 * line + t[:, None] - velocity).square().mean(1), rtol=1e-6, atol=0
    )


def test_straightening_from_noise_follows_the_teacher():
    # From noise, a stretch begins where the teacher's own way has led.
    teacher, seen = gaussian(FLOW), []

    class Spy(nn.Module):
        def forward(self, x, t):
            seen.append((x, t))
            return x

    batch = SampleBatch(torch.zeros(500, 2, dtype=torch.float64))
    Straightening((1.0, 0.5, 0.0), 8)(situation(FlowMap(Spy(), FLOW, "velocity"), batch, teacher))
    ((x, t),) = seen
    early, wanted = t > 0.5, spread_of(FLOW, torch.ones(1, dtype=torch.float64))
    assert 200 < int(early.sum()) < 300
    assert float(x[t > 0.95].std()) == pytest.approx(float(wanted), abs=0.25)
    assert float(x[t < 0.05].std()) == pytest.approx(0.5, abs=0.15)


def test_reflow_is_zero_on_the_lines_of_pairs_and_sees_the_whole_clock():
    for name, path in PATHS.items():
        objective: Any = methods.get("reflow").make(material(path))
        times = objective.times
        t = times(path, 500, seeded())
        tau = clock_at(path, t)
        ends = clock_at(path, torch.tensor([path.t_min, path.t_max], dtype=torch.float64))
        assert float(tau.min() - ends[0]) < 0.02, name
        assert float(ends[1] - tau.max()) < 0.02, name
        torch.testing.assert_close(time_of_clock(path, tau), t, rtol=1e-6, atol=1e-6)


def material(path, shape=(2,), null_label=None, **more):
    net = MLP(MLPConfig(shape=shape, width=8, depth=1, classes=null_label or 0)).double()
    teacher = gaussian(path) if path is FLOW else FlowMap(net, path, "x0")
    return Material(path, "velocity" if path is FLOW else "edm", net, teacher, shape, 100, null_label, **more)


@pytest.mark.parametrize("name", MINE)
@pytest.mark.parametrize("path", [FLOW, PATHS["edm"]], ids=["flow", "edm"])
def test_every_method_gives_gradients_to_the_student_alone(name, path):
    method = methods.get(name)
    given = material(path)
    teacher = given.taught().net
    assert isinstance(teacher, nn.Module)
    objective = method.make(given)
    (phase,) = objective.phases()
    batch = {"x0": drawn(8, 2), "noise": drawn(8, 2, seed=2)} if "pairs" in method.needs else drawn(8, 2)
    student = MLP(MLPConfig(shape=(2,), width=8, depth=1)).double()
    losses = phase.loss({STUDENT: student}, batch, seeded(), Moment())
    loss = losses if isinstance(losses, torch.Tensor) else losses["loss"]
    assert loss.shape == ()
    assert bool(loss.isfinite())
    loss.backward()
    assert student.last.weight.grad is not None
    assert float(student.last.weight.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in teacher.parameters())
    if "pairs" in method.needs:
        with pytest.raises(ValueError, match="needs pairs"):
            phase.loss({STUDENT: student}, drawn(8, 2), seeded(), Moment())


def test_options_of_the_methods():
    given = material(FLOW, shape=(1, 4, 4), null_label=3)
    make: dict[str, Any] = {name: methods.get(name).make for name in MINE}
    assert make["denoise"](given).dropout.null == {"label": 3}
    assert make["denoise"](given, dropout=0.0).dropout is None
    assert set(make["denoise"](given, learned_weight=True).modules()) == {"uncertainty"}
    assert set(make["flow-matching"](given, times="history").modules()) == {"history"}
    assert make["ot-cfm"](given).coupling == OptimalTransport("label")
    assert make["slimflow"](given, "cos", mirror=0.5).coupling == Mirrored(Annealed("cos"))
    assert make["reflow"](given).coupling == Paired()
    assert make["instaflow"](given, steps=2).rule.times == Choice((1.0, 0.5))
    with pytest.raises(ValueError, match="distance must be one of"):
        make["reflow"](given, loss="far")


def test_boss_brings_the_times_its_student_is_sampled_at():
    found: Any = methods.get("boss").make(material(FLOW), steps=3, points=20, samples=4)
    assert found.sampling.grid(FLOW) == pytest.approx(found.rule.boundaries)
    assert len(found.rule.boundaries) == 4
    even: Any = methods.get("perflow").make(material(FLOW), steps=4)
    assert even.sampling.grid(FLOW) == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="boundaries must be at least two decreasing times"):
        Straightening((0.0, 1.0))
    with pytest.raises(ValueError, match="start must be one of noise, data"):
        Straightening((1.0, 0.0), start="end")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        TeacherSolution(0)
    with pytest.raises(ValueError, match="low and high"):
        FlowGuided(0.8, 0.2)
    with pytest.raises(ValueError, match="parts must hold"):
        Together(())
    with pytest.raises(ValueError, match="needs a teacher"):
        FlowGuided()(situation(point(FLOW), SampleBatch(torch.zeros(2, 2))))
