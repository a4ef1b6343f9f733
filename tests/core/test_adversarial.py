"""AdversarialHead: who gets gradients, what the judge is shown, and what its logit means."""

from typing import Any

import pytest
import torch
from torch import nn

from fewstep.core import paths
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.adversarial.features import FrozenFeatures, NamedFeatures, OwnFeatures
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.adversarial.heads import VectorHead
from fewstep.core.objectives.adversarial.losses import LOSSES
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.times import Fixed, LogNormal
from fewstep.core.training import Moment

PATH, TIMES = paths.EDM(), LogNormal()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def net(classes=0, seed=0):
    torch.manual_seed(seed)
    return MLP(MLPConfig(shape=(3,), width=16, depth=2, embedding=8, classes=classes)).double()


def judge(features: Any = "fake", times=TIMES, **options):
    torch.manual_seed(1)
    return AdversarialHead(PATH, VectorHead(16).double(), features, times, **options)


class Seen(nn.Module):
    """A network that remembers what it is asked; its features are its input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.asked = []

    def forward(self, x, t, label=None):
        self.asked.append((x, t, label))
        return [self.weight * x]


class First(nn.Module):
    """The sum of the first feature tensor as the logit."""

    def forward(self, features, t):
        return features[0].flatten(1).sum(1, keepdim=True)


def test_the_student_gets_its_gradient_through_a_frozen_judge():
    head, fake = judge(), net()
    networks = {"fake": fake, **head.modules()}
    for module in networks.values():
        module.requires_grad_(False)
    x = noise(5, 3).requires_grad_()
    losses = head.student_loss(networks, x, SampleBatch(x.detach()), generator(), Moment())
    assert losses.shape == (5,)
    (slope,) = torch.autograd.grad(losses.sum(), x)
    moved = x.detach() + 1e-6 * noise(5, 3, seed=3)
    after = head.student_loss(networks, moved, SampleBatch(x.detach()), generator(), Moment())
    change = (slope * (moved - x.detach())).sum(1)
    torch.testing.assert_close((after - losses).detach(), change, rtol=1e-4, atol=1e-12)
    assert change.abs().min() > 0


def test_the_judge_learns_with_the_network_of_its_features_but_not_with_the_student():
    head, fake = judge(), net()
    networks = {"fake": fake, **head.modules()}
    made = noise(5, 3, seed=2).requires_grad_()
    losses = head.judge_loss(networks, noise(5, 3), made, SampleBatch(noise(5, 3)), generator(), Moment())
    losses["loss"].backward()
    assert made.grad is None
    for module in (head.module, fake.inner, fake.embedding.first):
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())
    assert fake.last.weight.grad is None


def test_a_frozen_network_gets_no_gradient_and_an_own_one_does():
    for kind, moves in ((FrozenFeatures, False), (OwnFeatures, True)):
        trunk = net()
        head = judge(kind(trunk, None))
        for module in head.frozen():
            module.requires_grad_(False)
        data = noise(5, 3)
        head.judge_loss(head.modules(), data, -data, SampleBatch(data), generator(), Moment())[
            "loss"
        ].backward()
        assert (trunk.first.weight.grad is not None) is moves
        held = {id(parameter) for parameter in head.modules()["head"].parameters()}
        assert (id(trunk.first.weight) in held) is moves
        assert (trunk in head.frozen()) is not moves


def test_inputs_are_noised_scaled_and_told_as_the_path_says():
    seen, t = Seen(), 3.0
    head = AdversarialHead(PATH, First(), FrozenFeatures(seen, None), Fixed(t))
    data = noise(20_000, 3).float().double()
    labels = torch.arange(20_000)
    batch = SampleBatch(data, conditions={"label": labels, "unknown": torch.zeros(20_000)})
    head.judge_loss(head.modules(), data, data, batch, generator(), Moment())
    (x, told, label), (other, _, _) = seen.asked
    scale = PATH.input_scale(t)
    added, again = ((each / scale - data) / t for each in (x, other))
    for draw in (added, again):
        assert abs(float(draw.mean())) < 5 / 60_000**0.5
        assert abs(float(draw.var()) - 1) < 5 * (2 / 60_000) ** 0.5
    # Data and samples have noise of their own.
    assert abs(float((added * again).mean())) < 5 / 60_000**0.5
    assert torch.equal(label, labels)
    torch.testing.assert_close(told, torch.full_like(told, PATH.network_time(t)))


def test_labels_change_the_logits_and_those_of_another_sample_do_not():
    head, fake = judge(), net(classes=4)
    networks = {"fake": fake, **head.modules()}
    x, t = noise(3, 3), torch.full((3,), 0.7, dtype=torch.float64)
    with torch.no_grad():
        zero = head.log_ratio(networks, x, t, {"label": torch.tensor([0, 0, 0])})
        one = head.log_ratio(networks, x, t, {"label": torch.tensor([0, 1, 0])})
    assert zero[1] != one[1]
    torch.testing.assert_close(zero[[0, 2]], one[[0, 2]], rtol=0, atol=1e-15)


def test_clean_inputs_stay_as_they_are_and_may_be_told_another_time():
    seen = Seen()
    head = AdversarialHead(PATH, First(), FrozenFeatures(seen, None), told=Fixed(2.0))
    x = noise(4, 3)
    head.student_loss(head.modules(), x, SampleBatch(x), generator(), Moment())
    asked, told, _ = seen.asked[0]
    torch.testing.assert_close(asked, x * PATH.input_scale(PATH.t_clean), rtol=1e-12, atol=0)
    torch.testing.assert_close(told, torch.full_like(told, PATH.network_time(2.0)))


@pytest.mark.parametrize(
    ("shared", "times", "noises"), [("nothing", 0, 0), ("time", 1, 0), ("time and noise", 1, 1)]
)
def test_what_data_and_samples_share(shared, times, noises):
    seen = Seen()
    head = AdversarialHead(PATH, First(), FrozenFeatures(seen, None), LogNormal(), shared=shared)
    data = noise(6, 3)
    head.judge_loss(head.modules(), data, data, SampleBatch(data), generator(), Moment())
    (x, t, _), (other, u, _) = seen.asked
    assert torch.equal(t, u) is bool(times)
    assert torch.equal(x, other) is bool(noises)


def test_paths_with_a_degraded_input_mix_it_in():
    path, seen = paths.ResShift(), Seen()
    head = AdversarialHead(path, First(), FrozenFeatures(seen, None), Fixed(path.t_max))
    data, y = noise(4, 3), 5 + noise(4, 3, seed=1)
    head.student_loss(head.modules(), data, SampleBatch(data, y=y), generator(), Moment())
    a, b, sigma = path.coefficients(path.t_max)
    left = seen.asked[0][0] / path.input_scale(path.t_max) - a * data - b * y
    assert b > 0.9
    assert left.abs().max() < 5 * sigma
    with pytest.raises(ValueError, match="y is needed"):
        head.student_loss(head.modules(), data, SampleBatch(data), generator(), Moment())


class Quadratic(nn.Module):
    """w0 + w1·x + w2·x²: exact for the ratio of two Gaussians."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, dtype=torch.float64))

    def forward(self, features, t):
        x = features[0]
        return (self.w * torch.cat([torch.ones_like(x), x, x * x], dim=1)).sum(1, keepdim=True)


