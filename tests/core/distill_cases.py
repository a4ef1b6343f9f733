"""A tiny teacher, tiny data, and methods simple enough to know what they must do."""

import math
from typing import Literal

import torch

from fewstep.core import paths
from fewstep.core.models import DiffusionModel
from fewstep.core.nets import MLPConfig
from fewstep.core.objectives.methods.base import Material, Method
from fewstep.core.objectives.sample_batch import SampleBatch, normal_like
from fewstep.core.sampling import Sampling
from fewstep.core.training import Objective, Phase, SinglePhase

STEPS = 6


def make_teacher(shape=(2,), labels=(), two_times=False, seed=0) -> DiffusionModel:
    """A network that has learned nothing, with weights that are not zero."""
    torch.manual_seed(seed)
    config = MLPConfig(shape=shape, width=16, depth=1, embedding=8, classes=len(labels), two_times=two_times)
    model = DiffusionModel.with_network(config, paths.EDM(), "edm", labels, Sampling("ode", STEPS))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_data(count=400, shape=(2,), seed=1) -> torch.Tensor:
    """Samples around (1, −1, 1, …) with standard deviation 0.1."""
    generator = torch.Generator().manual_seed(seed)
    size = math.prod(shape)
    centre = torch.tensor([1.0, -1.0]).repeat(size)[:size].reshape(shape)
    return centre + 0.1 * torch.randn(count, *shape, generator=generator)


class Regression(SinglePhase):
    """x0 from pure noise, by its mean squared error: a student that makes the data's mean in one call."""

    def __init__(self, material: Material, factor: float) -> None:
        self.material, self.factor = material, factor

    def loss(self, student, batch, generator, moment):
        """Mean squared error at t_max."""
        read = SampleBatch.read(batch)
        flow = read.flow_map(student, self.material.path, self.material.prediction)
        t = torch.full((len(read.x0),), self.material.path.t_max)
        x = self.material.path.corrupt(read.x0, t, read.noise_or(generator))
        return self.factor * (flow.x0(x, t) - read.x0).square().mean()


class WithFake(Objective):
    """Two updates of a copy of the teacher for one of the student, each towards the other's teacher."""

    def __init__(self, material: Material) -> None:
        self.material, self.fake = material, material.copy_of_teacher()

    def phases(self):
        """fake, fake, student."""
        return Phase("fake", self._fake, ("fake",), 2), Phase("student", self._student)

    def modules(self):
        """The fake."""
        return {"fake": self.fake}

    def _loss(self, net, batch, generator):
        read = SampleBatch.read(batch)
        x = 10 * normal_like(read.x0, generator)
        t = torch.full((len(x),), 10.0)
        taught = self.material.taught().given(**read.conditions)
        flow = read.flow_map(net, self.material.path, self.material.prediction)
        return (flow.x0(x, t) - taught.x0(x, t)).square().mean()

    def _fake(self, networks, batch, generator, moment):
        return self._loss(networks["fake"], batch, generator)

    def _student(self, networks, batch, generator, moment):
        return self._loss(networks["student"], batch, generator)


def regression(
    material: Material,
    factor: float = 1.0,
    norm: Literal["l1", "l2"] = "l2",
    times: tuple[float, ...] = (),
    count: int | None = None,
) -> Regression:
    """The options are there to be checked; only the factor does something."""
    return Regression(material, factor)


def two_phases(material: Material) -> WithFake:
    """Data-free."""
    return WithFake(material)


SETTINGS = {"learning_rate": 0.01, "updates": 60, "batch_size": 32, "ema": None, "validate_every": 20}
REGRESSION = Method("A 2000", "mean", regression, ("data",), Sampling("consistency", 1), settings=SETTINGS)
PAIRED = Method("A 2000", "mean", regression, ("pairs",), Sampling("consistency", 1), settings=SETTINGS)
DATA_FREE = Method("B 2000", "copy", two_phases, ("teacher",), Sampling("consistency", 1), settings=SETTINGS)
TWO_TIMES = Method(
    "C 2000", "mean", regression, ("data",), Sampling("flow-map", 1), two_times=True, settings=SETTINGS
)
BOUNDARY = Method(
    "D 2000", "mean", regression, ("data",), Sampling("consistency", 2), prediction="edm-boundary",
    settings=SETTINGS,
)  # fmt: skip
