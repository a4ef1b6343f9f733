"""Masks, and parts of a sample at times of their own."""

import pytest
import torch
from torch import nn

from fewstep.core import paths
from fewstep.core.objectives.denoising import DenoisingObjective, Error
from fewstep.core.objectives.masking import Masking
from fewstep.core.objectives.modalities import ModalityObjective, Part
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.times import Fixed, UniformClock
from fewstep.core.training import Moment

EDM = paths.EDM()


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64)


class Spy(nn.Module):
    """Remembers what it was given and answers with a function of it."""

    def __init__(self, function=lambda x, t: 0.5 * x):
        super().__init__()
        self.function = function

    def forward(self, x, t):
        self.x, self.t = x, t
        return self.function(x, t)


def half(batch):
    mask = torch.zeros_like(batch.x0)
    mask[..., :2] = 1
    return SampleBatch(batch.x0, batch.noise, mask=mask)


BATCH = half(SampleBatch(drawn(6, 3, 4), drawn(6, 3, 4, seed=2)))
TIME = UniformClock(0.2, 0.8)(EDM, 6, seeded())


def errors(net, masking, batch=BATCH, of="x0"):
    return DenoisingObjective(EDM, "x0", Error(of), masking=masking).error(net, batch, TIME, seeded())


def test_the_error_counts_where_the_mask_is_one():
    net = Spy()
    found = errors(net, Masking())
    x = EDM.corrupt(BATCH.x0, TIME, BATCH.noise_or(seeded()))
    scale = EDM.input_scale_at(TIME)[:, None, None]
    torch.testing.assert_close(net.x, scale * x)
    square = (0.5 * scale * x - BATCH.x0).square()
    torch.testing.assert_close(found, square[..., :2].flatten(1).mean(1))
    both = errors(net, Masking(whole=0.5, inside=2.0))
    torch.testing.assert_close(both, 0.5 * square.flatten(1).mean(1) + 2 * found)
    whole = errors(net, Masking(), SampleBatch(BATCH.x0, BATCH.noise))
    torch.testing.assert_close(whole, square.flatten(1).mean(1))


def test_what_the_network_is_shown():
    x = EDM.corrupt(BATCH.x0, TIME, BATCH.noise_or(seeded()))
    scale = EDM.input_scale_at(TIME)[:, None, None]
    clean, hidden = Spy(), Spy()
    errors(clean, Masking("clean"))
    errors(hidden, Masking("hidden", value=3.0))
    torch.testing.assert_close(clean.x / scale, torch.cat([x[..., :2], BATCH.x0[..., 2:]], dim=-1))
    torch.testing.assert_close(
        hidden.x / scale, torch.cat([torch.full_like(x[..., :2], 3), x[..., 2:]], dim=-1)
    )


def test_gradients_come_from_the_masked_part_alone():
    out = torch.zeros(6, 3, 4, dtype=torch.float64, requires_grad=True)
    for of in ("x0", "output", "velocity"):
        loss = errors(Spy(lambda x, t: out), Masking(), of=of).sum()
        (gradient,) = torch.autograd.grad(loss, out)
        assert float(gradient[..., 2:].abs().sum()) == 0
        assert bool((gradient[..., :2] != 0).all())


def test_a_sample_with_an_empty_mask_counts_nothing():
    batch = SampleBatch(BATCH.x0, BATCH.noise, mask=torch.tensor([1.0, 0, 1, 0, 1, 0]).reshape(6, 1, 1))
    found = errors(Spy(), Masking(), batch)
    assert bool((found[1::2] == 0).all())
    assert bool((found[::2] > 0).all())


@pytest.mark.parametrize(("dims", "positions"), [((2,), 10), ((1,), 8), ((1, 2), 80), (None, 80)])
def test_drawn_masks(dims, positions):
    batch = SampleBatch(torch.zeros(400, 8, 10))
    mask = Masking(ratio=(0.2, 0.6), dims=dims).mask_of(batch, seeded())
    assert mask is not None
    assert mask.shape == batch.x0.shape
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    share = mask.flatten(1).mean(1)
    assert 0.2 - 0.5 / positions - 1e-6 <= float(share.min()) <= 0.3
    assert 0.5 <= float(share.max()) <= 0.6 + 0.5 / positions + 1e-6
    if dims == (2,):
        assert bool((mask == mask[:, :1]).all())
    if dims == (1,):
        assert bool((mask == mask[..., :1]).all())
    assert len(mask.flatten(1).unique(dim=0)) > 100


