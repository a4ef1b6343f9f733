"""Consistency losses on Gaussian data, whose flow map is known, and what their options mean."""

import itertools
import math
from typing import Any

import pytest
import torch
from tests.core.trajectory_cases import GaussianMap, gradient, situation, told_path
from torch import nn

from fewstep.core import paths
from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.distances import PseudoHuber
from fewstep.core.objectives.same_rng import same_rng
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.trajectory.base import Situation, TrajectoryDistillation
from fewstep.core.objectives.trajectory.consistency import Consistency, end_estimate, pair_weighting
from fewstep.core.objectives.trajectory.curricula import AdaptiveDecay, DoublingPoints, ProgressivePoints
from fewstep.core.objectives.trajectory.easy_consistency import ShrinkingPairs
from fewstep.core.objectives.trajectory.pairs import GridPairs, interval_shares, kappa_at
from fewstep.core.objectives.trajectory.transports import transport_of
from fewstep.core.objectives.trajectory.truncated import TruncatedConsistency, TruncatedLogT
from fewstep.core.training import Moment

PATHS = {name: told_path(name) for name in ("edm", "vp", "flow")}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


class GaussianConsistency(nn.Module):
    """The exact consistency function of N(0, s0²) data: x0 = z·s0/sqrt(sigma² + a²·s0²)."""

    def __init__(self, path, s0=0.5):
        super().__init__()
        self.path, self.s0 = path, s0

    def forward(self, x, t):
        a, _, sigma = self.path.evaluate(t)
        z = x / spread(self.path.input_scale_at(t), x)
        return z * spread(self.s0 / (sigma**2 + (a * self.s0) ** 2).sqrt(), x)


def gaussian(path, count=64, seed=0):
    return 0.5 * torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(path):
    """A situation of exact networks: student and target the consistency function, teacher the denoiser."""
    student = FlowMap(GaussianConsistency(path), path, "x0")
    return situation(path, gaussian(path), student, teacher=FlowMap(GaussianMap(path), path, "x0"))


@each_path
@pytest.mark.parametrize(("transport", "order"), [("data", 2), ("euler", 4), ("heun", 6), ("clock-heun", 6)])
def test_the_exact_function_has_a_vanishing_loss(path, transport, order):
    """A4: with a step of ln(sigma/a) of h it is O(h²) from data, O(h⁴) or O(h⁶) from a solver's step."""
    about, losses = exact(path), []
    middle = torch.full((64,), path.time_at(0.3), dtype=torch.float64)
    noise = gaussian(path, seed=1)
    for gap in (0.1, 0.05, 0.025):
        r = path.time_at(path.half_log_snr_at(middle) + gap)
        losses.append(float(Consistency(transport=transport).between(about, noise, middle, r).mean()))
    rates = [math.log2(a / b) for a, b in itertools.pairwise(losses)]
    assert rates[-1] == pytest.approx(order, abs=0.2)


@each_path
@pytest.mark.parametrize("transport", ["euler", "heun", "clock-heun"])
def test_whole_grid_is_finite(path, transport):
    """From t_max, where rectified flow has a = 0, to t_min; the loss of exact networks stays small."""
    about, times = exact(path), GridPairs(80).times(path, Moment())
    for i in (0, 1, len(times) // 2, len(times) - 2):
        t, r = times[i].expand(64), times[i + 1].expand(64)
        loss = Consistency(transport=transport).between(about, gaussian(path, seed=1), t, r)
        assert loss.shape == (64,)
        assert float(loss.max()) < 1e-3


def test_the_state_itself_is_the_target_at_the_end():
    """A network that ignores its input agrees with itself everywhere; only the end holds it to the data."""
    path = paths.EDM()
    constant = FlowMap(lambda x, t: torch.full_like(x, 0.3), path, "x0")
    about = situation(path, gaussian(path), constant)
    times = GridPairs(18).times(path, Moment())
    inside = Consistency(transport="data").between(
        about, gaussian(path, seed=1), times[3].expand(64), times[4].expand(64)
    )
    last = Consistency(transport="data").between(
        about, gaussian(path, seed=1), times[-2].expand(64), times[-1].expand(64)
    )
    assert float(inside.max()) == 0.0
    assert float(last.mean()) == pytest.approx(0.5**2 + 0.3**2, rel=0.2)


def test_boundary_scalings_already_give_the_state_at_the_end():
    path, x = paths.EDM(), gaussian(None)
    flow = FlowMap(lambda x, t: x.tanh() + 2, path, "edm-boundary")
    t = torch.full((64,), path.t_min, dtype=torch.float64)
    assert torch.equal(end_estimate(flow, x, t), x)
    assert (flow.x0(x, t) - x).abs().max() < 1e-12


@pytest.mark.parametrize(
    "path", [paths.RectifiedFlow(perturbation=0.5), paths.ResShift()], ids=["flow", "resshift"]
)
def test_paths_with_y(path):
    """The same loss as for x − b·y alone, and gradients for the student only."""
    x0, y = gaussian(path), gaussian(path, seed=2)
    net = MLP(MLPConfig(shape=(3,), width=8, depth=1, embedding=8)).double()
    flow = FlowMap(net, path, "x0", {"y": y})
    about = Situation(flow, flow, flow, SampleBatch(x0, y=y), torch.Generator().manual_seed(0), Moment())
    loss = Consistency(GridPairs(4), "heun")(about).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient(p)).all() for p in net.last.parameters())


