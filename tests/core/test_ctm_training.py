"""CTM: the published losses in all nine forms, exact jumps, who gets gradients, and the terms."""

import math
from typing import Any

import pytest
import torch
from tests.core.trajectory_cases import (
    GaussianMap,
    OfficialTwoTimeNet,
    golden,
    gradient,
    situation,
    told_path,
)
from torch import nn

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.trajectory.consistency_trajectory import ConsistencyTrajectory
from fewstep.core.objectives.trajectory.ctm import TrajectoryConsistency
from fewstep.core.objectives.trajectory.ctm_outer import OuterFlowMap
from fewstep.core.objectives.trajectory.ctm_terms import Balance, DenoisingTerm, HalfLogNormal, last_layer
from fewstep.core.training import Moment

INFO, TENSORS = golden("ctm")
PATH = paths.EDM()
INNER = {"edm": "edm", "cm": "edm-boundary", "no": "x0"}
OUTER = {"euler": "euler", "variance": "variance", "euler_variance_mixed": "mixed"}


def levels(index):
    """Their noise levels, which are made in float32."""
    ends = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    return ((ends[0] + index.float() / 17 * (ends[1] - ends[0])) ** 7).double()


def close(got, wanted, tolerance):
    got = got.detach()
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()


def official(case):
    """(rule, situation, the times visited, s, the student as flow map) of a golden case."""
    inner, outer = case.split(".")
    nets = [OfficialTwoTimeNet(INFO[f"{who}_p"]) for who in ("student", "target", "teacher")]
    student, target = (FlowMap(net, PATH, INNER[inner]) for net in nets[:2])
    about = situation(PATH, TENSORS["in.x_start"], student, target, FlowMap(nets[2], PATH, "edm"))
    visited = torch.stack([levels(TENSORS["in.t_index"] + n) for n in range(INFO["num_heun_step"] + 1)])
    return TrajectoryConsistency(outer=OUTER[outer]), about, visited, levels(TENSORS["in.s_index"])


@pytest.mark.parametrize("case", INFO["cases"])
def test_official(case):
    """Their levels and scalars are float32; where c_skip − s/t cancels a gradient is off by 2e-6."""
    rule, about, visited, s = official(case)
    wanted = {
        name: TENSORS[f"out.{case}.{name}"] for name in ("denoised", "G", "x_t_dt", "estimate", "target")
    }
    x = PATH.corrupt(about.batch.x0, visited[0], TENSORS["in.noise"])
    flow = OuterFlowMap(about.student.net, PATH, about.student.prediction, outer=rule.outer)
    slant = flow.x0(x, visited[0]) - flow.inner(x, visited[0])
    close(flow.inner(x, visited[0], s) + slant, wanted["denoised"], 2e-6)
    close(flow.jump(x, visited[0], s), wanted["G"], 1e-6)
    arrived = rule.transported(about, x, visited, TENSORS["in.noise"])
    close(arrived, wanted["x_t_dt"], 1e-6)
    close(rule.estimate(about, arrived, visited[-1], s), wanted["target"], 1e-6)
    loss, estimate = rule.between(about, TENSORS["in.noise"], visited, s)
    close(estimate, wanted["estimate"], 1e-6)
    loss.mean().backward()
    close(loss.mean().reshape(1), TENSORS[f"out.{case}.mse_loss"], 1e-6)
    close(about.student.net.p.grad, TENSORS[f"out.{case}.grad_p"], 3e-6)


@pytest.mark.parametrize("outer", ["variance", "mixed"])
def test_outer_scalings(outer):
    """c_skip and c_out of a jump to half the level: of x = 1 with g = 0, and of x = 0 with g = 1."""
    name = {"variance": "variance", "mixed": "euler_variance_mixed"}[outer]
    t = TENSORS["in.scal.sigma"]
    one = torch.ones(5, 1, dtype=torch.float64)
    got = [
        OuterFlowMap(lambda x, t, s=None, g=g: torch.full_like(x, g), PATH, "x0", outer=outer).jump(
            x, t, t / 2
        )
        for x, g in ((one, 0.0), (0 * one, 1.0))
    ]
    close(torch.stack(got)[..., 0], TENSORS[f"out.scal.outer.{name}"], 1e-6)


