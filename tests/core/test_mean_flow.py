"""MeanFlow: the published loss, exact flow maps, derivatives, guidance, and OFQL's use of it."""

# pyright: reportArgumentType=false

import json
import math
from pathlib import Path as File

import pytest
import torch
from safetensors.torch import load_file
from tests.core.gaussian_maps import apart, euler, exact, learned, states, teacher_of
from torch import nn

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.derivative import value_and_rate
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.times import Uniform
from fewstep.core.objectives.trajectory.action_value import ActionValue
from fewstep.core.objectives.trajectory.base import Situation, TrajectoryDistillation
from fewstep.core.objectives.trajectory.guided_velocity import LabelGuidance
from fewstep.core.objectives.trajectory.mean_flow import MeanFlow, VelocityMixture, mean_flow_pair
from fewstep.core.objectives.trajectory.time_pairs import Capped, Ordered
from fewstep.core.objectives.trajectory.velocity_matching import generated
from fewstep.core.objectives.trajectory.weighted_rules import WeightedRules
from fewstep.core.training import Moment

GOLDEN = File(__file__).parents[1] / "golden" / "distill"
FLOW = paths.RectifiedFlow(time="t", t_min=1e-6)
TABLE = paths.VP.from_betas([0.1, 0.2, 0.3])
PATHS = (
    paths.RectifiedFlow(time="t"),
    paths.EDM(time="sigma"),
    paths.CosineVP(time="t"),
    paths.RectifiedFlow(time="t", perturbation=0.4),
)


class GoldenNet(nn.Module):
    """u(z, t, h) = p0·tanh(z)·cos(t) + p1·z·h + p2·sin(t + h), h = t − r."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([0.6, -0.3, 0.2], dtype=torch.float64))

    def forward(self, x, t, s):
        t, h = (value.reshape(-1, 1, 1, 1) for value in (t, t - s))
        return self.p[0] * x.tanh() * t.cos() + self.p[1] * x * h + self.p[2] * (t + h).sin()


def situation(student, batch, teacher=None, seed=0, moment=None):
    generator = torch.Generator().manual_seed(seed)
    return Situation(student, student, teacher, SampleBatch.read(batch), generator, moment or Moment())


def shaken(net):
    """Last layers start at zero, which hides every derivative."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in net.parameters():
            if not weight.any():
                weight += 0.2 * torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5
    return net


@pytest.mark.parametrize("version", ["v0", "v1"])
@pytest.mark.parametrize(("mode", "tolerance"), [("jvp", 1e-12), ("difference", 1e-7)])
def test_published_loss_and_gradient(version, mode, tolerance):
    """Both versions of the published PyTorch code, in float64; the difference's error is step²."""
    tensors = load_file(GOLDEN / "score_and_flow_losses.safetensors")
    case = json.loads((GOLDEN / "score_and_flow_losses.json").read_text())["cases"][f"meanflow.{version}"]
    t, r, noise = (tensors[f"in.meanflow.{version}.{name}"] for name in ("t", "r", "noise"))
    net = GoldenNet()
    rule = MeanFlow(lambda *_: (t, r), case["norm_p"], case["norm_eps"], mode=mode)
    objective = TrajectoryDistillation(FLOW, "velocity", rule)
    losses = objective._loss(
        {"student": net}, {"x0": tensors["in.images"], "noise": noise}, torch.Generator(), Moment()
    )
    losses["loss"].backward()
    wanted, gradient = (tensors[f"out.meanflow.{version}.{name}"] for name in ("loss", "grad_p"))
    assert losses["loss"].item() == pytest.approx(wanted.item(), rel=tolerance)
    torch.testing.assert_close(net.p.grad, gradient, rtol=10 * tolerance, atol=tolerance)
    assert losses["squared_error"] > losses["loss"]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: type(path).__name__)
@pytest.mark.parametrize(("mode", "tolerance"), [("jvp", 1e-10), ("difference", 1e-5)])
def test_exact_flow_map_solves_the_identity(path, mode, tolerance):
    """u of Gaussian data equals its own target on every path, with y too."""
    x, t, s, y = states(path, y=path.uses_y)
    flow = exact(path, y)
    velocity = flow.mean_velocity(x, t, t)
    estimate, target = mean_flow_pair(flow, x, t, s, velocity, mode)
    assert (estimate - velocity).abs().max() > 0.01
    torch.testing.assert_close(estimate, target, rtol=tolerance, atol=tolerance)