def test_a_table_has_pairs_of_whole_times():
    path = paths.VP.from_betas(torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64))
    times = GridPairs(18).times(path, Moment())
    assert torch.equal(times, times.round())
    assert (times[0], times[-1]) == (999, 0)
    t, r = ShrinkingPairs(stages=1, q=256.0)(path, 200, torch.Generator().manual_seed(0), Moment())
    assert torch.equal(r, r.round())
    assert bool((r < t).all())


def test_dropout_masks_are_shared():
    """Two calls of one network with dropout at the same point give the same, and the stream goes on."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.Linear(64, 3)).double()
    path = paths.EDM()
    still = lambda situation, x, t, r, noise: x  # noqa: E731
    flow = FlowMap(lambda x, t: net(x), path, "x0")
    about = situation(path, gaussian(path), flow)
    t = torch.full((64,), 1.0, dtype=torch.float64)
    loss = Consistency(transport=still).between(about, gaussian(path, seed=1), t, t)
    assert float(loss.detach().max()) == 0.0
    assert float((flow.x0(about.batch.x0, t) - flow.x0(about.batch.x0, t)).detach().abs().max()) > 0
    torch.manual_seed(1)
    again, first, second = same_rng(), torch.rand(4), torch.rand(4)
    with again:
        assert torch.equal(torch.rand(4), first)
    torch.manual_seed(1)
    torch.rand(8)
    with again:
        pass
    assert not torch.equal(torch.rand(4), second)


def test_density_of_the_intervals():
    """Shares sum to 1, agree with counts within four standard errors; P_mean = −1.1 favours small noise."""
    path, pairs = paths.EDM(), GridPairs(21, density=(-1.1, 2.0))
    times = pairs.times(path, Moment())
    shares = interval_shares(times, path, -1.1, 2.0)
    t, r = pairs(path, 20_000, torch.Generator().manual_seed(0), Moment())
    counts = (t[:, None] == times[:-1]).double().mean(0)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert ((counts - shares).abs() < 4 * (shares / 20_000).sqrt() + 1e-12).all()
    assert float(t.log().mean()) < 0 < float(interval_shares(times, path, 1.1, 2.0) @ times[:-1].log())
    assert bool((r < t).all())


def test_masks_restrict_the_loss():
    path, x0 = paths.EDM(), gaussian(None)
    flow = FlowMap(lambda x, t: x.sin(), path, "x0")
    mask = torch.zeros_like(x0)
    mask[:, :1] = 1
    batch = SampleBatch(x0, noise=gaussian(None, seed=1), mask=mask)
    about = Situation(flow, flow, None, batch, torch.Generator().manual_seed(0), Moment())
    masked = Consistency(transport="data")(about)
    other = FlowMap(lambda x, t: torch.cat([x[:, :1].sin(), 9 * x[:, 1:]], 1), path, "x0")
    about = Situation(other, other, None, batch, torch.Generator().manual_seed(0), Moment())
    assert torch.allclose(masked, Consistency(transport="data")(about), atol=1e-15)


def test_truncated_target_is_the_first_stage_below_its_start():
    """f = 1 and f0 = 0: pairs at t' miss by one, those above agree unless their second time lies below."""
    path = paths.EDM()
    one = FlowMap(lambda x, t: torch.ones_like(x), path, "x0")
    zero = FlowMap(lambda x, t: torch.zeros_like(x), path, "x0")
    rule = TruncatedConsistency(
        distance=PseudoHuber(0.0), weight="uniform", pairs=ShrinkingPairs(q=1e4, stages=1)
    )
    losses = rule(situation(path, gaussian(path), one, teacher=zero))
    assert float(losses["boundary"]) == pytest.approx(math.sqrt(3))
    assert float(losses["consistency"]) < float(losses["boundary"])
    assert float(losses["loss"]) == pytest.approx(float(losses["consistency"] + 0.1 * losses["boundary"]))


