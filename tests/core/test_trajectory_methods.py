"""The named methods of consistency, trajectories, halving and shortcuts: made, trained, resumed, sampled."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.method_options import checked_options, options_of
from fewstep.core.objectives.methods.base import Material
from fewstep.core.training import Moment, Trainer, TrainerConfig

NAMES = ("cd", "ct", "ict", "ect", "tcm", "progressive", "shortcut", "ctm")
PATHS = {
    "edm": (paths.EDM(), "edm"),
    "flow": (paths.RectifiedFlow(), "velocity"),
    "vp": (paths.VP.linear(), "v"),
}


def material(name, kind="edm", labels=()):
    """A student and a teacher whose last layers are not zero."""
    path, prediction = PATHS[kind]
    torch.manual_seed(0)
    nets = [
        DiffusionModel.with_network(
            MLPConfig((2,), 16, 1, 8, two_times=methods.get(name).two_times, classes=len(labels)),
            path,
            prediction,
            labels,
        )
        for _ in range(2)
    ]
    for model in nets:
        assert isinstance(model.net, MLP)
        nn.init.normal_(model.net.last.weight, std=0.1)
    student, teacher = nets
    null = len(labels) if labels else None
    return student, Material(path, prediction, student.net, teacher.flow_map(), student.shape, 20, null)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", PATHS)
def test_a_method_trains_on_every_path(name, kind):
    """One update of finite gradients from a labelled float32 batch; then samples of its sampler."""
    student, given = material(name, kind, ("a", "b"))
    objective = methods.get(name).make(given)
    networks = {"student": given.student, **objective.modules()}
    batch = {"x0": torch.randn(16, 2), "label": torch.randint(2, (16,))}
    generator = torch.Generator().manual_seed(0)
    for phase in objective.phases():
        out = phase.loss(networks, batch, generator, Moment(3, 0.3))
        loss = out if isinstance(out, Tensor) else out["loss"]
        assert loss.dtype == torch.float32
        loss.backward()
        objective.after_update(phase.name, networks, Moment(3, 0.3))
    grads = [p.grad for p in given.student.parameters() if p.grad is not None]
    assert grads
    assert all(torch.isfinite(grad).all() for grad in grads)
    assert max(float(grad.abs().max()) for grad in grads) > 0
    for steps in (1, 2):
        made = student.generate(4, steps=steps, label=1, sampling=methods.get(name).sampling)
        assert torch.isfinite(made).all()


def train(name, folder, steps, seed=0):
    student, given = material(name)
    config = TrainerConfig(
        max_steps=12, batch_size=8, save_every_steps=1, tensorboard=False, device="cpu", seed=seed
    )
    trainer = Trainer(
        student.net,
        methods.get(name).make(given),
        lambda rng: torch.from_numpy(rng.standard_normal((8, 2))).float(),
        folder=folder,
        config=config,
    )
    after = trainer.objective.after_update

    def stop(phase, networks, moment):
        after(phase, networks, moment)
        if moment.step == steps:
            raise KeyboardInterrupt

    trainer.objective.after_update = stop
    if steps < 12:
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    else:
        trainer.fit()
    return [p for network in trainer.networks.values() for p in network.parameters()]


@pytest.mark.parametrize("name", ["ct", "shortcut", "ctm"])
def test_a_run_resumes_exactly(name, tmp_path):
    """Targets and curricula go on as if the run had never stopped."""
    whole = train(name, tmp_path / "whole", 12)
    train(name, tmp_path / "parts", 5)
    parts = train(name, tmp_path / "parts", 12)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_options_reach_the_rules():
    _, given = material("cd")
    cd = methods.get("cd")
    assert set(options_of(cd)) == {"points", "target", "transport", "norm", "weight"}
    objective: Any = cd.make(
        given, **checked_options(cd, {"points": 18, "target": 0, "norm": "l1", "transport": "euler"})
    )
    assert objective.rule.pairs.points == 18
    assert objective.decay == 0
    ict: Any = methods.get("ict").make(given, mean=-1.0)
    assert ict.rule.pairs.density == (-1.0, 2.0)
    assert ict.target is None
    with pytest.raises(ValueError, match="transport must be one of heun, euler, clock-heun"):
        checked_options(cd, {"transport": "data"})


@pytest.mark.parametrize("name", ["cd", "tcm", "progressive"])
def test_methods_that_need_a_teacher_say_so(name):
    _, given = material(name)
    alone = Material(given.path, given.prediction, given.student, None, given.shape)
    with pytest.raises(ValueError, match="needs a teacher"):
        methods.get(name).make(alone)
