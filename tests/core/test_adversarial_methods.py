"""The methods by name: each makes an objective that trains student and judge and leaves the teacher alone."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fewstep.core import paths
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, DiT, DiTConfig, MLPConfig, UNet, UNetConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.adversarial.standalone import DenoisedByTeacher, FromData
from fewstep.core.objectives.distances import SquaredError
from fewstep.core.objectives.methods.adversarial import METHODS
from fewstep.core.objectives.methods.base import Material
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.score.base import Made
from fewstep.core.objectives.times import Fixed
from fewstep.core.training import Moment, Trainer, TrainerConfig

NETS = {
    "mlp": (lambda: MLP(MLPConfig(shape=(2,), width=16, depth=2, embedding=8, classes=3)), (2,)),
    "unet": (lambda: UNet(UNetConfig(size=(8, 8), widths=(8, 16), embedding=16, classes=3)), (1, 8, 8)),
    "dit": (lambda: DiT(DiTConfig(width=16, depth=2, heads=2, classes=3)), (1, 8, 8)),
}


def material(kind="mlp", path=None):
    make, shape = NETS[kind]
    torch.manual_seed(0)
    net, path = make(), path or paths.EDM()
    teacher = FlowMap(copy.deepcopy(net).requires_grad_(False), path, "edm")
    return Material(path, "edm", net, teacher, shape, null_label=3)


def run(folder, made, net, shape, steps=6, precision: Any = "no"):
    def batches(rng):
        x0 = torch.from_numpy(rng.standard_normal((4, *shape), dtype=np.float32))
        return {"x0": x0, "label": torch.from_numpy(rng.integers(0, 3, 4))}

    config = TrainerConfig(max_steps=steps, device="cpu", tensorboard=False, precision=precision)
    return Trainer(net, made, batches, folder=folder, config=config).fit()


def copied(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module, before):
    return any(not torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_student_and_judge_of_every_network(tmp_path, name, kind):
    given = material(kind)
    made = methods.get(name).make(given)
    judge, teacher = next(iter(made.modules().values())), given.taught().net
    before = [copied(module) for module in (given.student, judge, teacher)]
    assert run(tmp_path, made, given.student, given.shape).skipped == 0
    moved = [
        changed(module, old) for module, old in zip((given.student, judge, teacher), before, strict=True)
    ]
    assert moved == [True, True, False]


def test_under_bfloat16(tmp_path):
    given = material("unet")
    made = methods.get("gan").make(given)
    before = copied(given.student)
    assert run(tmp_path, made, given.student, given.shape, precision="bf16").skipped == 0
    assert changed(given.student, before)


def test_networks_without_features_are_refused():
    given = material()
    plain = nn.Linear(2, 2)
    without = Material(given.path, "edm", plain, FlowMap(plain, given.path, "edm"), (2,))
    with pytest.raises(ValueError, match="a judge needs a network with features; Linear has none"):
        METHODS["ladd"].make(without)
    with pytest.raises(ValueError, match="a judge of pairs is built like the core's networks; Linear"):
        METHODS["ddgan"].make(without)
    with pytest.raises(ValueError, match="needs a teacher"):
        METHODS["ladd"].make(Material(given.path, "edm", given.student, None, (2,)))


def test_data_levels_begin_with_pure_noise():
    path = paths.EDM()
    flow = FlowMap(lambda x, t: x, path, "x0")
    x0, generator = torch.full((3000, 1), 100.0), torch.Generator().manual_seed(0)
    made = FromData((5.0, 1.0, 0.2), (0.5, 0.25, 0.25))(flow, SampleBatch(x0), generator, Moment())
    for time, share in ((5.0, 0.5), (1.0, 0.25), (0.2, 0.25)):
        here = made.start == time
        count = int(here.sum())
        assert abs(count / 3000 - share) < 5 * (share * (1 - share) / 3000) ** 0.5
        mean = 0.0 if time == 5.0 else 100.0
        left = (made.state[here] - mean) / time
        assert abs(float(left.mean())) < 5 / count**0.5
        assert abs(float(left.var()) - 1) < 5 * (2 / count) ** 0.5
    for arguments in (((1.0, 1.0), None), ((), None)):
        with pytest.raises(ValueError, match="times must be decreasing"):
            FromData(*arguments)
    with pytest.raises(ValueError, match="shares must be 2 numbers"):
        FromData((2.0, 1.0), (1.0,))


def test_the_teachers_denoising_is_a_fixed_target_weighted_by_a():
    """A teacher D = x_t/2 on rectified flow at t = 0.25: the target is (0.75·x + 0.25·n)/2."""
    path, x = (
        paths.RectifiedFlow(),
        torch.linspace(-2, 2, 12, dtype=torch.float64).reshape(4, 3).requires_grad_(),
    )
    term = DenoisedByTeacher(FlowMap(lambda x, t: x / 2, path, "x0"), 2.0, Fixed(0.25), SquaredError())
    start = torch.ones(4, dtype=torch.float64)
    made = Made(x, start, x.detach(), x.detach())
    batch = SampleBatch(x.detach())
    losses = term({}, made, batch, torch.Generator().manual_seed(0), Moment())
    noise = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gap = (x - (0.75 * x + 0.25 * noise) / 2).detach()
    torch.testing.assert_close(losses.detach(), 2 * 0.75 * gap.square().mean(1))
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    torch.testing.assert_close(gradient, 2 * 0.75 * 2 * gap / 3)