def test_truncated_times():
    """Half of the mass of the density lies below the median of a numerical integral of it."""
    path, times = paths.EDM(), TruncatedLogT(low=2.0, mean=0.3, scale=0.5, freedom=1.0)
    t = times(path, 40_000, torch.Generator().manual_seed(0))
    assert float(t.min()) >= 2.0
    assert float(t.max()) <= 80.0
    ends = [math.atan((math.log(level) - 0.3) / 0.5) for level in (2.0, 80.0)]  # freedom 1: Cauchy
    for level in (2.5, 5.0, 20.0):
        share = (math.atan((math.log(level) - 0.3) / 0.5) - ends[0]) / (ends[1] - ends[0])
        assert float((t < level).double().mean()) == pytest.approx(share, abs=4 * 0.5 / 200)


def test_target_follows_its_curriculum():
    net = nn.Linear(2, 2)
    points = ProgressivePoints(2, 150)
    objective: Any = TrajectoryDistillation(
        paths.EDM(), "edm", Consistency(transport="data"), student=net, target=AdaptiveDecay(points, 0.9)
    )
    before = objective.target.weight.clone()
    with torch.no_grad():
        net.weight += 1
    moment = Moment(5, 0.3)
    objective.after_update("train", {"student": net}, moment)
    decay = math.exp(2 * math.log(0.9) / (points(moment) - 1))
    assert torch.allclose(objective.target.weight, before + (1 - decay), atol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GridPairs(1), "points must be at least 2, got 1"),
        (lambda: GridPairs(grid="fancy"), "grid must be one of .* got 'fancy'"),
        (lambda: GridPairs(density=(0.0, 0.0)), "density must be .* got \\(0.0, 0.0\\)"),
        (lambda: Consistency(transport="rk9"), "transport must be one of data, .* got 'rk9'"),
        (lambda: pair_weighting("best"), "weight must be one of .* got 'best'; or 'gap'"),
        (lambda: ShrinkingPairs(q=1.0), "q must be above 1, got 1.0"),
        (lambda: ShrinkingPairs(stages=0), "stages must be at least 1, got 0"),
        (lambda: ShrinkingPairs(mapping="tanh"), "mapping must be 'sigmoid' or 'constant'"),
        (lambda: DoublingPoints(0, 5), "1 <= start <= end, got 0 and 5"),
        (lambda: AdaptiveDecay(initial=1.0), "initial must lie in \\(0, 1\\), got 1.0"),
        (lambda: TruncatedConsistency(share=1.0), "share must lie in \\(0, 1\\), got 1.0"),
        (lambda: TruncatedConsistency(start=2.0), "times.low must be at least start=2, got 1"),
        (lambda: TruncatedLogT(scale=0.0), "must be positive"),
        (lambda: TruncatedLogT(90.0)(paths.EDM(), 4, torch.Generator()), "largest sigma/a 80, got 90"),
        (
            lambda: Consistency()(situation(paths.EDM(), gaussian(None), exact(PATHS["edm"]).student)),
            "a teacher",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_kappa_and_transports_by_name():
    t = torch.tensor([0.5, 1.0], dtype=torch.float64)
    assert kappa_at(paths.RectifiedFlow(), t).tolist() == [1.0, math.inf]
    assert transport_of("heun") is transport_of(transport_of("heun"))
