"""Closed-form networks of the distillation goldens, and exact flow maps of Gaussian data."""

import json
from dataclasses import replace
from pathlib import Path as File
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.core import paths
from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.trajectory.base import Situation
from fewstep.core.paths import Path
from fewstep.core.training import Moment

FOLDER = File(__file__).parents[1] / "golden" / "distill"


def golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A golden file: what it says about itself, and its tensors."""
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


class Parameters(nn.Module):
    """A network of three parameters."""

    def __init__(self, p: Any) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(p, dtype=torch.float64))


class OfficialNet(Parameters):
    """p0·tanh(x) + p1·x + p2·cos(t/100) with t = 250·ln(sigma), four thousand times what EDM's path tells."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        wave = torch.cos(10 * t).reshape(-1, *[1] * (x.ndim - 1))
        return self.p[0] * x.tanh() + self.p[1] * x + self.p[2] * wave


class OfficialTwoTimeNet(OfficialNet):
    """The same, plus 0.3·p2·sin(s/200)·x when it is told the target time."""

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        out = super().forward(x, t)
        return out if s is None else out + 0.3 * self.p[2] * torch.sin(5 * s).reshape(-1, 1, 1, 1) * x


class GaussianMap(nn.Module):
    """x0 of the exact flow map of N(0, s0²) data, for a network with the prediction "x0".

    z_s = z_t·sqrt((sigma_s² + a_s²·s0²)/(sigma_t² + a_t²·s0²)); the jump's x0 is that with which
    `FlowMap.moved` arrives there. The network must be told t and s themselves, see `told_path`.
    """

    def __init__(self, path: Path, s0: float = 0.5, error: float = 0.0) -> None:
        super().__init__()
        self.path, self.s0 = path, s0
        self.error = nn.Parameter(torch.tensor(error, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        (a, _, sigma), data = self.path.evaluate(t), self.s0**2
        z = x / spread(self.path.input_scale_at(t), x)
        slope = a * data / (sigma**2 + a**2 * data)
        if s is not None:
            a_s, _, sigma_s = self.path.evaluate(s)
            growth = ((sigma_s**2 + a_s**2 * data) / (sigma**2 + a**2 * data)).sqrt()
            far = (growth - sigma_s / sigma) / (a_s - sigma_s / sigma * a)
            slope = torch.where(s < t, far, slope)
        return (spread(slope, x) + self.error) * z


def gradient(parameter: Tensor) -> Tensor:
    """The gradient that must be there."""
    assert parameter.grad is not None
    return parameter.grad


def situation(
    path: Path,
    x0: Tensor,
    student: FlowMap,
    target: FlowMap | None = None,
    teacher: FlowMap | None = None,
    moment: Moment | None = None,
    seed: int = 0,
) -> Situation:
    """What a rule works with; the target is the student where none is given."""
    return Situation(
        student,
        target or student,
        teacher,
        SampleBatch(x0),
        torch.Generator().manual_seed(seed),
        moment or Moment(),
    )


def sigma_path(**options: Any) -> paths.EDM:
    """EDM's path whose network is told sigma."""
    return paths.EDM(time="sigma", **options)


def told_path(name: str) -> Path:
    """A path whose network is told the time itself."""
    known = {
        "edm": sigma_path(),
        "vp": replace(paths.VP.linear(), time="t"),
        "flow": paths.RectifiedFlow(time="t"),
    }
    return known[name]
