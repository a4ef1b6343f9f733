"""What a policy is trained by: regression, denoising, or the average velocity of MeanFlow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.objectives.distances import AdaptiveError
from fewstep.core.objectives.sample_batch import normal_like
from fewstep.core.objectives.times import LogitNormal, LogNormal, TimeSampler, Uniform
from fewstep.core.objectives.trajectory.mean_flow import mean_flow_pair
from fewstep.core.objectives.trajectory.time_pairs import Ordered
from fewstep.core.paths import EDM, Path

from .model import PolicyModel


def usual_times(path: Path) -> TimeSampler:
    """Which times training sees: all levels alike, or EDM's log-normal σ."""
    return LogNormal(-1.2, 1.2) if isinstance(path, EDM) else Uniform()


@dataclass(frozen=True)
class Imitation:
    """Loss of a policy on windows of demonstrations, by the policy's kind.

    With a the normalised chunk, eps noise and c the encoded observation,
        "ode"          mean (net(a_t, t, c) − target)², target what the prediction means: eps, eps − a …
        "flow-map"     MeanFlow, see `mean_flow_error`
        "regression"   mean (net(0, 0, c) − a)².

    Args:
        ratio: of "flow-map", share of samples with two different times; only they need the derivative.
        power: of "flow-map", of the adaptive weight; 0 leaves the squared error.

    Reference: Chi et al. 2023, "Diffusion Policy", eq. 5; Geng et al. 2025, "Mean Flows for One-step
        Generative Modeling", eqs. 9-11.
    """

    ratio: float = 0.25
    power: float = 0.5

    def __call__(
        self, model: nn.Module, batch: Mapping[str, Any], generator: torch.Generator
    ) -> Tensor | dict[str, Tensor]:
        """The loss of a PolicyModel for a batch of `windows.Windows`."""
        assert isinstance(model, PolicyModel)
        told = model.encode(batch["obs"])
        chunk = model.normalizer.normalize("action", batch["action"])
        if model.config.kind == "regression":
            empty = torch.zeros_like(chunk)
            return (model.net(empty, empty.new_zeros(len(empty)), global_cond=told) - chunk).square().mean()
        if model.config.kind == "flow-map":
            return mean_flow_error(model.flow_map(told), chunk, generator, self.ratio, self.power)
        flow, noise = model.flow_map(told), normal_like(chunk, generator)
        t = usual_times(model.path)(model.path, len(chunk), generator, chunk.device)
        out = flow.predict(model.path.corrupt(chunk, t, noise), t)
        return (out - flow.prediction.target(model.path, t, chunk, noise)).square().mean()


def mean_flow_error(
    flow: FlowMap, x0: Tensor, generator: torch.Generator, ratio: float = 0.25, power: float = 0.5
) -> dict[str, Tensor]:
    """MeanFlow's loss, with the derivative only where two times differ.

    loss = mean of S/sg(S + c)^p, S = ‖u(x_t, t, s) − sg(v − (t − s)·du/dt)‖² over a sample; where s = t the
    second term is 0 and u is asked once.

    Args:
        flow: the network, told its conditions, each (batch, …).
        x0: data.
        generator: of times and noise.
        ratio: share of samples with s < t.
        power: p.

    Returns:
        "loss" and, for the log, "squared_error".

    Reference: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", algorithm 1, eq. 22.
    """
    noise = normal_like(x0, generator)
    count = len(x0)
    apart = round(ratio * count)
    t, s = Ordered(LogitNormal(-0.4, 1.0), 1.0)(flow.path, count, generator, x0.device)
    x, velocity = flow.path.corrupt(x0, t, noise), noise - x0
    pieces = []
    if apart:
        there = slice(0, apart)
        pieces.append(mean_flow_pair(part_of(flow, there), x[there], t[there], s[there], velocity[there]))
    if apart < count:
        rest = slice(apart, count)
        pieces.append((part_of(flow, rest).mean_velocity(x[rest], t[rest], t[rest]), velocity[rest]))
    u = torch.cat([said for said, _ in pieces])
    target = torch.cat([wanted for _, wanted in pieces])
    error = (u - target).detach().square().flatten(1).sum(1).mean()
    return {"loss": AdaptiveError(power)(u, target).mean(), "squared_error": error}


def part_of(flow: FlowMap, rows: slice) -> FlowMap:
    """The flow map for some rows of a batch."""
    return flow.given(**{name: value[rows] for name, value in flow.conditions.items()})
