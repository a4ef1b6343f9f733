"""SampleScore: how good a student's samples are, while it is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.core import solvers
from fewstep.core.flow_map import FlowMap
from fewstep.core.metrics import energy_distance, sliced_wasserstein
from fewstep.core.paths import Path
from fewstep.core.pictures import grid_of, is_picture
from fewstep.core.predictions import Prediction
from fewstep.core.sampling import Sampling
from fewstep.core.solvers import StepwiseSolver

# Far from the seeds 0, 1, 2 … that users and pairs draw from.
SEED = 1_000_003


@dataclass(frozen=True)
class SampleScore:
    """Distances between held-out samples and as many of a network's own, from the same noise every time.

    Args:
        path: of the network.
        prediction: of the network.
        sampling: how samples are made.
        reference: held-out samples (count, *shape).
        conditions: what the network is told for each of them, such as `label` or y.
        seed: of the first sample's noise.
        batch: samples that are made at once.
    """

    path: Path
    prediction: str | Prediction
    sampling: Sampling
    reference: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    seed: int = SEED
    batch: int = 256

    def __call__(self, net: nn.Module) -> dict[str, float]:
        """The distances by name.

        A network whose samples are not finite has infinite distances.
        """
        made = self.samples(net, len(self.reference))
        if not bool(made.isfinite().all()):
            return {"sliced-wasserstein": float("inf"), "energy": float("inf")}
        reference = self.reference.to(made)
        return {
            "sliced-wasserstein": float(sliced_wasserstein(made, reference)),
            "energy": float(energy_distance(made, reference)),
        }

    @torch.no_grad()
    def samples(self, net: nn.Module, count: int) -> Tensor:
        """The first `count` samples of a network."""
        flow = FlowMap(net, self.path, self.prediction)
        device = next((parameter.device for parameter in net.parameters()), torch.device("cpu"))
        parts = []
        for first in range(0, min(count, len(self.reference)), self.batch):
            last = min(first + self.batch, count, len(self.reference))
            told = {name: value[first:last].to(device) for name, value in self.conditions.items()}
            asked = flow.given(**told) if told else flow
            parts.append(
                self.sampling.run(asked, self.reference.shape[1:], last - first, seed=self.seed + first)
            )
        return torch.cat(parts)

    def picture(self, net: nn.Module) -> dict[str, np.ndarray]:
        """A grid of up to 64 samples, where samples are pictures."""
        if not is_picture(tuple(self.reference.shape[1:])):
            return {}
        return {"samples": grid_of(self.samples(net, 64))}


def calls_of(sampling: Sampling, path: Path, steps: int | None = None) -> int:
    """Network calls of one sample for so many steps (None: the sampling's own).

    Raises:
        ValueError: the solver has no fixed number of calls.
    """
    steps = sampling.steps if steps is None else steps
    if sampling.kind != "ode":
        return steps
    solver = solvers.get(sampling.solver)
    if isinstance(solver, StepwiseSolver):
        raise ValueError(f"solver {sampling.solver!r} has no fixed number of network calls")
    return solver.compile(path, sampling.grid(path, steps)).nfe
