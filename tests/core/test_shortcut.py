"""Shortcut models: exact maps have no bootstrap error on any path, and where guidance and flow enter."""

import pytest
import torch
from tests.core.trajectory_cases import GaussianMap, gradient, situation, told_path
from torch import nn

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.trajectory.base import Situation
from fewstep.core.objectives.trajectory.shortcut import Shortcut
from fewstep.core.training import Moment

PATHS = {name: told_path(name) for name in ("edm", "vp", "flow")}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@each_path
def test_a_straight_flow_leaves_no_loss(path):
    """A7: data at one point; the flow is straight, every step size agrees and flow matching is exact."""
    point = torch.tensor([0.3, -0.7], dtype=torch.float64)
    flow = FlowMap(lambda x, t, s=None: point.expand_as(x), path, "x0")
    losses = Shortcut(bound=None)(situation(path, point.expand(64, 2), flow))
    assert float(losses["loss"]) < 1e-20
    wrong = FlowMap(lambda x, t, s=None: point.expand_as(x) + 0.1, path, "x0")
    assert float(Shortcut(bound=None)(situation(path, point.expand(64, 2), wrong))["flow"]) > 1e-3


@each_path
def test_exact_jumps_agree_with_their_halves(path):
    """The flow map of Gaussian data, whose paths are curved; the finest halves are asked as a flow."""
    x0 = 0.5 * torch.randn(256, 2, dtype=torch.float64)
    exact = FlowMap(GaussianMap(path), path, "x0")
    rule = Shortcut(bound=None)
    begin, size = torch.ones(256, dtype=torch.float64), torch.full((256,), 0.25, dtype=torch.float64)
    t, s = rule._times(situation(path, x0, exact), begin, begin - size)
    x = path.corrupt(x0, t, torch.randn_like(x0))
    wanted = rule.bootstrap(exact, x, begin, size)
    assert (exact.mean_velocity(x, t, s) - wanted).abs().max() < 1e-9
    finest = torch.full((256,), 2 / rule.finest, dtype=torch.float64)
    t, s = rule._times(situation(path, x0, exact), begin, begin - finest)
    x = path.corrupt(x0, t, torch.randn_like(x0))
    apart = (exact.mean_velocity(x, t, s) - rule.bootstrap(exact, x, begin, finest)).abs().max()
    assert 1e-9 < float(apart.detach()) < 0.1


class Recorder(nn.Module):
    """Remembers what it was told; v = 1 with a label, 0 without."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, t, s=None, label=None):
        self.calls.append((t, s, label))
        return (label != 3).to(x.dtype)[:, None].expand_as(x)


def labelled(net, count=64):
    path = paths.RectifiedFlow(time="t")
    flow = FlowMap(net, path, "velocity", {"label": torch.zeros(count, dtype=torch.long)})
    batch = SampleBatch(torch.zeros(count, 2, dtype=torch.float64), conditions=flow.conditions)
    return Situation(flow, flow, None, batch, torch.Generator().manual_seed(0), Moment())


def test_what_the_network_is_told():
    """T = 8: boots end a step of 1, 1/2 or 1/4 below their begin, on its grid; the flow share has s = t."""
    net = Recorder()
    Shortcut(finest=8, share=0.25, null_label=3, drop=0.5)(labelled(net))
    t, s, label = net.calls[-1]
    size, few = (t - s)[:16], 16
    assert set(size.round(decimals=9).tolist()) <= {1.0, 0.5, 0.25, 0.999, 0.499, 0.249}  # s ≥ t_min
    assert torch.equal(t[few:], s[few:])
    assert torch.allclose(t * 8, (t * 8).round())
    assert bool((label[:few] == 0).all())
    assert set(label[few:].tolist()) == {0, 3}


def test_guidance_enters_the_finest_halves_only():
    """u = 1 with the label and 0 without: guided by 3 the velocity of the finest halves is 3."""
    about, rule = labelled(Recorder(), 4), Shortcut(finest=8, guidance=3.0, null_label=3, bound=None)
    begin = torch.ones(4, dtype=torch.float64)
    size = torch.tensor([1.0, 0.5, 0.25, 0.25], dtype=torch.float64)
    x = torch.zeros(4, 2, dtype=torch.float64)
    assert rule.bootstrap(about.target, x, begin, size)[:, 0].tolist() == [1.0, 1.0, 3.0, 3.0]
    bounded = Shortcut(finest=8, guidance=3.0, null_label=3, bound=2.0)
    assert bounded.bootstrap(about.target, x, begin, size)[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_gradients_and_batch_sizes(count):
    net = MLP(MLPConfig((2,), 8, 1, 8, two_times=True))
    nn.init.ones_(net.last.weight)
    path = paths.RectifiedFlow()
    flow = FlowMap(net, path, "velocity")
    losses = Shortcut()(situation(path, torch.randn(count, 2), flow))
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    assert ("flow" in losses) == (count > 1)
    assert float(gradient(net.first.weight).abs().max()) > 0


def test_paths_with_y():
    path = paths.RectifiedFlow(perturbation=0.5, time="t")
    point = torch.tensor([0.3, -0.7], dtype=torch.float64)
    y = torch.randn(16, 2, dtype=torch.float64)
    flow = FlowMap(lambda x, t, s=None: point.expand_as(x), path, "x0", {"y": y})
    batch = SampleBatch(point.expand(16, 2), y=y)
    about = Situation(flow, flow, None, batch, torch.Generator().manual_seed(0), Moment())
    assert float(Shortcut(bound=None)(about)["loss"]) < 1e-20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Shortcut(finest=100), "finest must be a power of 2 from 2 on, got 100"),
        (lambda: Shortcut(share=0.0), "share must be above 0"),
        (lambda: Shortcut(share=1.5), "share must lie in \\[0, 1\\), got 1.5"),
        (lambda: Shortcut(drop=-0.1), "drop must lie in \\[0, 1\\), got -0.1"),
        (lambda: Shortcut(guidance=2.0), "guidance=2 needs null_label"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
