"""RepresentationLearning: its two terms, what they train, and that noisy pictures come to look like clean."""

# pyright: reportArgumentType=false, reportCallIssue=false

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fewstep.core import paths
from fewstep.core.nets import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig
from fewstep.core.objectives.representation import CosineDistance, InfoNCE, RepresentationLearning
from fewstep.core.objectives.times import Fixed
from fewstep.core.training import Moment, Trainer, TrainerConfig

PATH = paths.RectifiedFlow()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def same(x, generator):
    return x


def objective(net, layer=1, width=16, **options):
    torch.manual_seed(1)
    projector = nn.Sequential(nn.Linear(width, 12), nn.SiLU(), nn.Linear(12, 8)).to(next(net.parameters()))
    options.setdefault("views", same)
    return RepresentationLearning(options.pop("path", PATH), net, projector, layer, **options)


def small(shape=(3,), **options):
    torch.manual_seed(0)
    return MLP(MLPConfig(shape=shape, width=16, depth=4, embedding=8)).double()


def loss_of(task, net, x0, seed=0, moment=Moment()):  # noqa: B008
    (phase,) = task.phases()
    return phase.loss({"student": net, **task.modules()}, x0, generator(seed), moment)


def test_info_nce_is_the_cross_entropy_of_the_cosines():
    z, w = normal(5, 4), normal(5, 4, seed=1)
    cosines = torch.stack([F.cosine_similarity(z[i][None], w) for i in range(5)])
    for i, loss in enumerate(InfoNCE(0.3)(z, w)):
        assert abs(loss - (torch.logsumexp(cosines[i] / 0.3, 0) - cosines[i, i] / 0.3)) < 1e-12
    assert (InfoNCE(1.0)(torch.ones(6, 2), torch.ones(6, 2)) - math.log(6)).abs().max() < 1e-6
    assert InfoNCE(0.01)(torch.eye(4), torch.eye(4)).max() < 1e-6
    assert (CosineDistance()(z, 3 * z)).abs().max() < 1e-12
    assert (CosineDistance()(z, -z) - 2).abs().max() < 1e-12


@pytest.mark.parametrize("path", [PATH, paths.EDM()], ids=str)
def test_the_loss_is_the_formula(path):
    """Both terms by hand, at one time: x_t and x_r with the same x0 and eps, told as the path tells times."""
    net, x0, t = small(), normal(6, 3), 0.6
    task = objective(net, path=path, times=Fixed(t), gap=0.25, weight=2.0, temperature=0.5)
    for parameter in task.target.parameters():
        parameter.add_(0.01)
    losses = loss_of(task, net, x0)
    noise = torch.randn(x0.shape, generator=generator(), dtype=torch.float64)
    a, _, sigma = path.coefficients(t)
    tau = 0.75 * sigma / (a + sigma)
    r = path.time_at(math.log((1 - tau) / tau))

    def seen(owner, x, t):
        told = torch.full((6,), path.network_time(t), dtype=torch.float64)
        return owner["projector"](owner["student"].features(x * path.input_scale(t), told)[1])

    def at(t):
        a, _, sigma = path.coefficients(t)
        return a * x0 + sigma * noise

    ours, theirs = {"student": net, "projector": task.projector}, task.target
    clean = InfoNCE(0.5)(seen(ours, x0, path.t_min), seen(theirs, x0, path.t_min)).mean()
    along = CosineDistance()(seen(ours, at(t), t), seen(theirs, at(r), r)).mean()
    assert abs(losses["contrastive"] - clean) < 1e-12
    assert abs(losses["consistency"] - along) < 1e-10
    assert abs(losses["loss"] - clean - 2 * along) < 1e-10


def test_only_the_encoder_and_the_projector_are_trained():
    net = small()
    task = objective(net)
    loss_of(task, net, normal(6, 3))["loss"].backward()
    moved = {name for name, parameter in net.named_parameters() if parameter.grad is not None}
    assert {"first.weight", "inner.0.weight", "inner.1.weight"} <= moved
    assert not {"inner.2.weight", "outer.3.weight", "last.weight"} & moved
    assert all(parameter.grad is not None for parameter in task.projector.parameters())
    assert all(parameter.grad is None for parameter in task.target.parameters())