@pytest.mark.parametrize("outer", ["variance", "mixed"])
def test_the_denoiser_is_the_limit_of_jumps(outer):
    flow = OuterFlowMap(lambda x, t, s=None: x.sin(), PATH, "x0", outer=outer)
    x, t = torch.randn(9, 2, dtype=torch.float64), torch.logspace(-2, 1, 9, dtype=torch.float64)
    apart = flow.x0(x, t, t * (1 - 1e-6)) - flow.x0(x, t)
    assert apart.abs().max() < 1e-5


@pytest.mark.parametrize("name", ["edm", "vp", "flow"])
def test_exact_jumps_have_no_loss(name):
    """A4: with the exact flow map as student, target and transport the loss is rounding."""
    path = told_path(name)
    exact = FlowMap(GaussianMap(path), path, "x0")
    jump = lambda situation, x, t, u, noise: exact.jump(x, t, u)  # noqa: E731
    x0 = 0.5 * torch.randn(64, 3, dtype=torch.float64)
    for step in range(4):
        about = situation(path, x0, exact, teacher=exact, moment=Moment(step), seed=step)
        assert float(TrajectoryConsistency(transport=jump)(about).detach().max()) < 1e-20
    wrong = situation(path, x0, FlowMap(GaussianMap(path, error=0.1), path, "x0"), exact, exact)
    assert float(TrajectoryConsistency(transport=jump)(wrong).detach().max()) > 1e-4


def test_gradients_pass_the_target_but_not_its_weights():
    """Trap: the jump to the clean end is the target's; the student learns through its input."""
    path = told_path("edm")
    student, target, teacher = (GaussianMap(path, error=e).requires_grad_(e == 0.1) for e in (0.1, 0.0, 0.01))
    about = situation(
        path,
        0.5 * torch.randn(32, 3, dtype=torch.float64),
        FlowMap(student, path, "x0"),
        FlowMap(target, path, "x0"),
        FlowMap(teacher, path, "x0"),
    )
    TrajectoryConsistency()(about).mean().backward()
    assert float(gradient(student.error).abs()) > 1e-6
    assert target.error.grad is None
    assert teacher.error.grad is None


def test_the_number_of_transports():
    """A function of the update alone, the same on all processes; shares ∝ n within four standard errors."""
    rule = TrajectoryConsistency()
    draws = torch.tensor([rule.transports(Moment(step), 17) for step in range(3000)])
    assert torch.equal(draws[:50], torch.tensor([rule.transports(Moment(s, 0.5), 17) for s in range(50)]))
    share = torch.bincount(draws, minlength=18)[1:] / 3000
    wanted = torch.arange(1, 18) / 153
    assert ((share - wanted).abs() < 4 * (wanted / 3000).sqrt()).all()


def test_times_are_ordered():
    rule, path = TrajectoryConsistency(points=8), told_path("flow")
    exact = FlowMap(GaussianMap(path), path, "x0")
    for step in range(20):
        about = situation(path, torch.zeros(200, 1), exact, moment=Moment(step), seed=step)
        _, visited, s = rule.draw(about)
        assert bool((visited.diff(dim=0) < 0).all())
        assert bool((s <= visited[-1]).all())
        assert float(s.min()) == path.t_min


