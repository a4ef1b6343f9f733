"""MDT-dist: velocity matching and velocity distillation on exact flows, by formula, and in training."""

import pytest
import torch
from tests.core.gaussian_maps import apart, euler, exact, learned, states, teacher_of

from fewstep.core import paths
from fewstep.core.clock import clock_at
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.methods import Material
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.objectives.score.velocity_distillation import VelocityDistillation
from fewstep.core.objectives.trajectory.base import Situation
from fewstep.core.objectives.trajectory.velocity_matching import VelocityMatching, generated
from fewstep.core.training import Moment

FLOW = paths.RectifiedFlow(time="t")
PATHS = (FLOW, paths.EDM(time="sigma"), paths.RectifiedFlow(time="t", perturbation=0.4))


def situation(student, batch, teacher=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Situation(student, student, teacher, SampleBatch.read(batch), generator, Moment())


def network(classes=0):
    torch.manual_seed(0)
    net = MLP(MLPConfig((3,), 16, 2, 16, classes=classes)).double()
    torch.nn.init.normal_(net.last.weight, std=0.3)
    return net


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_exact_flows_match_in_continuous_time(path):
    """The mean velocity of Gaussian data to the clean end equals its own target, on any path."""
    x0, _, _, y = states(path, count=32, y=path.uses_y)
    student, teacher = exact(path, y, consistency=True), exact(path, y)
    batch = {"x0": x0} if y is None else {"x0": x0, "y": y}
    rule = VelocityMatching("continuous", c=None)
    match = rule.match(situation(student, batch, teacher), x0, torch.randn_like(x0))
    torch.testing.assert_close(match.estimate, match.target, rtol=1e-10, atol=1e-10)
    assert rule(situation(student, batch, teacher)).max() < 1e-18
    wrong = FlowMap(lambda x, t: 0.5 * x, path, "x0", student.conditions)
    assert rule(situation(wrong, batch, teacher)).max() > 1e-3


@pytest.mark.parametrize("kind", ["discrete", "cm"])
def test_exact_flows_match_to_first_order(kind):
    """The backward difference has an error of order Δ."""
    x0, _, _, _ = states(FLOW, count=64)
    student, teacher = exact(FLOW, consistency=True), exact(FLOW)
    errors = []
    for interval in (0.02, 0.01):
        rule = VelocityMatching(kind, interval, c=None)
        match = rule.match(situation(student, x0, teacher), x0, torch.randn(64, 3, dtype=torch.float64))
        scale = 1 if kind == "discrete" else 1 / interval
        errors.append(((match.estimate - match.target) * scale).abs().mean().item())
    assert errors[1] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.5)


def test_discrete_target_is_the_published_formula():
    """v_T − t·dv/(‖dv‖ + 0.1), dv = (v(x_t, t) − v(x_t − Δ·v_T, t − Δ))/Δ, the norm that of a sample."""
    net, rule = network(), VelocityMatching()
    student, teacher = FlowMap(net, FLOW, "velocity"), exact(FLOW)
    x0, noise = torch.randn(2, 8, 3, dtype=torch.float64)
    match = rule.match(situation(student, x0, teacher), x0, noise)
    draw = rule.times(FLOW, 8, torch.Generator().manual_seed(0))
    t = 0.01 + 1e-5 + (1 - 0.01 - 1e-5) * draw
    x = FLOW.corrupt(x0, t, noise)
    velocity = teacher.mean_velocity(x, t)
    earlier = net(x - 0.01 * velocity, t - 0.01)
    rate = (net(x, t) - earlier) / 0.01
    wanted = velocity - t[:, None] * rate / (rate.norm(dim=1, keepdim=True) + 0.1)
    torch.testing.assert_close(match.target, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(match.estimate, net(x, t), rtol=1e-9, atol=1e-9)
    assert not match.target.requires_grad


def test_phases_end_where_the_clock_is_divided():
    """With four phases a jump from tau leads to the last quarter below tau − Δ."""
    rule = VelocityMatching("cm", phases=4)
    x0 = torch.randn(200, 3, dtype=torch.float64)
    seen = []
    teacher = FlowMap(lambda x, t: seen.append(clock_at(FLOW, t)) or x, FLOW, "x0")
    length = rule.match(situation(exact(FLOW), x0, teacher), x0, torch.randn_like(x0)).length
    end = 4 * (seen[0] - length)
    torch.testing.assert_close(end, end.round(), rtol=0, atol=1e-9)
    assert (length > 0.01 - 1e-9).all()
    assert (length <= 0.26 + 1e-9).all()


def test_distillation_gives_the_start_the_gradient_of_the_mismatch():
    """∂loss/∂v_start = 2·(v − v_target) per element, and nothing flows through what is compared."""
    net, rule = network(), VelocityMatching()
    student, teacher = FlowMap(net, FLOW, "velocity"), exact(FLOW)
    like = torch.zeros(8, 3, dtype=torch.float64)
    VelocityDistillation(rule)(situation(student, like, teacher)).mean().backward()
    gradient = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    at = situation(student, like, teacher)
    x0, start = generated(student, like, at.generator)
    match = rule.match(at, x0.detach(), normal_like(x0, at.generator))
    pull = (match.estimate - match.target).detach()
    (2 * pull * start).sum(1).mean().div(3).backward()
    for mine, wanted in zip(gradient, [p.grad for p in net.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(mine, wanted)


def test_distillation_leaves_an_exact_student_alone():
    """Its samples have the teacher's distribution, for which its own velocities are right."""
    student, teacher = exact(FLOW, consistency=True), exact(FLOW)
    rule = VelocityDistillation(VelocityMatching("continuous", c=None))
    assert rule(situation(student, torch.zeros(64, 3, dtype=torch.float64), teacher)).max() < 1e-18


def test_samples_of_the_exact_student_are_those_of_the_data():
    student = exact(FLOW, consistency=True)
    x0, _ = generated(student, torch.zeros(20_000, 2, dtype=torch.float64), torch.Generator().manual_seed(0))
    assert x0.std().item() == pytest.approx(0.7, abs=0.01)


def test_method_learns():
    """One call is nearer to N(1, 0.3²) than two Euler steps of the exact flow."""
    samples = learned(methods.get("mdt"), teacher_of(1.0, 0.3), 100, 0.1, mean=0.0, std=2.0)
    assert apart(samples) < apart(euler(2))


def test_guidance_needs_classes_and_moves_the_target():
    net = network(classes=2)
    label = torch.tensor([0, 1, 0, 1])
    flow = FlowMap(net, FLOW, "velocity", {"label": label})
    batch = {"x0": torch.randn(4, 3, dtype=torch.float64), "label": label}
    losses = []
    for scale in (1.0, 41.0):
        material = Material(FLOW, "velocity", net, flow, (3,), null_label=2)
        (phase,) = methods.get("mdt").make(material, matching_guidance=scale).phases()
        losses.append(phase.loss({"student": net}, batch, torch.Generator().manual_seed(0), Moment()))
    assert losses[1]["matching"] > 2 * losses[0]["matching"]
    torch.testing.assert_close(losses[0]["distillation"], losses[1]["distillation"])
    with pytest.raises(ValueError, match="classes"):
        methods.get("mdt").make(Material(FLOW, "velocity", net, flow, (3,)), matching_guidance=2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VelocityMatching("jump"), "kind must be one of discrete, continuous, cm, got 'jump'"),
        (lambda: VelocityMatching(interval=0.0), r"interval must be in \(0, 1\), got 0.0"),
        (lambda: VelocityMatching(phases=2), "phases must be 1, or more for kind 'cm'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