def test_the_averages_follow():
    net = small()
    task = objective(net, decay=0.75)
    before = copy.deepcopy(task.target.state_dict())
    with torch.no_grad():
        for parameter in (*net.parameters(), *task.projector.parameters()):
            parameter.add_(1.0)
    task.after_update("encoder", {"student": net, **task.modules()}, Moment())
    after = task.target.state_dict()
    assert all((after[name] - before[name] - 0.25).abs().max() < 1e-6 for name, _ in net.named_parameters()
               for name in (f"student.{name}",))  # fmt: skip
    assert all((after[f"projector.{n}"] - before[f"projector.{n}"] - 0.25).abs().max() < 1e-6
               for n, _ in task.projector.named_parameters())  # fmt: skip


def test_the_gap_may_follow_the_run():
    net, x0 = small(), normal(6, 3)
    task = objective(net, gap=lambda moment: 1 - 0.9 * moment.progress, times=Fixed(0.5))
    fixed = [objective(net, gap=gap, times=Fixed(0.5)) for gap in (1.0, 0.1)]
    for progress, other in zip((0.0, 1.0), fixed, strict=True):
        mine = loss_of(task, net, x0, moment=Moment(0, progress))["consistency"]
        assert abs(mine - loss_of(other, net, x0)["consistency"]) < 1e-12


@pytest.mark.parametrize(
    ("net", "layer", "width"),
    [
        (lambda: MLP(MLPConfig(shape=(1, 8, 8), width=16, depth=2)), 0, 16),
        (lambda: DiT(DiTConfig(width=16, depth=2, heads=2, classes=3)), 1, 16),
        (lambda: UNet(UNetConfig(size=(8, 8), widths=(8, 16), attention=())), -1, 16),
    ],
    ids=["mlp", "dit", "unet"],
)
def test_every_network_of_the_core_is_an_encoder(net, layer, width):
    net = net()
    task = objective(net, layer, width)
    x0 = torch.randn(3, 1, 8, 8, generator=generator())
    assert task.represent(net, x0, torch.full((3,), 0.5).double(), {}).shape == (3, width)
    batch = {"x0": x0, "label": torch.tensor([0, 1, 2])} if isinstance(net, DiT) else x0
    assert torch.isfinite(loss_of(task, net, batch)["loss"])


def test_after_training_noisy_samples_are_recognised_and_the_decoder_is_untouched(tmp_path):
    """On a ring of 16 points: which point a noisy state came from, by its nearest clean representation."""
    angle = torch.arange(16) * math.pi / 8
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    torch.manual_seed(0)
    net = MLP(MLPConfig(shape=(2,), width=32, depth=4))
    decoder = net.outer[3].weight.clone()
    task = objective(net, 1, 32, times=Fixed(0.3), temperature=0.1, gap=1.0)

    def apart():
        noise = torch.randn(16, 2, generator=generator(5))
        noisy = PATH.corrupt(ring, torch.full((16,), 0.1).double(), noise)
        with torch.no_grad():
            clean, seen = (
                task.projector(task.represent(net, x, torch.full((16,), t).double(), {}))
                for x, t in ((ring, PATH.t_min), (noisy, 0.1))
            )
        return float((F.normalize(seen, dim=1) - F.normalize(clean, dim=1)).norm(dim=1).mean()), float(
            InfoNCE(0.1)(clean, clean).mean()
        )

    config = TrainerConfig(max_steps=150, learning_rate=3e-3, tensorboard=False, log_every=1000)
    before = apart()
    Trainer(net, task, lambda _: ring, folder=tmp_path, config=config).fit()
    after = apart()
    assert after[1] < 0.5 * before[1]  # points are told from each other
    assert after[0] < math.sqrt(2) / 2  # and the noise moves a point less than half way to a stranger
    assert torch.equal(decoder, net.outer[3].weight)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"decay": 1.0}, "decay"),
        ({"gap": 0.0}, "gap"),
        ({"weight": -1.0}, "weight"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_bad_options_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        objective(small(), **options)