def test_half_log_normal():
    path, times = paths.EDM(), HalfLogNormal()
    t = times(path, 4001, torch.Generator().manual_seed(0))
    lower, upper = t[:2000].log(), t[2000:]
    assert float(lower.mean()) == pytest.approx(-1.2, abs=4 * 1.2 / math.sqrt(2000))
    low = (80 ** (1 / 7) + 0.7 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert low <= float(upper.min()) < 1.2 * low
    assert 75 < float(upper.max()) <= 80


def test_balance():
    """The weighted term moves the last layer as much as the main one."""
    net: Any = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    out = net(torch.randn(8, 3))
    main, term = out.square().mean(), 7 * (out - 1).square().mean()
    weight = Balance()(main, term, net)
    assert last_layer(net) is net[2].weight
    norms = [torch.autograd.grad(loss, net[2].weight, retain_graph=True)[0].norm() for loss in (main, term)]
    assert float(weight) == pytest.approx(float(norms[0] / (norms[1] + 1e-4)), rel=1e-5)
    assert float(Balance(0.01, 0.02)(main, term, net)) == pytest.approx(0.02)
    assert not weight.requires_grad
    with torch.no_grad():
        assert float(Balance()(net(torch.ones(1, 3)).mean(), term.detach(), net)) == 1.0


class Judge(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 1)

    def forward(self, features, t):
        return self.layer(features[-1])


def objective(**options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    net, teacher = (MLP(MLPConfig((2,), 16, 1, 8, two_times=True)) for _ in range(2))
    return net, ConsistencyTrajectory(
        PATH,
        "edm",
        TrajectoryConsistency(points=6),
        FlowMap(teacher, PATH, "edm"),
        student=net,
        **options,
    )


def test_the_objective_with_all_terms():
    """Every phase gives finite gradients to its own networks; the target moves with the student alone."""
    teacher = MLP(MLPConfig((2,), 16, 1, 8)).requires_grad_(False)
    head: Any = AdversarialHead(PATH, Judge(), features=teacher, times=None, loss="hinge")
    net, ctm = objective(denoising=DenoisingTerm(), adversarial=head, adversarial_from=0.5)
    networks = {"student": net, **ctm.modules()}
    generator, batch = torch.Generator().manual_seed(0), torch.randn(8, 2)
    first, second = ctm.phases()
    assert (first.trains, second.trains) == (("student",), ("head",))
    assert "adversarial" not in first.loss(networks, batch, generator, Moment(3, 0.4))
    losses = first.loss(networks, batch, generator, Moment(3, 0.6))
    parts = (
        losses["denoising_weight"] * losses["denoising"]
        + losses["adversarial_weight"] * losses["adversarial"]
    )
    assert torch.allclose(losses["loss"], losses["jumps"] + parts)
    losses["loss"].backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert float(net.last.weight.grad.abs().max()) > 0
    head.module.zero_grad()
    second.loss(networks, batch, generator, Moment(3, 0.6))["loss"].backward()
    assert float(head.module.layer.weight.grad.abs().max()) > 0
    before = ctm.target.last.weight.clone()
    with torch.no_grad():
        net.last.weight += 1
    ctm.after_update("judge", networks, Moment())
    assert torch.equal(ctm.target.last.weight, before)
    ctm.after_update("student", networks, Moment())
    assert torch.allclose(ctm.target.last.weight, before + 1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrajectoryConsistency(points=1), "points must be at least 2, got 1"),
        (lambda: TrajectoryConsistency(outer="round"), "outer must be one of euler, .* got 'round'"),
        (lambda: TrajectoryConsistency(most=18), "most must lie between 1 and points − 1 = 17, got 18"),
        (lambda: OuterFlowMap(lambda x, t: x, PATH, "x0", outer="round"), "outer must be one of"),
        (lambda: HalfLogNormal(reach=0.0), "reach must lie in \\(0, 1\\], got 0.0"),
        (lambda: Balance(2.0, 1.0), "0 <= low <= high, got 2.0 and 1.0"),
        (lambda: DenoisingTerm(weight="best"), "weight must be one of"),
        (lambda: objective(adversarial_from=2.0), "adversarial_from must lie in \\[0, 1\\], got 2.0"),
        (
            lambda: ConsistencyTrajectory(PATH, "edm", TrajectoryConsistency(), None, student=OneTime()),
            "student must take a second time s",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class OneTime(nn.Module):
    def forward(self, x, t):
        return x