def test_the_best_judge_is_the_log_ratio_of_the_noised_densities():
    """Maximum likelihood of a logistic model: errors within five of its own standard deviations."""
    count, t = 200_000, 0.3
    (mean_q, std_q), (mean_p, std_p) = (0.5, 0.4), (-0.2, 0.7)
    head = AdversarialHead(PATH, Quadratic(), lambda x, t: x, Fixed(t))
    data, made = mean_q + std_q * noise(count, 1), mean_p + std_p * noise(count, 1, seed=1)
    w: Any = head.module.w
    # Newton's method: the loss is convex in the three weights.
    for _ in range(12):
        loss = head.judge_loss(head.modules(), data, made, SampleBatch(data), generator(5), Moment())["loss"]
        (slope,) = torch.autograd.grad(loss, w, create_graph=True)
        hessian = torch.stack([torch.autograd.grad(each, w, retain_graph=True)[0] for each in slope])
        with torch.no_grad():
            w -= torch.linalg.solve(hessian, slope.detach())
    assert slope.abs().max() < 1e-9
    var_q, var_p = std_q**2 + t**2, std_p**2 + t**2
    wanted = torch.tensor(
        [
            0.5 * torch.log(torch.tensor(var_p / var_q)).item()
            - mean_q**2 / (2 * var_q)
            + mean_p**2 / (2 * var_p),
            mean_q / var_q - mean_p / var_p,
            1 / (2 * var_p) - 1 / (2 * var_q),
        ],
        dtype=torch.float64,
    )
    x = torch.linspace(-1.5, 1.5, 31, dtype=torch.float64)[:, None]
    terms = torch.cat([torch.ones_like(x), x, x * x], dim=1)
    spread = (terms @ torch.linalg.inv(count * hessian) * terms).sum(1).sqrt()
    ratio = head.log_ratio(head.modules(), x, torch.full((31,), t, dtype=torch.float64), {}).detach()
    error = (ratio - terms @ wanted).abs()
    assert (error < 5 * spread).all()
    # The band is narrow: the ratio itself spans several units.
    assert spread.max() < 0.1 < 3 < (terms @ wanted).max() - (terms @ wanted).min()


