"""The pool of heads: who judges, who starts afresh, and that a resumed run does it alike."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.core import paths
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.adversarial.features import FrozenFeatures
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.adversarial.heads import VectorHead
from fewstep.core.objectives.adversarial.pool import HeadPool
from fewstep.core.objectives.adversarial.standalone import AdversarialDistillation
from fewstep.core.objectives.score.generation import OneStep
from fewstep.core.objectives.times import LogNormal
from fewstep.core.training import Moment, Trainer, TrainerConfig


class Constant(nn.Module):
    """A logit that is a weight."""

    def __init__(self, value=None):
        super().__init__()
        self.value = nn.Parameter(torch.rand(()) if value is None else torch.tensor(float(value)))

    def forward(self, features, t):
        return self.value + 0 * features[0].sum(1, keepdim=True)


def numbered(count, judges, edges=(), layers=1):
    """A pool whose head number i has the logit i."""
    pool: Any = HeadPool([Constant] * layers, count, judges, edges)
    with torch.no_grad():
        for number, head in enumerate(pool.heads):
            head.value.fill_(number)
    return pool


def weights(pool):
    return [head.value.item() for head in pool.heads]


def test_each_sample_is_judged_by_heads_of_its_own_stretch():
    pool = numbered(4, 2, edges=(0.3, 0.6))
    t = torch.tensor([0.1, 0.29, 0.45, 0.61, 5.0])
    features = [torch.zeros(5, 1)]
    assert pool(features, t).tolist() == [[0, 1, 2, 3]] * 2 + [[4, 5, 6, 7]] + [[8, 9, 10, 11]] * 2
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(40):
        logits = pool.choose(generator)(features, t)
        assert logits.shape == (5, 2)
        assert torch.equal(logits[0], logits[1])
        assert [int(row[0]) // 4 for row in logits] == [0, 0, 1, 2, 2]
        assert (logits[:, 0] != logits[:, 1]).all()
        seen.update(logits.flatten().int().tolist())
    assert seen == set(range(12))


def test_layers_take_turns():
    class First(nn.Module):
        def forward(self, features, t):
            (feature,) = features
            return feature[:, :1]

    pool = HeadPool([First, First], count=4, judges=2)
    features = [torch.full((1, 3), 1.0), torch.full((1, 7), 2.0)]
    assert pool(features, torch.zeros(1)).tolist() == [[1, 2, 1, 2]]
    with pytest.raises(ValueError, match="the pool was made for 2 feature tensors, got 1"):
        pool(features[:1], torch.zeros(1))


def test_a_share_starts_afresh_with_weights_of_its_own():
    pool = HeadPool([Constant], count=40, judges=2, refresh_share=0.1)
    assert len(set(weights(pool))) == 40
    before = weights(pool)
    state = torch.get_rng_state()
    places = pool.refresh(Moment(0))
    assert torch.equal(torch.get_rng_state(), state)
    after = weights(pool)
    assert len(places) == 4
    assert {i for i in range(40) if before[i] != after[i]} == set(places)
    assert len(set(after)) == 40
    assert pool.refresh(Moment(1)) != places


def test_shares_below_one_head_accumulate():
    pool = HeadPool([Constant], count=16, judges=4, refresh_share=0.01)
    many = [len(pool.refresh(Moment(step))) for step in range(100)]
    assert sum(many) == 16
    assert max(many) == 1
    never = HeadPool([Constant], count=16, judges=4, refresh_share=0.0)
    assert not any(never.refresh(Moment(step)) for step in range(100))


def test_what_is_refreshed_follows_from_seed_and_update_alone():
    first, second, other = (HeadPool([Constant], 8, 2, refresh_share=0.5, seed=seed) for seed in (3, 3, 4))
    assert weights(first) == weights(second) != weights(other)
    for step in range(5):
        first.refresh(Moment(step))
    torch.rand(7)
    second.load_state_dict(first.state_dict())
    assert first.refresh(Moment(5)) == second.refresh(Moment(5))
    assert weights(first) == weights(second)


def objective():
    path = paths.EDM()
    torch.manual_seed(0)
    net, teacher = (MLP(MLPConfig(shape=(2,), width=16, depth=2, embedding=8)) for _ in range(2))
    pool = HeadPool([lambda: VectorHead(16, 8)] * 2, count=6, judges=2, edges=(0.0,), refresh_share=0.1)
    head = AdversarialHead(path, pool, FrozenFeatures(teacher, None), LogNormal(), "hinge")
    return net, AdversarialDistillation(path, "edm", head, generation=OneStep(2.5))


def train(folder, steps):
    net, made = objective()
    config = TrainerConfig(max_steps=20, device="cpu", tensorboard=False, log_every=100, save_every_steps=7)

    def batches(rng):
        return {"x0": torch.from_numpy(rng.standard_normal((8, 2), dtype=np.float32))}

    run = Trainer(net, made, batches, folder=folder, config=config, schedule=lambda progress: 1.0)
    if steps < 20:
        evaluate = run.objective.after_update

        def stop_after(phase, networks, moment):
            evaluate(phase, networks, moment)
            if run.position.step + 1 == steps:
                raise KeyboardInterrupt

        run.objective.after_update = stop_after
        with pytest.raises(KeyboardInterrupt):
            run.fit()
    else:
        run.fit()
    return net, made.judge.module


def test_a_resumed_run_refreshes_the_same_heads_alike(tmp_path):
    """Broken off after update 11; the run goes on from the checkpoint of update 7, between two phases."""
    whole = train(tmp_path / "whole", 20)
    train(tmp_path / "parts", 11)
    parts = train(tmp_path / "parts", 20)
    for one, other in zip(whole, parts, strict=True):
        for name, tensor in one.state_dict().items():
            assert torch.equal(tensor, other.state_dict()[name]), name
    fresh = objective()[1].judge.module.state_dict()
    # Twelve heads, a tenth of them after each of ten updates.
    assert (
        sum(not torch.equal(fresh[name], tensor) for name, tensor in whole[1].state_dict().items())
        >= len(fresh) // 2
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"judges": 5, "count": 4}, r"judges must lie in \[1, count=4\]"),
        ({"refresh_share": 1.5}, r"refresh_share must lie in \[0, 1\], got 1.5"),
        ({"edges": (0.5, 0.5)}, r"edges must increase, got \(0.5, 0.5\)"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        HeadPool([Constant], **options)
