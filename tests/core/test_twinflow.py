"""TwinFlow: any-step targets on exact flows, negative times, the split of the batch, and training."""

# pyright: reportArgumentType=false, reportOptionalMemberAccess=false, reportOptionalSubscript=false

import pytest
import torch
from tests.core.gaussian_maps import apart, euler, exact, learned, states

from fewstep.core import paths
from fewstep.core.clock import clock_at, spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.trajectory.base import Situation
from fewstep.core.objectives.trajectory.guided_velocity import LabelGuidance
from fewstep.core.objectives.trajectory.twin_flow import TwinFlow, any_step_target, twin
from fewstep.core.training import Moment

FLOW = paths.RectifiedFlow(time="t")
PATHS = (FLOW, paths.EDM(time="sigma"), paths.RectifiedFlow(time="t", perturbation=0.4))


def situation(student, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Situation(student, student, None, SampleBatch.read(batch), generator, Moment())


def network(classes=0):
    torch.manual_seed(0)
    net = MLP(MLPConfig((2,), 16, 2, 16, two_times=True, classes=classes))
    torch.nn.init.normal_(net.last.weight, std=0.3)
    torch.nn.init.normal_(net.embedding.second[-1].weight, std=0.3)
    return net


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_exact_flow_map_is_its_own_target(path):
    """Up to the error of the interval's Euler step, of order Δ."""
    x, t, s, y = states(path, count=64, y=path.uses_y)
    flow, errors = exact(path, y), []
    made = flow.mean_velocity(x, t, s)
    for interval in (0.02, 0.01):
        rule = TwinFlow(interval)
        target = any_step_target(rule, flow, made, x, t, s, flow.mean_velocity(x, t, t))
        errors.append((made - target).abs().mean().item())
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.4)


def test_target_by_its_formula():
    """u − clip((u·(t − s) − U)/Δ − v, ±1) far from s, and v itself (clipped) within the interval of s."""
    flow = FlowMap(network().double(), FLOW, "velocity")
    x, velocity = torch.randn(2, 5, 2, dtype=torch.float64)
    t, s = torch.full((5,), 0.8, dtype=torch.float64), torch.full((5,), 0.3, dtype=torch.float64)
    made = flow.mean_velocity(x, t, s)
    target = any_step_target(TwinFlow(limit=50.0), flow, made, x, t, s, velocity)
    half, z = torch.full_like(t, 0.545), x - 0.01 * velocity
    first = 0.245 * flow.mean_velocity(z, t - 0.01, half)
    both = first + 0.245 * flow.mean_velocity(z - first, half, s)
    wanted = made - ((made * 0.5 - both) / 0.01 - velocity)
    torch.testing.assert_close(target, wanted, rtol=1e-6, atol=1e-6)
    near = any_step_target(TwinFlow(limit=50.0), flow, made, x, t, t - 0.005, velocity)
    torch.testing.assert_close(near, velocity)
    clipped = any_step_target(TwinFlow(limit=0.1), flow, made, x, t, s, velocity)
    assert (made - clipped).abs().max() <= 0.1 + 1e-12


def test_twin_is_told_negative_times():
    told = []

    def net(x, t, s):
        told.append((t.clone(), s.clone()))
        return x

    flow = twin(FlowMap(net, FLOW, "velocity"))
    t = torch.tensor([0.2, 0.9], dtype=torch.float64)
    flow.mean_velocity(torch.randn(2, 3), t, t)
    torch.testing.assert_close(told[0][0].double(), -t, rtol=1e-6, atol=0)
    torch.testing.assert_close(told[0][1].double(), -t, rtol=1e-6, atol=0)


def test_times_of_the_parts():
    """One step from the top to 0, short jumps, any jumps; the rest of the batch is the twin's."""
    t, s = TwinFlow()._times(FLOW, 300, 100, torch.Generator().manual_seed(0), torch.device("cpu"))
    tau, tau_s = clock_at(FLOW, t), clock_at(FLOW, s)
    assert (tau[:100] == 1).all()
    assert (tau_s[:100] == 0).all()
    assert (tau_s[100:200] >= 0.95 * tau[100:200] - 1e-9).all()
    assert (tau_s[200:] <= tau[200:]).all()
    assert tau_s[200:].mean().item() == pytest.approx(0.25, abs=0.05)


def test_last_quarter_learns_from_its_own_samples():
    """Its data play no part; those of the other quarters do, and each sample is on its own."""
    flow, data = FlowMap(network(), FLOW, "velocity"), torch.randn(8, 2)
    losses = TwinFlow(limit=50.0)(situation(flow, data))
    others = data.clone()
    others[6:] = 5.0
    assert torch.equal(TwinFlow(limit=50.0)(situation(flow, others))["loss"], losses["loss"])
    others[0] = 5.0
    changed = TwinFlow(limit=50.0)(situation(flow, others))
    assert changed["any_step"] != losses["any_step"]
    assert changed["twin"] == losses["twin"]


def test_pull_moves_samples_from_the_twin_to_the_data():
    """With v_fake − v_real = 0.4 everywhere the velocity at the start falls, so the sample rises."""

    class Signed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.start = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, t, s):
            sign = spread(torch.where(t < 0, 0.4, 0.0), x)
            return sign + self.start * spread((s <= 1e-3).to(x.dtype), x) + 0 * x

    net = Signed()
    TwinFlow()(situation(FlowMap(net, FLOW, "velocity"), torch.randn(64, 2)))["pull"].backward()
    assert net.start.grad.item() == pytest.approx(2 * 0.4, rel=1e-5)


def test_conditions_go_with_their_samples():
    """A label per sample, guidance by the network itself, and a path with y."""
    label = torch.tensor([0, 1, 0, 1, 1, 0, 1, 0, 1])
    flow = FlowMap(network(classes=2), FLOW, "velocity", {"label": label})
    batch = {"x0": torch.randn(9, 2), "label": label}
    plain, same, guided = (
        TwinFlow(guidance=guidance)(situation(flow, batch))["loss"]
        for guidance in (None, LabelGuidance(1.0, 2), LabelGuidance(3.0, 2))
    )
    torch.testing.assert_close(plain, same)
    assert guided != plain
    path, y = paths.RectifiedFlow(time="t", perturbation=0.4), torch.randn(8, 2)
    restorer = FlowMap(network(), path, "velocity", {"y": y})
    assert TwinFlow()(situation(restorer, {"x0": torch.randn(8, 2), "y": y}))["loss"].isfinite()


def test_unweighted_samples_count_alike():
    flow, data = FlowMap(network(), FLOW, "velocity"), torch.randn(8, 2)
    heavy, light = (
        TwinFlow(weighted=weighted)(situation(flow, data))["any_step"] for weighted in (True, False)
    )
    assert heavy > light > 0


def test_method_learns():
    """One call is nearer to N(1, 0.3²) than two Euler steps of the exact flow."""
    samples = learned(methods.get("twinflow"), None, 150, 0.1, target=None)
    assert apart(samples) < apart(euler(2))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TwinFlow(interval=1.0), "interval must be in"),
        (lambda: TwinFlow(substeps=0), "substeps at least 1"),
        (
            lambda: TwinFlow()(situation(FlowMap(network(), FLOW, "velocity"), torch.zeros(3, 2))),
            "needs at least 4 samples, got 3",
        ),
        (lambda: twin(FlowMap(network(), paths.EDM(), "edm")), "positive times"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