def test_parts_have_their_own_times_and_clean_parts_no_loss():
    net = Spy(lambda x, t: 0.5 * x)
    parts = (Part(1, Fixed(2.0)), Part(2, Fixed(0.3), clean=0.5, weight=3.0))
    objective = ModalityObjective(EDM, "x0", parts, weight="uniform")
    x0, noise = drawn(400, 3), drawn(400, 3, seed=2)
    loss = objective.loss(net, {"x0": x0, "noise": noise}, seeded(), Moment())
    assert net.t.shape == (400, 2)
    told = (4 * net.t).exp()  # EDM's network is told ln(sigma)/4
    clean = told[:, 1] < 0.01
    assert 140 < int(clean.sum()) < 260
    torch.testing.assert_close(told[:, 0], torch.full((400,), 2.0, dtype=torch.float64))
    scale = EDM.input_scale_at(told.T)
    torch.testing.assert_close(net.x[:, 0], scale[0] * (x0 + 2 * noise)[:, 0])
    state = torch.where(clean[:, None], x0[:, 1:], (x0 + 0.3 * noise)[:, 1:])
    torch.testing.assert_close(net.x[:, 1:], scale[1][:, None] * state)
    first = (0.5 * net.x[:, 0] - x0[:, 0]).square().mean()
    second = (0.5 * net.x[~clean, 1:] - x0[~clean, 1:]).square().mean()
    torch.testing.assert_close(loss, first + 3 * second)


def test_at_least_one_part_is_noised():
    objective = ModalityObjective(EDM, "x0", (Part(1, clean=0.9), Part(1, clean=0.9)))
    times, noised = objective.times(2000, seeded(), "cpu")
    assert bool(noised.any(1).all())
    assert bool(((times == EDM.t_min) == ~noised).all())
    assert float(noised.double().mean()) < 0.6


@pytest.mark.parametrize("prediction", ["eps", "edm", "velocity"])
def test_one_part_is_plain_denoising(prediction):
    path = paths.RectifiedFlow(time="t")
    net = Spy(lambda x, t: torch.tanh(x) + t.reshape(len(x), 1))
    batch = {"x0": drawn(8, 3), "noise": drawn(8, 3, seed=2)}
    one = ModalityObjective(path, prediction, (Part(3, Fixed(0.4)),), weight="snr")
    plain = DenoisingObjective(path, prediction, Error("x0", "snr"), times=Fixed(0.4))
    wanted = plain.loss(net, batch, seeded(), Moment())
    assert isinstance(wanted, dict)
    torch.testing.assert_close(one.loss(net, batch, seeded(), Moment()), wanted["loss"])


def test_bad_options_are_named():
    with pytest.raises(ValueError, match="shown must be one of noisy, clean, hidden"):
        Masking("loud")
    with pytest.raises(ValueError, match="ratio must be two increasing shares"):
        Masking(ratio=(0.5, 0.2))
    with pytest.raises(ValueError, match="dims must name dimensions"):
        Masking(ratio=(0.1, 0.2), dims=(0,))
    with pytest.raises(ValueError, match="must be below the 2 dimensions"):
        Masking(ratio=(0.1, 0.2), dims=(2,)).mask_of(SampleBatch(torch.zeros(2, 2)), seeded())
    with pytest.raises(ValueError, match="parts must hold at least one"):
        ModalityObjective(EDM, "x0", ())
    with pytest.raises(ValueError, match="size must be at least 1"):
        Part(0)
    with pytest.raises(ValueError, match="clean must lie"):
        Part(1, clean=1.0)
    with pytest.raises(ValueError, match="path must be one without y"):
        ModalityObjective(paths.MeanReverting(), "x0", (Part(1),))
    with pytest.raises(ValueError, match="the parts have 2 entries, x0 has 3"):
        ModalityObjective(EDM, "x0", (Part(2),)).loss(Spy(), drawn(4, 3), seeded(), Moment())
