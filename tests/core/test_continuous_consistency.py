"""sCM: the tangent on exact consistency functions, its formula, warm-up, log-variance and training."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false

import pytest
import torch
from tests.core.gaussian_maps import apart, euler, exact, learned, states, teacher_of
from torch import nn

from fewstep.core import paths
from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.trajectory.base import Situation
from fewstep.core.objectives.trajectory.continuous_consistency import (
    ContinuousConsistency,
    ContinuousConsistencyTraining,
    LogVariance,
    consistency_tangent,
)
from fewstep.core.objectives.trajectory.guided_velocity import LabelGuidance
from fewstep.core.objectives.trajectory.trig_flow import along_angle, angle_at, rotated, rotation_field
from fewstep.core.training import Moment, Trainer, TrainerConfig

PATHS = (
    paths.EDM(time="sigma"),
    paths.EDM(time="sigma", sigma_data=1.3),
    paths.RectifiedFlow(time="t"),
    paths.CosineVP(time="t"),
    paths.RectifiedFlow(time="t", perturbation=0.4),
)
LATE = Moment(10**6, 0.5)


def situation(student, batch, teacher=None, moment=LATE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Situation(student, student, teacher, SampleBatch.read(batch), generator, moment)


def shaken(net):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in net.parameters():
            if not weight.any():
                weight += 0.2 * torch.randn(weight.shape, generator=generator) / weight.shape[-1] ** 0.5
    return net


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_rotation_is_the_one_of_trig_flow(path):
    """x̂ = cos·x0 + sin·sd·eps and D = cos·x̂ − sin·sd·F on every path, with y too."""
    x, t, _, y = states(path, y=path.uses_y)
    x0, eps = torch.randn(2, *x.shape, dtype=torch.float64)
    angle, sd = spread(angle_at(path, t), x), path.sigma_data
    state = path.corrupt(x0, t, eps, y)
    turned = rotated(path, state, t, y)
    torch.testing.assert_close(turned, angle.cos() * x0 + angle.sin() * sd * eps)
    flow = exact(path, y)
    field = rotation_field(flow, state, t)
    torch.testing.assert_close(angle.cos() * turned - angle.sin() * sd * field, flow.x0(state, t))


def test_field_of_edm_is_minus_its_output():
    """So that a network of EDM's kind is a network of TrigFlow's, up to the sign."""
    path = paths.EDM()
    net = shaken(MLP(MLPConfig((3,)))).double()
    x, t, _, _ = states(path)
    flow = FlowMap(net, path, "edm")
    torch.testing.assert_close(rotation_field(flow, x, t), -flow.predict(x, t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_rates_by_the_angle(path):
    """A state that moves by the direction moves its angle by cos·sin and its rotated form by the velocity."""
    x, t, _, y = states(path, y=path.uses_y)
    velocity, step = torch.randn_like(x), 1e-6
    dx, dt = along_angle(path, x, t, velocity, y)
    angle = angle_at(path, t)
    damped = angle.cos() * angle.sin()
    sides = [(x + h * dx, t + h * dt) for h in (step, -step)]
    turns = (angle_at(path, sides[0][1]) - angle_at(path, sides[1][1])) / (2 * step)
    torch.testing.assert_close(turns, damped, rtol=1e-6, atol=1e-8)
    moves = (rotated(path, *sides[0], y) - rotated(path, *sides[1], y)) / (2 * step)
    torch.testing.assert_close(moves, spread(damped, x) * velocity, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize(("mode", "tolerance"), [("jvp", 1e-10), ("difference", 1e-5)])
def test_exact_consistency_function_has_no_tangent(path, mode, tolerance):
    """f(x, t) = x·std/sqrt(t² + std²) and its likes are constant along the exact trajectories."""
    x, t, _, y = states(path, y=path.uses_y)
    teacher, student = exact(path, y), exact(path, y, consistency=True)
    velocity = path.sigma_data * rotation_field(teacher, x, t)
    _, tangent = consistency_tangent(student, x, t, velocity, mode=mode)
    assert tangent.abs().max() < tolerance
    _, wrong = consistency_tangent(teacher, x, t, velocity, mode=mode)
    assert wrong.abs().max() > 1e-2


class Blend(nn.Module):
    """A learned share of the denoiser in the exact consistency function."""

    def __init__(self, path, share):
        super().__init__()
        self.right, self.wrong = exact(path, consistency=True).net, exact(path).net
        self.share = nn.Parameter(torch.tensor(share, dtype=torch.float64))

    def forward(self, x, t):
        return torch.lerp(self.right(x, t), self.wrong(x, t), self.share)


def test_loss_and_gradient_vanish_only_at_the_exact_function():
    path = paths.EDM(time="sigma")
    data = 0.7 * torch.randn(64, 3, dtype=torch.float64)
    for share, still in ((0.0, True), (0.2, False)):
        net = Blend(path, share)
        losses = ContinuousConsistency()(situation(FlowMap(net, path, "x0"), data, exact(path)))
        losses["loss"].backward()
        assert (losses["loss"].item() < 1e-15) is still
        assert (net.share.grad.abs().item() < 1e-8) is still


def test_tangent_grows_with_the_warm_up():
    """r = 0 leaves −cos²·(sd·F − x̂'), the part that is stable from the start."""
    path = paths.EDM()
    net = shaken(MLP(MLPConfig((3,)))).double()
    x, t, _, _ = states(path)
    velocity = torch.randn_like(x)
    flow = FlowMap(net, path, "edm")
    (out, none), (_, half), (_, full) = (
        consistency_tangent(flow, x, t, velocity, warmth) for warmth in (0.0, 0.5, 1.0)
    )
    cosine = spread(angle_at(path, t).cos(), x)
    torch.testing.assert_close(none, -cosine.square() * (path.sigma_data * out - velocity))
    torch.testing.assert_close(half - none, full - half)
    rule, batch = ContinuousConsistency(warmup=100), x
    sizes = [
        float(rule(situation(flow, batch, moment=Moment(step)))["tangent"]) for step in (0, 50, 100, 1000)
    ]
    assert len(set(sizes)) == 3
    assert sizes[2] == sizes[3]


def test_loss_is_the_published_formula():
    """e^(−u)·mean(F − sg(F + ĝ))²/sigma + u, whose gradient by F is −2·ĝ·e^(−u)/sigma per element."""
    path = paths.EDM()
    net, head = shaken(MLP(MLPConfig((3,)))).double(), LogVariance().double()
    with torch.no_grad():
        head.last.bias.fill_(0.3)
    data = torch.randn(8, 3, dtype=torch.float64)
    rule = ContinuousConsistency(log_variance=head)
    losses = rule(situation(FlowMap(net, path, "edm"), data))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(data.shape, dtype=torch.float64, generator=generator)
    t = rule.times(path, 8, generator)
    x = path.corrupt(data, t, noise)
    angle = spread(angle_at(path, t), x)
    velocity = angle.cos() * path.sigma_data * noise - angle.sin() * data
    _, tangent = consistency_tangent(FlowMap(net, path, "edm"), x, t, velocity)
    tangent = tangent / (tangent.square().mean(1, keepdim=True).sqrt() + 0.1)
    u = head(path, t)
    wanted = ((-u).exp() * tangent.square().mean(1) / t + u).mean()
    torch.testing.assert_close(losses["loss"], wanted)


NETS = {
    "mlp": lambda: (MLP(MLPConfig((3,), 16, 2, 16)), (3,)),
    "unet": lambda: (UNet(UNetConfig((8, 8), 1, (8, 16), groups=4, attention=(4,))), (1, 8, 8)),
    "dit": lambda: (DiT(DiTConfig(width=16, depth=2, heads=2)), (1, 8, 8)),
}


@pytest.mark.parametrize("name", NETS)
def test_difference_and_jvp_give_the_same_gradient(name):
    net, shape = NETS[name]()
    shaken(net)
    data, gradients = torch.randn(8, *shape), []
    for mode in ("jvp", "difference"):
        net.zero_grad()
        rule = ContinuousConsistency(mode=mode)
        rule(situation(FlowMap(net, paths.EDM(), "edm"), data))["loss"].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.9999


def test_teacher_may_be_guided():
    torch.manual_seed(0)
    path = paths.EDM()
    flow = FlowMap(
        shaken(MLP(MLPConfig((2,), classes=3))), path, "edm", {"label": torch.tensor([0, 1, 2, 1])}
    )
    batch = {"x0": torch.randn(4, 2), "label": torch.tensor([0, 1, 2, 1])}
    plain, one, two = (
        ContinuousConsistency(guidance=guidance)(situation(flow, batch, flow))["loss"]
        for guidance in (None, LabelGuidance(1.0, 3), LabelGuidance(2.0, 3))
    )
    torch.testing.assert_close(plain, one)
    assert abs(two - plain) > 1e-4


def test_log_variance_is_trained_with_the_student(tmp_path):
    path, head = paths.EDM(), LogVariance()
    objective = ContinuousConsistencyTraining(path, "edm", ContinuousConsistency(log_variance=head))
    assert set(objective.modules()) == {"log_variance"}
    plain = ContinuousConsistencyTraining(path, "edm", ContinuousConsistency())
    assert plain.phases()[0].trains == ("student",)
    before = head.last.bias.clone()
    config = TrainerConfig(max_steps=2, log_every=1, tensorboard=False)

    def draw(generator):
        return torch.from_numpy(generator.standard_normal((8, 2))).float()

    Trainer(MLP(MLPConfig()), objective, draw, folder=tmp_path, config=config).fit()
    assert not torch.equal(head.last.bias, before)


@pytest.mark.parametrize(("name", "steps"), [("sct", 300), ("scm", 150)])
def test_methods_learn(name, steps):
    """One call is nearer to N(1, 0.3²) than two Euler steps of the exact flow."""
    samples = learned(methods.get(name), teacher_of(1.0, 0.3), steps, 0.1, derivative="difference")
    assert apart(samples) < apart(euler(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContinuousConsistency(mode="exact"), "mode must be one of jvp, difference, got 'exact'"),
        (lambda: ContinuousConsistency(warmup=0), "warmup must be at least 1, got 0"),
        (
            lambda: ContinuousConsistency()(
                situation(FlowMap(lambda x, t: x, paths.VP.from_betas([0.1, 0.2]), "x0"), torch.zeros(2, 2))
            ),
            "needs a continuous path",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
