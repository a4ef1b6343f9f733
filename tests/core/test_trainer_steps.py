"""What one training step does: gradients, averages, precision, and steps that go wrong."""

# pyright: reportOperatorIssue=false

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.core.trainer_cases import CONFIG, denoising_loss, trainer
from torch import nn

from fewstep.core.training import (
    ConstantSchedule,
    CosineSchedule,
    Ema,
    Trainer,
    TrainerConfig,
    TrainingDiverged,
    load_weights,
    read_log,
)
from fewstep.core.training.state import step_files


def test_accumulation_equals_one_large_batch(tmp_path):
    """The mean of the gradients of 4 batches of 2 is the gradient of one batch of 8."""

    def data(size):
        return lambda rng: torch.linspace(-1, 1, 8).reshape(8, 1)[_slice(size)]

    position = 0

    def _slice(size):
        nonlocal position
        first = position % 8
        position += size
        return slice(first, first + size)

    weights = []
    for size in (2, 8):
        position = 0
        net = nn.Linear(1, 1)
        nn.init.constant_(net.weight, 0.3)
        nn.init.constant_(net.bias, 0.1)
        config = TrainerConfig(max_steps=5, accumulate=8 // size, clip=None, device="cpu", tensorboard=False)
        Trainer(
            net,
            lambda model, batch, generator: (model(batch) - 2 * batch).square().mean(),
            data(size),
            folder=tmp_path / str(size),
            config=config,
            optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
            schedule=ConstantSchedule(),
        ).fit()
        weights.append(net.weight.item())
    assert weights[0] == pytest.approx(weights[1], rel=1e-6)
    assert weights[0] != pytest.approx(0.3, abs=0.05)


def test_clipping_bounds_the_step(tmp_path):
    net = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(net.weight)
    config = TrainerConfig(max_steps=1, clip=0.25, device="cpu", tensorboard=False)
    Trainer(
        net,
        lambda model, batch, generator: 100 * model(batch).sum(),
        lambda rng: torch.ones(1, 1),
        folder=tmp_path,
        config=config,
        optimizer=torch.optim.SGD(net.parameters(), lr=1.0),
        schedule=ConstantSchedule(),
    ).fit()
    assert net.weight.item() == pytest.approx(-0.25, rel=1e-5)


def test_ema_follows_its_formula_and_copies_buffers():
    net = nn.BatchNorm1d(2)
    ema = Ema(net, [0.999, 0.3])
    expected = {decay: torch.ones(2, dtype=torch.float64) for decay in ema.models}
    for step in range(30):
        weight = torch.tensor([step + 1.0, -step])
        counter, mean = torch.tensor(step), torch.full((2,), float(step))
        net.load_state_dict(
            {**net.state_dict(), "weight": weight, "running_mean": mean, "num_batches_tracked": counter}
        )
        ema.update(net)
        for decay in expected:
            now = min(decay, (1 + step) / (10 + step))
            expected[decay] = now * expected[decay] + (1 - now) * weight.double()
    for decay, model in ema.models.items():
        state = model.state_dict()
        torch.testing.assert_close(state["weight"].double(), expected[decay], rtol=1e-5, atol=1e-5)
        assert state["running_mean"].tolist() == [29, 29]
        assert state["num_batches_tracked"].item() == 29
        assert not model.training
    assert not torch.allclose(expected[0.999], expected[0.3])


def test_bf16_computes_in_bf16_and_keeps_float32_weights(tmp_path):
    seen = set()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            out = self.linear(x)
            seen.add(out.dtype)
            return out

    def loss(net, batch, generator):
        out = net(batch)
        assert out.dtype == torch.float32, "the loss is computed in float32"
        return (out - batch).square().mean()

    net = Net()
    config = TrainerConfig(
        max_steps=200, precision="bf16", learning_rate=0.03, device="cpu", tensorboard=False
    )
    data = lambda rng: torch.from_numpy(rng.standard_normal((16, 4), dtype=np.float32))  # noqa: E731
    run = Trainer(net, loss, data, folder=tmp_path, config=config)
    run.fit()
    assert seen == {torch.bfloat16}
    assert net.linear.weight.dtype == torch.float32
    assert net(torch.zeros(1, 4)).dtype == torch.float32, "after training the network is as it was"
    assert seen == {torch.bfloat16, torch.float32}
    torch.testing.assert_close(net.linear.weight.detach(), torch.eye(4), atol=0.1, rtol=0)


def test_channels_last_reaches_network_and_batches(tmp_path):
    def loss(net, batch, generator):
        assert batch.is_contiguous(memory_format=torch.channels_last)
        assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
        return denoising_loss(net, batch, generator)

    assert trainer(tmp_path, replace(CONFIG, channels_last=True, max_steps=2), loss=loss).fit().step == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_steps_are_skipped(tmp_path, bad):
    """A run in which some steps are NaN ends with the weights of the steps that were not."""

    def loss(net, batch, generator):
        value = (net(batch) - 1).square().mean()
        return value * (bad if run.position.step in (1, 2, 5) else 1.0)

    net = nn.Linear(1, 1)
    nn.init.constant_(net.weight, 0.5)
    nn.init.zeros_(net.bias)
    config = TrainerConfig(
        max_steps=7, max_bad_steps=2, clip=None, device="cpu", tensorboard=False, log_every=1
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    run = Trainer(
        net, loss, lambda rng: torch.ones(2, 1), folder=tmp_path, config=config, optimizer=optimizer,
        schedule=ConstantSchedule(),
    )  # fmt: skip
    result = run.fit()
    assert (result.step, result.skipped) == (7, 3)
    weight, bias = 0.5, 0.0
    for _ in range(4):
        gradient = 2 * (weight + bias - 1)
        weight, bias = weight - 0.1 * gradient, bias - 0.1 * gradient
    assert net.weight.item() == pytest.approx(weight, rel=1e-6)
    assert run.ema.updates == 4


def test_divergence_aborts_and_keeps_the_last_good_checkpoint(tmp_path):
    def loss(net, batch, generator):
        value = denoising_loss(net, batch, generator)["loss"]
        return value / 0 if run.position.step >= 4 else value

    config = replace(CONFIG, max_bad_steps=2, save_every_steps=1, accumulate=1)
    run = trainer(tmp_path, config, loss=loss)
    with pytest.raises(TrainingDiverged, match=r"step 7 .* 3 in a row .*step-00000004\.pt"):
        run.fit()
    assert [path.name for path in step_files(tmp_path)] == ["step-00000003.pt", "step-00000004.pt"]
    assert all(torch.isfinite(value).all() for value in load_weights(tmp_path).values())


def test_weights_with_infinities_are_never_saved(tmp_path):
    """The step that makes the weights overflow has a finite loss; its checkpoint must not stay."""
    net = nn.Linear(1, 1, bias=False)

    def loss(model, batch, generator):
        return model(batch).sum() * (3e37 if run.position.step == 2 else 1e-3)

    config = TrainerConfig(max_steps=3, save_every_steps=1, clip=None, device="cpu", tensorboard=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=100.0)
    run = Trainer(
        net, loss, lambda rng: torch.ones(1, 1), folder=tmp_path, config=config, optimizer=optimizer,
        schedule=ConstantSchedule(),
    )  # fmt: skip
    run.fit()
    assert not torch.isfinite(net.weight).all()
    assert step_files(tmp_path)[-1].name == "step-00000002.pt"


def test_learning_rate_follows_the_schedule(tmp_path):
    run = trainer(tmp_path, replace(CONFIG, log_every=1, learning_rate=0.01))
    run.fit()
    rates = [line["learning_rate"] for line in read_log(tmp_path, "train")]
    assert rates == pytest.approx([0.01 * CosineSchedule(0.3)(step / 9) for step in range(9)])


def test_minutes_end_a_run_and_are_carried_over(tmp_path):
    config = replace(CONFIG, max_steps=10**9, max_minutes=0.3 / 60, accumulate=1)
    result = trainer(tmp_path, config).fit()
    assert result.stopped == "max_minutes"
    assert result.minutes >= 0.3 / 60
    again = trainer(tmp_path, config).fit()
    assert again.step == result.step, "the time of the first part counts"
    longer = trainer(tmp_path, replace(config, max_minutes=0.6 / 60))
    assert longer.fit().step > result.step
    assert longer.position.minutes >= 0.6 / 60


def test_dataset_epochs_are_permutations_without_gaps():
    from fewstep.core.training.batches import DatasetBatches

    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 7

        def __getitem__(self, index):
            return index

    ranks = [DatasetBatches(Numbers(), 3, seed=5, rank=rank, processes=2) for rank in (0, 1)]
    order = [int(i) for k in range(7) for rank in ranks for i in rank[k]]
    epochs = [order[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    again = DatasetBatches(Numbers(), 3, seed=5, rank=0, processes=2)
    assert torch.equal(again[4], ranks[0][4]), "a batch depends on its number alone"