def test_distillation_of_an_exact_teacher_has_no_loss():
    """From data the loss keeps the variance of eps − x0; from the teacher nothing is left."""
    path = paths.RectifiedFlow(time="t")
    flow = exact(path)
    data = torch.randn(64, 3, dtype=torch.float64)
    rule = MeanFlow(Ordered(Uniform(0.05, 0.95), 0.7), p=0.0)
    assert rule(situation(flow, data, flow))["loss"] < 1e-18
    assert rule(situation(flow, data))["loss"] > 0.1


NETS = {
    "mlp": lambda: (MLP(MLPConfig((3,), 16, 2, 16, two_times=True)), (3,)),
    "unet": lambda: (
        UNet(UNetConfig((8, 8), 1, (8, 16), groups=4, attention=(4,), two_times=True)),
        (1, 8, 8),
    ),
    "dit": lambda: (DiT(DiTConfig(width=16, depth=2, heads=2, two_times=True)), (1, 8, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_difference_and_jvp_give_the_same_gradient(name):
    """In float32, through attention, group norms and convolutions; dropout draws alike in all passes."""
    net, shape = NETS[name]()
    shaken(net)
    data, gradients = torch.randn(8, *shape), {}
    for mode in ("jvp", "difference"):
        net.zero_grad()
        flow = FlowMap(net, paths.RectifiedFlow(time="t"), "velocity")
        loss = MeanFlow(Ordered(ratio=1.0), mode=mode)(situation(flow, data))["loss"]
        loss.backward()
        gradients[mode] = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    assert torch.cosine_similarity(*gradients.values(), dim=0) > 0.99999


def test_difference_sees_one_dropout_mask():
    """Two masks would make the difference of order 1/step."""
    net = nn.Sequential(nn.Dropout(0.5))
    flow = FlowMap(lambda x, t: net(x) * x, paths.RectifiedFlow(time="t"), "velocity")
    x = torch.full((4, 50), 3.0)
    value, rate = value_and_rate(
        lambda f, at: f.net(at, None), flow, (x,), (torch.ones_like(x),), "difference"
    )
    assert set(rate.round().unique().tolist()) == {0.0, 12.0}
    assert set(value.unique().tolist()) == {0.0, 18.0}


def test_one_pass_gives_estimate_and_derivative():
    calls = []
    net = MLP(MLPConfig(two_times=True))
    net.register_forward_hook(lambda *_: calls.append(1))
    flow = FlowMap(net, paths.RectifiedFlow(time="t"), "velocity")
    MeanFlow()(situation(flow, torch.randn(4, 2)))["loss"].backward()
    assert len(calls) == 1


def test_slope_by_time_is_bounded_at_the_start():
    """‖∂u/∂t‖/‖u‖ follows `fastest` and the scale of the told time; a large one drowns everything else."""

    def slope(fastest, time="t"):
        torch.manual_seed(0)
        net = shaken(MLP(MLPConfig(fastest=fastest, slowest=0.5, two_times=True)))
        flow = FlowMap(net, paths.RectifiedFlow(time=time), "velocity")
        x, t = torch.randn(256, 2), torch.rand(256, dtype=torch.float64)
        point, direction = (x, t, t / 2), (torch.zeros_like(x), torch.ones_like(t), torch.zeros_like(t))
        value, rate = value_and_rate(FlowMap.mean_velocity, flow, point, direction)
        return (rate.square().mean() / value.detach().square().mean()).sqrt()

    usual = slope(MLPConfig().fastest)
    assert usual < 0.1
    assert slope(100.0) > 10 * usual
    assert slope(MLPConfig().fastest, "1000t") > 100 * usual


def test_guidance_is_mixed_into_the_velocity():
    """v = ω·v + κ·u(label) + (1 − ω − κ)·u(none); dropped labels keep v."""
    torch.manual_seed(0)
    net = shaken(MLP(MLPConfig(two_times=True, classes=3)))
    label = torch.tensor([0, 1, 2, 1])
    flow = FlowMap(net, paths.RectifiedFlow(time="t"), "velocity", {"label": label})
    x, t, v = torch.randn(4, 2), torch.full((4,), 0.4, dtype=torch.float64), torch.randn(4, 2)
    _, mixed = VelocityMixture(1.5, 0.3, 3, drop=0.0)(flow, x, t, v, torch.Generator())
    own, free = flow.mean_velocity(x, t, t), flow.given(label=torch.full((4,), 3)).mean_velocity(x, t, t)
    torch.testing.assert_close(mixed, 1.5 * v + 0.3 * own - 0.8 * free)
    told, mixed = VelocityMixture(1.5, 0.3, 3, drop=1.0)(flow, x, t, v, torch.Generator())
    assert torch.equal(mixed, v)
    assert told.conditions["label"].tolist() == [3, 3, 3, 3]
    teacher = MeanFlow(Ordered(ratio=0.0), p=0.0, guidance=LabelGuidance(1.0, 3))
    batch = {"x0": torch.randn(4, 2), "label": label}
    assert teacher(situation(flow, batch, flow))["loss"] == 0
    stronger = MeanFlow(Ordered(ratio=0.0), p=0.0, guidance=LabelGuidance(2.0, 3))
    assert stronger(situation(flow, batch, flow))["loss"] > 1e-4
    unlabelled = FlowMap(net, flow.path, "velocity")
    with pytest.raises(ValueError, match="label"):
        stronger(situation(unlabelled, torch.randn(4, 2), unlabelled))


@pytest.mark.parametrize("pairs", [Ordered(ratio=0.3), Capped(ratio=0.3)])
def test_pairs_of_times_are_ordered_and_some_alike(pairs):
    t, s = pairs(paths.RectifiedFlow(), 20_000, torch.Generator().manual_seed(0))
    assert (s <= t).all()
    apart = (s < t).double().mean().item()
    # Where a drawn s lies above t, Capped has s = t as well.
    assert apart == pytest.approx(0.3, abs=0.013 if isinstance(pairs, Ordered) else 0.04)
    assert t.logit().mean().item() == pytest.approx(
        -0.4 + 1 / math.sqrt(math.pi) if isinstance(pairs, Ordered) else -0.6, abs=0.05
    )


def test_mask_takes_elements_out_of_the_loss():
    torch.manual_seed(0)
    net = shaken(MLP(MLPConfig((4,), two_times=True)))
    flow = FlowMap(net, paths.RectifiedFlow(time="t"), "velocity")
    data, mask = torch.randn(6, 4), torch.tensor([1.0, 1.0, 0.0, 0.0])
    whole, part = (
        MeanFlow(p=0.0)(situation(flow, {"x0": data, **more}))["loss"] for more in ({}, {"mask": mask})
    )
    assert 0 < part < whole


def test_policy_imitates_and_seeks_value():
    """OFQL: with a critic that wants larger actions, the gradient at the start makes them larger."""
    torch.manual_seed(0)
    net = shaken(MLP(MLPConfig((2,), two_times=True)))
    flow = FlowMap(net, paths.RectifiedFlow(time="t"), "velocity")
    value = ActionValue(lambda actions, told: actions.sum(1), limit=None)
    losses = WeightedRules((("imitation", 1.0, MeanFlow(p=0.0)), ("value", 0.5, value)))(
        situation(flow, torch.randn(8, 2))
    )
    assert losses["loss"] == losses["imitation"] + 0.5 * losses["value"]

    def actions():
        return generated(flow, torch.zeros(512, 2), torch.Generator().manual_seed(1))[0].mean().item()

    before = actions()
    value(situation(flow, torch.zeros(512, 2))).mean().backward()
    with torch.no_grad():
        for weight in net.parameters():
            if weight.grad is not None:
                weight -= 0.001 * weight.grad
    assert actions() > before + 1e-4


@pytest.mark.parametrize("name", ["meanflow", "meanflow-distill"])
def test_methods_learn(name):
    """One call is nearer to N(1, 0.3²) than two Euler steps of the exact flow."""
    samples = learned(methods.get(name), teacher_of(1.0, 0.3), 150, 0.1, std=2.0, derivative="difference")
    assert apart(samples) < apart(euler(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MeanFlow(mode="exact"), "mode must be one of jvp, difference, got 'exact'"),
        (lambda: MeanFlow(step=0.0), "step must be positive, got 0.0"),
        (lambda: Ordered(ratio=1.5), r"ratio must be in \[0, 1\], got 1.5"),
        (lambda: Capped(ratio=-1.0), r"ratio must be in \[0, 1\], got -1.0"),
        (lambda: ActionValue(print, limit=0.0), "limit must be None or positive, got 0.0"),
        (lambda: WeightedRules(()), r"different names other than 'loss', got \[\]"),
        (
            lambda: MeanFlow(mixture=VelocityMixture(1, 0, 3), guidance=LabelGuidance(2.0, 3)),
            "give one of them",
        ),
        (
            lambda: MeanFlow()(situation(FlowMap(lambda x, t: x, TABLE, "x0"), torch.zeros(2, 2))),
            "needs a continuous path",
        ),
        (
            lambda: MeanFlow()(
                situation(
                    FlowMap(MLP(MLPConfig(two_times=True)), paths.VP.cosine(), "velocity"), torch.zeros(2, 2)
                )
            ),
            "use mode='difference'",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
