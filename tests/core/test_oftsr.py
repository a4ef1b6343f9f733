"""OFTSR: one-step restoration on the teacher's trajectory, between fidelity and realism."""

# pyright: reportArgumentType=false

from itertools import pairwise

import pytest
import torch
from tests.core.gaussian_maps import exact
from torch import nn

from fewstep.core import paths
from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives import methods
from fewstep.core.objectives.methods import Material
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.trajectory.base import Situation
from fewstep.core.objectives.trajectory.fidelity_realism import FidelityRealism, midpoint, tuned
from fewstep.core.sampling import Sampling
from fewstep.core.training import Moment

PATH = paths.RectifiedFlow(time="t", perturbation=0.5)
NOISE = 0.5
POSTERIOR = (1 / (1 + NOISE**2), NOISE**2 / (1 + NOISE**2))


def situation(student, batch, teacher, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Situation(student, student, teacher, SampleBatch.read(batch), generator, Moment())


def batch_of(count, dtype=torch.float64):
    x0, y = torch.randn(2, count, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))
    return {"x0": 0.7 * x0, "y": y}


def test_midpoint_is_of_second_order():
    x = torch.randn(16, 3, dtype=torch.float64)
    y = torch.randn_like(x)
    flow, errors = exact(PATH, y), []
    for steps in (8, 16):
        state = x
        grid = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
        for t, s in pairwise(grid):
            state = midpoint(flow, state, t.expand(16), s.expand(16))
        wanted = flow.jump(x, grid[:1].expand(16), grid[-1:].expand(16))
        errors.append((state - wanted).abs().max().item())
    assert errors[0] / errors[1] > 3.8


def test_exact_student_has_no_loss_but_the_step():
    """The trajectory part is of order dt² (a step's error over the way left), the boundary part zero."""
    batch, parts = batch_of(256), []
    flow = exact(PATH, batch["y"])
    for dt in (0.08, 0.04):
        parts.append(FidelityRealism(dt, align=0.0)(situation(flow, batch, flow)))
    assert parts[0]["boundary"] == 0
    assert parts[1]["trajectory"] < 2e-3
    assert parts[0]["trajectory"] / parts[1]["trajectory"] > 3
    wrong = FlowMap(lambda x, t, s: 0.5 * x, PATH, "x0", {"y": batch["y"]})
    worse = FidelityRealism(0.04)(situation(wrong, batch, flow))
    assert worse["trajectory"] > 10 * parts[1]["trajectory"]
    torch.testing.assert_close(
        worse["loss"], worse["trajectory"] + 0.1 * worse["boundary"] + 0.01 * worse["alignment"]
    )


def test_realism_leads_from_the_mean_to_the_distribution():
    """At 0 the exact student gives the mean, at 1 samples with the spread of the data."""
    count = 4000
    y = torch.randn(count, 2, dtype=torch.float64)
    flow = exact(PATH, y)
    start = PATH.start(torch.randn_like(y), y)
    top = torch.full((count,), 1.0, dtype=torch.float64)
    torch.testing.assert_close(tuned(flow, 0.0).x0(start, top), flow.x0(start, top))
    spreads = [tuned(flow, realism).x0(start, top).std().item() for realism in (0.0, 0.3, 0.7, 1.0)]
    assert spreads == sorted(spreads)
    assert spreads[0] < 1e-9
    assert spreads[-1] == pytest.approx(0.7, abs=0.02)


class Restorer(nn.Module):
    """p·x + q·y with polynomials in both times."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(16, 2))

    def forward(self, x, t, s=None, y=None):
        powers = torch.arange(4)
        first, second = (time[:, None] ** powers for time in (t, t if s is None else s))
        features = (first[:, :, None] * second[:, None, :]).flatten(1).to(x.dtype)
        ours, theirs = (features @ self.weights.to(x.dtype)).chunk(2, dim=1)
        return ours * x + theirs * y


def degraded(count, generator):
    x0 = torch.randn(count, 1, generator=generator)
    return {"x0": x0, "y": x0 + NOISE * torch.randn(count, 1, generator=generator)}


def posterior_mean(x, t, y):
    """Of N(0, 1) data observed as y = x0 + 0.5·noise and as the state of the path."""
    a, b, sigma = (spread(value, x) for value in PATH.evaluate(t))
    gain, variance = POSTERIOR
    mean = gain * y
    return mean + a * variance * (x - b * y - a * mean) / (a * a * variance + sigma * sigma)


def test_method_learns_to_restore():
    """Denoising of N(0, 1) from y: nearer to x0 than y at 0, and nearer to the posterior at 1.

    The untrained network gives the noisy start: more spread about the posterior's mean than the posterior has
    itself. One step of the teacher gives that mean: no spread.
    """
    net, generator = Restorer(), torch.Generator().manual_seed(0)
    material = Material(PATH, "velocity", net, FlowMap(posterior_mean, PATH, "x0"), (1,))
    (phase,) = methods.get("oftsr").make(material, bound=1.0).phases()
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 200)
        loss = phase.loss({"student": net}, degraded(256, generator), generator, Moment(step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch = degraded(8000, generator)
    flow = FlowMap(net, PATH, "velocity", {"y": batch["y"]})
    errors, spreads = [], []
    for realism in (0.0, 1.0):
        made = Sampling("consistency", 1).run(tuned(flow, realism), (1,), 8000).detach()
        errors.append((made - batch["x0"]).square().mean().item())
        spreads.append((made - POSTERIOR[0] * batch["y"]).std().item())
    start = (PATH.start(torch.randn_like(batch["y"]), batch["y"]) - POSTERIOR[0] * batch["y"]).std().item()
    wanted = POSTERIOR[1] ** 0.5
    assert errors[0] < NOISE**2 < errors[1]
    assert spreads[0] < wanted / 2
    assert wanted / 2 < spreads[1] < start


def one_time(x, t):
    return x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FidelityRealism(dt=0.0), "dt must be positive, got 0.0"),
        (lambda: FidelityRealism(align=-1.0), "must not be negative, got 0.1 and -1.0"),
        (lambda: tuned(exact(PATH, torch.zeros(1, 3)), 1.5), r"realism must be in \[0, 1\], got 1.5"),
        (lambda: tuned(FlowMap(one_time, paths.RectifiedFlow(), "x0"), 1.0), "two times"),
        (
            lambda: FidelityRealism(dt=2.0)(
                situation(exact(PATH, batch_of(4)["y"]), batch_of(4), exact(PATH, batch_of(4)["y"]))
            ),
            "dt must be below 0.999",
        ),
        (lambda: FidelityRealism()(situation(exact(PATH), batch_of(4), None)), "needs a teacher"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
