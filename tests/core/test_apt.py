"""Adversarial post-training: the told times, the judge, and that it trains."""

from typing import Any

import numpy as np
import pytest
import torch

from fewstep.core import paths
from fewstep.core.clock import clock_at
from fewstep.core.nets import MLP, DiT, DiTConfig, MLPConfig
from fewstep.core.objectives.adversarial.heads import QueryHead, VectorHead
from fewstep.core.objectives.adversarial.post_training import ShiftedUniform, post_training_judge
from fewstep.core.objectives.adversarial.standalone import AdversarialDistillation
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.generation import OneStep
from fewstep.core.training import Moment, Trainer, TrainerConfig


@pytest.mark.parametrize("path", [paths.RectifiedFlow(), paths.EDM(), paths.VP.linear()])
@pytest.mark.parametrize("shift", [1.0, 12.0])
def test_told_times_have_the_shifted_distribution(path, shift):
    """P(tau' ≤ c) = P(tau ≤ u) = u with u = c/(shift − (shift − 1)·c); inside the path's ends."""
    count = 40_000
    t = ShiftedUniform(shift)(path, count, torch.Generator().manual_seed(0))
    assert t.min() >= path.t_min
    assert t.max() <= path.t_max
    tau = clock_at(path, t)
    for c in (0.2, 0.5, 0.9):
        wanted = c / (shift - (shift - 1) * c)
        error = (wanted * (1 - wanted) / count) ** 0.5
        assert abs(float((tau <= c).double().mean()) - wanted) < 5 * error


def test_tables_get_whole_times():
    path = paths.VP.from_betas(torch.linspace(1e-4, 0.02, 100, dtype=torch.float64))
    t = ShiftedUniform(2.0)(path, 500, torch.Generator().manual_seed(0))
    assert torch.equal(t, t.round())
    assert len(t.unique()) > 50


def test_the_judge_is_a_copy_that_sees_clean_samples_at_told_times():
    path, teacher = paths.RectifiedFlow(), MLP(MLPConfig(shape=(2,), width=16, depth=3, embedding=8))
    head: Any = post_training_judge(path, teacher, (2,), layers=(0, -1), sigma=0.02, weight=50.0)
    trunk = head.module.trunk
    assert trunk is not teacher
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), teacher.parameters(), strict=True))
    assert all(isinstance(each, VectorHead) for each in head.module.head.heads)
    asked = []
    features = trunk.features
    trunk.features = lambda x, t: asked.append((x, t)) or features(x, t)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(1))
    head.judge_loss(head.modules(), x, -x, SampleBatch(x), torch.Generator().manual_seed(2), Moment())
    # Data; the penalty's two; samples.
    assert len(asked) == 4
    assert torch.equal(asked[0][0], x)
    assert torch.equal(asked[1][0], x)
    assert torch.equal(asked[3][0], -x)
    moved = asked[2][0] - x
    assert abs(float(moved.std()) - 0.02) < 5 * 0.02 / (2 * 128) ** 0.5
    assert torch.equal(asked[0][1], asked[2][1])
    assert len(asked[0][1].unique()) == 64
    assert not torch.equal(asked[0][1], asked[3][1])


def test_tokens_are_judged_by_a_query():
    head: Any = post_training_judge(paths.RectifiedFlow(), DiT(DiTConfig(width=32, depth=2)), (1, 8, 8))
    assert isinstance(head.module.head.heads[0], QueryHead)
    x = torch.randn(2, 1, 8, 8)
    generator = torch.Generator().manual_seed(0)
    assert head.student_loss(head.modules(), x, SampleBatch(x), generator, Moment()).shape == (2,)


def test_it_trains_judge_and_student(tmp_path):
    path = paths.RectifiedFlow()
    torch.manual_seed(0)
    net = MLP(MLPConfig(shape=(2,), width=16, depth=2, embedding=8))
    head = post_training_judge(path, net, (2,))
    made = AdversarialDistillation(path, "velocity", head, generation=OneStep())
    before = [
        {name: value.clone() for name, value in each.state_dict().items()} for each in (net, head.module)
    ]

    def batches(rng):
        return torch.from_numpy(rng.standard_normal((8, 2), dtype=np.float32))

    config = TrainerConfig(max_steps=6, device="cpu", tensorboard=False)
    assert Trainer(net, made, batches, folder=tmp_path, config=config).fit().skipped == 0
    for module, old in zip((net, head.module), before, strict=True):
        assert any(not torch.equal(value, old[name]) for name, value in module.state_dict().items())


def test_bad_arguments():
    with pytest.raises(ValueError, match="shift must be positive"):
        ShiftedUniform(0.0)