def test_the_log_ratio_is_clipped_and_belongs_to_the_logistic_loss():
    x, t = torch.tensor([[100.0], [-100.0], [1.0]]).double(), torch.full((3,), 0.5).double()
    head = AdversarialHead(PATH, First(), lambda x, t: x)
    assert head.log_ratio({"head": head.module}, x, t, {}).tolist() == [10, -10, 1]
    for loss in ("hinge", "lsgan"):
        with pytest.raises(ValueError, match="softplus"):
            AdversarialHead(PATH, First(), lambda x, t: x, loss=loss).log_ratio(head.modules(), x, t, {})


@pytest.mark.parametrize(
    ("name", "logit", "real", "made", "student"),
    [("hinge", 0.5, 0.5, 1.5, -0.5), ("hinge", -2.0, 3.0, 0.0, 2.0), ("lsgan", 0.5, 0.125, 0.125, 0.125)],
)
def test_losses_by_hand(name, logit, real, made, student):
    value, loss = torch.tensor(logit), LOSSES[name]
    assert (loss.real(value).item(), loss.made(value).item(), loss.student(value).item()) == (
        real,
        made,
        student,
    )


def test_all_logits_of_a_sample_count_alike_and_batches_do_not_mix():
    head = AdversarialHead(PATH, nn.Identity(), lambda x, t: x)
    head.module.forward = lambda features, t: features[0]
    x = noise(4, 2, 3)
    together = head.student_loss(head.modules(), x, SampleBatch(x), generator(), Moment())
    torch.testing.assert_close(together, nn.functional.softplus(-x).mean((1, 2)))


def test_bad_arguments():
    with pytest.raises(ValueError, match="loss must be one of softplus, hinge, lsgan, got 'wgan'"):
        judge(loss="wgan")
    with pytest.raises(ValueError, match="shared must be one of nothing, time, time and noise, got 'all'"):
        judge(shared="all")
    with pytest.raises(TypeError, match="features"):
        judge(features=3)
    head, data = judge("teacher"), noise(2, 3)
    with pytest.raises(ValueError, match="features must name one of head, got 'teacher'"):
        head.student_loss(head.modules(), data, SampleBatch(data), generator(), Moment())
    head = judge(NamedFeatures("fake", (2,)))
    with pytest.raises(ValueError, match=r"layers must lie in \[-2, 1\], got \(2,\)"):
        head.student_loss({"fake": net(), **head.modules()}, data, SampleBatch(data), generator(), Moment())
