"""Closed-form networks and short runs for the tests of the extensions of score distillation."""

# Objectives are looked at as what they are, and networks as the closed forms that they are.
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportOptionalOperand=false

import copy

import torch
from tests.core.score_cases import PATH
from torch import nn

from fewstep.core import paths
from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives import methods
from fewstep.core.objectives.methods.base import Material
from fewstep.core.training import Moment, Trainer, TrainerConfig

NOW = Moment(0, 0.5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


class ByLevel(nn.Module):
    """D(x, sigma) = gain·x + shift with one gain and shift for each of some levels of `PATH`."""

    def __init__(self, levels, gains, shifts=None):
        super().__init__()
        self.register_buffer("levels", torch.tensor(levels, dtype=torch.float64))
        self.gains = nn.Parameter(torch.tensor(gains, dtype=torch.float64))
        self.shifts = nn.Parameter(torch.tensor(shifts or [0.0] * len(gains), dtype=torch.float64))

    def forward(self, x, t):
        which = (t[:, None] - self.levels).abs().argmin(1)
        x = x * (spread(t, x) ** 2 + PATH.sigma_data**2).sqrt()  # undoes the path's input scale
        return spread(self.gains[which], x) * x + spread(self.shifts[which], x)


def small_teacher(classes=0, shape=(2,), seed=0, path=None, prediction="edm"):
    """An MLP with weights that are not zero, as a FlowMap."""
    torch.manual_seed(seed)
    net = MLP(MLPConfig(shape=shape, width=16, depth=1, embedding=8, classes=classes))
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return FlowMap(net.eval().requires_grad_(False), path or paths.EDM(), prediction)


def given_to(name, teacher=None, **values):
    """What the method of that name gets, by default with the small teacher."""
    teacher = teacher or small_teacher()
    student = copy.deepcopy(teacher.net).requires_grad_(True)
    sampling = values.pop("sampling", methods.get(name).sampling)
    shape = teacher.net.config.shape
    return Material(
        teacher.path, teacher.prediction.name, student, teacher, shape, 10, sampling=sampling, **values
    )


def run(name, given, batch, folder, rounds=2, **options):
    """Train for some rounds; returns the names of the networks whose weights have moved, and the trainer."""
    objective = methods.get(name).make(given, **options)
    networks = {"student": given.student, **objective.modules()}
    before = {key: copy.deepcopy(net.state_dict()) for key, net in networks.items()}
    steps = rounds * sum(phase.updates for phase in objective.phases())
    config = TrainerConfig(max_steps=steps, device="cpu", tensorboard=False, learning_rate=1e-2)
    trainer = Trainer(given.student, objective, lambda rng: batch, folder=folder, config=config)
    trainer.fit()
    moved = set()
    for key, net in trainer.networks.items():
        state = net.state_dict()
        assert all(bool(torch.isfinite(value).all()) for value in state.values())
        if any(not torch.equal(value, before[key][part]) for part, value in state.items()):
            moved.add(key)
    return moved, trainer
