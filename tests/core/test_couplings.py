"""Couplings of noise and data, masks, histories of losses, distances by features and frequencies."""

import json
import math
from itertools import permutations
from pathlib import Path as File

import pytest
import torch

from fewstep.core import paths
from fewstep.core.objectives.couplings import (
    Annealed,
    AsGiven,
    Independent,
    Mirrored,
    OptimalTransport,
    Paired,
)
from fewstep.core.objectives.loss_history import LossHistory
from fewstep.core.objectives.perceptual import FeatureDistance, HighFrequency, high_pass
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.times import UniformClock
from fewstep.core.training import Moment

FLOW, EDM = paths.RectifiedFlow(), paths.EDM()
FORMULAS = File(__file__).parents[1] / "golden" / "distill" / "formulas.json"


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def a_batch(*shape, **more):
    x0, noise = (torch.randn(*shape, generator=seeded(i), dtype=torch.float64) for i in (1, 2))
    return SampleBatch(x0, noise, **more)


def test_given_and_independent_noise():
    batch = a_batch(5, 3)
    assert AsGiven()(batch, FLOW, seeded(), Moment()).noise is batch.noise
    fresh = Independent()(batch, FLOW, seeded(), Moment()).noise
    drawn = AsGiven()(SampleBatch(batch.x0), FLOW, seeded(), Moment()).noise
    assert fresh is not None
    assert bool((fresh == drawn).all())
    assert not bool((fresh == batch.noise).any())


@pytest.mark.parametrize("path", [FLOW, EDM, paths.VP.linear()], ids=["flow", "edm", "vp"])
def test_the_line_of_a_pair_ends_in_its_start_state(path):
    batch = a_batch(5, 3)
    found = Paired()(batch, path, seeded(), Moment())
    t = torch.full((5,), path.t_max, dtype=torch.float64)
    _, _, sigma = path.coefficients(path.t_max)
    assert found.noise is not None
    torch.testing.assert_close(
        path.corrupt(found.x0, t, found.noise), sigma * batch.noise, rtol=1e-12, atol=1e-12
    )


def test_betas_of_annealing():
    told = json.loads(FORMULAS.read_text())["annealing_reflow_beta"]
    for kind in ("linear", "cos", "exp"):
        coupling = Annealed(kind, steps=told["warmup"])
        found = [coupling.beta(Moment(step)) for step in told["steps"]]
        assert found == pytest.approx(told[kind], rel=1e-12, abs=1e-15)
    assert Annealed(share=0.25).beta(Moment(10, 0.125)) == 0.5


def test_annealed_noise_goes_from_fresh_to_stored():
    batch = a_batch(20_000, 1)
    coupling = Annealed("linear", steps=10)
    assert batch.noise is not None
    ends = coupling(batch, FLOW, seeded(), Moment(10)).noise
    assert bool((ends == batch.noise).all())
    begins = coupling(batch, FLOW, seeded(3), Moment(0)).noise
    assert bool((begins == Independent()(batch, FLOW, seeded(3), Moment()).noise).all())
    for step in (2, 5, 8):
        noise = coupling(batch, FLOW, seeded(3), Moment(step)).noise
        assert noise is not None
        beta = 1 - step / 10
        error = 5 / math.sqrt(len(noise))
        assert float(noise.square().mean()) == pytest.approx(1, abs=error * 1.5)
        assert float((noise * batch.noise).mean()) == pytest.approx(math.sqrt(1 - beta**2), abs=error * 1.5)


def test_mirroring_takes_everything_along():
    batch = a_batch(200, 2, 3, 4, y=torch.rand(200, 2, 3, 4), mask=torch.arange(4.0))
    found = Mirrored(AsGiven())(batch, FLOW, seeded(), Moment())
    turned = (found.x0 == batch.x0.flip(-1)).flatten(1).all(1)
    same = (found.x0 == batch.x0).flatten(1).all(1)
    assert bool((turned ^ same).all())
    assert 60 < int(turned.sum()) < 140
    for name in ("noise", "y", "mask"):
        before, after = getattr(batch, name).expand(200, 2, 3, 4), getattr(found, name)
        assert bool((after[turned] == before[turned].flip(-1)).all())
        assert bool((after[same] == before[same]).all())
    assert bool((Mirrored(AsGiven(), 0.0)(batch, FLOW, seeded(), Moment()).x0 == batch.x0).all())


def cost(batch):
    return float((batch.x0 - batch.noise).square().sum())


def test_optimal_transport_is_the_best_permutation():
    batch = a_batch(6, 2)
    found = OptimalTransport()(batch, FLOW, seeded(4), Moment())
    plain = Independent()(batch, FLOW, seeded(4), Moment()).noise
    assert plain is not None
    every = [
        float((batch.x0 - plain[list(order)]).square().sum()) for order in permutations(range(len(plain)))
    ]
    assert cost(found) == pytest.approx(min(every), rel=1e-12)
    assert found.noise is not None
    assert sorted(found.noise[:, 0].tolist()) == sorted(plain[:, 0].tolist())
    assert bool((found.x0 == batch.x0).all())


