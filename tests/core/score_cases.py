"""Denoisers in closed form, and recorded draws, for the tests of score distillation."""

import json
from functools import cache
from pathlib import Path as File

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.nets import MLP, MLPConfig
from fewstep.core.objectives.methods import Material

FOLDER = File(__file__).parents[1] / "golden" / "distill"
PATH = paths.EDM(time="sigma")


@cache
def tensors() -> dict[str, Tensor]:
    return load_file(FOLDER / "score_and_flow_losses.safetensors")


@cache
def formulas() -> dict:
    return json.loads((FOLDER / "formulas.json").read_text())


def notes() -> dict:
    return json.loads((FOLDER / "score_and_flow_losses.json").read_text())


class GoldenDenoiser(nn.Module):
    """The three-parameter denoiser of the golden files; it undoes the path's scaling of its input."""

    def __init__(self, values) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(values, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        s = spread(t, x)
        x = x * (s**2 + 0.25).sqrt()
        skip, out = 0.25 / (s**2 + 0.25), 0.5 * s / (s**2 + 0.25).sqrt()
        a, b, c = self.p
        return skip * x + out * (a * torch.tanh(x / (s**2 + 0.25).sqrt()) + b + c * s.log().sin())


class GaussianDenoiser(nn.Module):
    """E[x0 | x_t] of N(mean, std²) data, per element, with its log density's ratio to another one."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        s = spread(t, x)
        x = x * (s**2 + PATH.sigma_data**2).sqrt()
        return self.mean + self.std**2 / (self.std**2 + s**2) * (x - self.mean)

    def log_density(self, x: Tensor, t: Tensor) -> Tensor:
        variance = self.std**2 + spread(t, x) ** 2
        return (-((x - self.mean) ** 2) / (2 * variance) - variance.log() / 2).flatten(1).sum(1)


def flow(net: nn.Module) -> FlowMap:
    return FlowMap(net, PATH, "x0")


def recorded(monkeypatch, *modules, noise: Tensor) -> None:
    """Let these modules draw the recorded noise."""
    for module in modules:
        monkeypatch.setattr(module, "normal_like", lambda x, generator: noise.to(x))


def material(classes: int = 0, seed: int = 0) -> Material:
    """A small student and teacher on EDM's path, in two dimensions."""
    torch.manual_seed(seed)
    path = paths.EDM()
    config = MLPConfig(width=16, depth=1, embedding=8, classes=classes)
    teacher, student = MLP(config), MLP(config)
    nn.init.normal_(teacher.last.weight, std=0.1)
    student.load_state_dict(teacher.state_dict())
    null = classes or None
    return Material(path, "edm", student, FlowMap(teacher.requires_grad_(False), path, "edm"), (2,), 4, null)