def test_optimal_transport_and_conditions():
    label = torch.arange(30) % 3
    batch = a_batch(30, 2, conditions={"label": label})
    with pytest.raises(ValueError, match=r"biased for data with conditions \(label\)"):
        OptimalTransport()(batch, FLOW, seeded(), Moment())
    with pytest.raises(ValueError, match=r"\(y\)"):
        OptimalTransport()(a_batch(3, 2, y=torch.zeros(3, 2)), FLOW, seeded(), Moment())
    with pytest.raises(ValueError, match="within='kind'"):
        OptimalTransport("kind")(batch, FLOW, seeded(), Moment())
    plain = Independent()(batch, FLOW, seeded(), Moment())
    found = OptimalTransport("label")(batch, FLOW, seeded(), Moment())
    for k in range(3):
        chosen = label == k
        assert found.noise is not None
        assert plain.noise is not None
        ours, drawn = (noise[chosen][:, 0].sort().values for noise in (found.noise, plain.noise))
        assert bool((ours == drawn).all())
    best = OptimalTransport(biased=True)(batch, FLOW, seeded(), Moment())
    assert cost(best) < cost(found) < cost(plain)


def test_a_history_draws_by_the_size_of_the_losses():
    history = LossHistory(FLOW, bins=4, length=3, floor=0.1)
    t = torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=torch.float64)
    sizes = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(history.shares(), torch.full((4,), 0.25, dtype=torch.float64))
    history.record(FLOW, t, 100 * sizes)
    history.record(FLOW, t.repeat(5), sizes.repeat(5))
    wanted = 0.9 * sizes / 10 + 0.1 / 4
    torch.testing.assert_close(history.shares(), wanted)
    torch.testing.assert_close(history.importance(FLOW, t), 1 / (4 * wanted))
    drawn = history(FLOW, 40_000, seeded())
    share = torch.bincount(history._bin(FLOW, drawn), minlength=4) / 40_000
    assert float((share - wanted).abs().max()) < 4 * math.sqrt(0.25 / 40_000)
    # The weighted mean of any loss is that of uniform times.
    mean = (drawn * history.importance(FLOW, drawn)).mean()
    assert float(mean) == pytest.approx((FLOW.t_min + 1) / 2, abs=0.01)


def test_a_history_on_a_table():
    path = paths.VP.from_betas([0.1] * 10)
    history = LossHistory(path, length=1)
    assert history.bins == 10
    history.record(path, torch.arange(10.0), torch.eye(10)[7] + 1e-9)
    assert float((history(path, 1000, seeded()) == 7).double().mean()) > 0.98


@pytest.mark.parametrize("shape", [(8,), (3, 8), (2, 8, 8), (1, 4, 6, 8)])
def test_high_frequencies(shape):
    x, y = a_batch(4, *shape).x0, a_batch(4, *shape).noise
    assert y is not None
    low = high_pass(x, 0.5)
    torch.testing.assert_close(high_pass(low, 0.5), low)
    assert float(high_pass(torch.ones_like(x), 0.0).abs().max()) < 1e-12
    whole = HighFrequency(0.0)(x, y)
    size = tuple(range(min(2, x.ndim - 1), x.ndim))
    centred = (x - y) - (x - y).mean(size, keepdim=True)
    torch.testing.assert_close(whole, centred.square().flatten(1).mean(1))
    assert bool((HighFrequency(0.6)(x, y) < whole).all())


def test_a_fast_wave_passes_and_a_slow_one_does_not():
    u = torch.arange(16, dtype=torch.float64) * 2 * math.pi / 16
    slow, fast = torch.cos(2 * u)[None, None], torch.cos(7 * u)[None, None]
    torch.testing.assert_close(high_pass(slow + fast, 0.5), fast)


def test_distance_of_features():
    def features(x):
        return [x, x[:, :1] * 2]

    x, y = a_batch(3, 2, 4).x0, a_batch(3, 2, 4).noise
    assert y is not None
    plain = FeatureDistance(features, unit=False)(x, y)
    first, second = (x - y).square().mean((1, 2)), 4 * (x - y)[:, :1].square().mean((1, 2))
    torch.testing.assert_close(plain, (first + second) / 2)
    torch.testing.assert_close(FeatureDistance(features, (1.0, 0.0), unit=False)(x, y), first)
    torch.testing.assert_close(
        FeatureDistance(lambda z: z)(x, 3 * x), torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0
    )
    with pytest.raises(ValueError, match="weights must be one per layer, 2, got 1"):
        FeatureDistance(features, (1.0,))(x, y)


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="kind must be one of linear, exp, cos"):
        Annealed("square")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Annealed(steps=0)
    with pytest.raises(ValueError, match="share must lie"):
        Annealed(share=0.0)
    with pytest.raises(ValueError, match="probability must lie"):
        Mirrored(probability=-0.1)
    with pytest.raises(ValueError, match="needs pairs"):
        Paired()(SampleBatch(torch.zeros(2, 2)), FLOW, seeded(), Moment())
    with pytest.raises(ValueError, match="cutoff must lie"):
        HighFrequency(1.5)
    with pytest.raises(ValueError, match="bins and length"):
        LossHistory(FLOW, bins=0)
    assert UniformClock(0.3, 0.3)(FLOW, 1, seeded()).item() == pytest.approx(0.3)
