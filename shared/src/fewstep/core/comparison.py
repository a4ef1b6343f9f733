"""Quality against network calls, for several models and samplers, on the same data."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fewstep.core import solvers
from fewstep.core.bridges.diffusers_folder import DiffusersModel
from fewstep.core.flow_map import FlowMap
from fewstep.core.metrics import METRICS, Distance, frechet_distance
from fewstep.core.models import DiffusionModel
from fewstep.core.objectives.student_score import calls_of
from fewstep.core.plan import Plan
from fewstep.core.sample import sample
from fewstep.core.sampling import Sampling

Model = DiffusionModel | DiffusersModel
Draw = Callable[[int, int, FlowMap], Tensor]
BATCH = 256
SHOWN = 36


@dataclass(frozen=True)
class Measurement:
    """One model with one sampler at one number of network calls.

    Args:
        model: its name.
        sampler: its name.
        calls: network calls of one sample.
        metrics: distances to the data, by name.
        milliseconds: for one sample, of the network and the sampler, in batches.
        shown: the first samples.
    """

    model: str
    sampler: str
    calls: int
    metrics: Mapping[str, float]
    milliseconds: float
    shown: Tensor = field(repr=False, compare=False)


@dataclass(frozen=True)
class Comparison:
    """What is compared with what.

    Args:
        data: real samples (count, *shape); as many are made of every model.
        conditions: what the networks are told for each of them, such as `label`.
        calls: numbers of network calls.
        solver_names: of models that are sampled by a solver; empty: the model's own.
        distances: by name.
        seed: of the first sample's noise.

    Raises:
        ValueError: there are too few samples, no calls, or a solver is unknown or without plans.
    """

    data: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict)
    calls: Sequence[int] = (1, 2, 4, 8, 18)
    solver_names: Sequence[str] = ()
    distances: Mapping[str, Distance] = field(default_factory=lambda: dict(METRICS))
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.data) < 4:
            raise ValueError(f"data must hold at least 4 samples, got {len(self.data)}")
        if not self.calls or min(self.calls) < 1:
            raise ValueError(f"calls must be positive numbers, got {tuple(self.calls)}")
        for name in self.solver_names:
            if isinstance(solvers.get(name), solvers.StepwiseSolver):
                raise ValueError(f"solver {name!r} has no fixed number of network calls")

    def floor(self) -> dict[str, float]:
        """Distances between the two halves of the data: what equal distributions have at half the number."""
        half = len(self.data) // 2
        return self._measured(self.data[:half], self.data[half : 2 * half])

    def samplers(self, model: Model) -> list[tuple[str, int, Draw]]:
        """Name, calls and drawing function of every sampler of a model; equal ones once.

        A solver that has no such number of calls (Heun an even one) takes the largest one below.
        """
        found: dict[tuple[str, int], Draw] = {}
        own = model.sampling
        if own.kind != "ode":
            return [(own.kind, calls, _drawer(replace(own, steps=calls), model)) for calls in self.calls]
        for name in self.solver_names or (own.solver,):
            for calls in self.calls:
                sampling = _within(replace(own, solver=name, times=None), model, calls)
                if sampling is not None:
                    key = name, calls_of(sampling, model.path)
                    found.setdefault(key, _drawer(sampling, model))
        for calls in self.calls:
            plan = model.tuned_plan(calls) if isinstance(model, DiffusionModel) else None
            if plan is not None and plan.starts == 1:
                found["tuned", plan.nfe] = _planned(plan, model)
        return [(name, calls, draw) for (name, calls), draw in found.items()]

    def of(self, name: str, model: Model) -> Iterator[Measurement]:
        """Measure every sampler of a model.

        Raises:
            ValueError: the model makes samples of another shape than the data.
        """
        if tuple(model.shape) != tuple(self.data.shape[1:]):
            wanted = tuple(self.data.shape[1:])
            raise ValueError(f"{name} makes samples of shape {tuple(model.shape)}, the data have {wanted}")
        for sampler, calls, draw in self.samplers(model):
            started = time.perf_counter()
            made = self._draw(model, draw)
            seconds = time.perf_counter() - started
            metrics = self._measured(made, self.data)
            yield Measurement(name, sampler, calls, metrics, 1000 * seconds / len(made), made[:SHOWN])

    @torch.no_grad()
    def _draw(self, model: Model, draw: Draw) -> Tensor:
        device = next(model.net.parameters()).device
        known = bool(model.labels if isinstance(model, DiffusersModel) else model.config.labels)
        parts = []
        for first in range(0, len(self.data), BATCH):
            last = min(first + BATCH, len(self.data))
            told = {
                name: value[first:last].to(device)
                for name, value in self.conditions.items()
                if name != "label" or known
            }
            flow = model.flow_map()
            parts.append(draw(last - first, self.seed + first, flow.given(**told) if told else flow).cpu())
        return torch.cat(parts)

    def _measured(self, made: Tensor, data: Tensor) -> dict[str, float]:
        if not bool(made.isfinite().all()):
            return dict.fromkeys(self.distances, float("inf"))
        return {name: float(distance(made, data)) for name, distance in self.distances.items()}


def feature_distance(model: DiffusionModel, noise_level: float = 0.1) -> Distance:
    """The Fréchet distance in features of a trained network in place of pixels.

    The features are those of the network's last hidden layer, averaged over places, when it sees samples with
    a little noise (sigma/a = noise_level, the same noise for every set). Not Inception's: figures are
    comparable with those of the same checkpoint only.

    Args:
        model: whose network has `features`.
        noise_level: sigma/a of the samples that the network sees.

    Raises:
        ValueError: the network has no features.
    """
    if not hasattr(model.net, "features"):
        raise ValueError("features need a network that has them")

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        path, net = model.path, model.net
        device = next(net.parameters()).device
        t = path.time_at(-torch.tensor(noise_level).log().item())
        scale, told = path.input_scale(t), path.network_time(t)
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        found = []
        for part, drawn in zip(x.split(BATCH), noise.split(BATCH), strict=True):
            times = torch.full((len(part),), t, dtype=torch.float64)
            seen = scale * path.corrupt(part.float(), times, drawn)
            hidden = net.features(seen.to(device), torch.full((len(part),), told, device=device))[-1]  # type: ignore[operator]
            found.append(_pooled(hidden).cpu())
        return torch.cat(found)

    return lambda x, y: frechet_distance(features(x), features(y))


def _pooled(hidden: Tensor) -> Tensor:
    """One vector per sample: (batch, tokens, features) or (batch, features, *places) averaged over places."""
    if hidden.ndim == 3:
        return hidden.mean(1)
    return hidden.flatten(2).mean(2) if hidden.ndim > 3 else hidden


def _within(sampling: Sampling, model: Model, calls: int) -> Sampling | None:
    """The sampling with the most steps whose network calls are not above `calls`."""
    for steps in range(calls, 0, -1):
        try:
            if calls_of(replace(sampling, steps=steps), model.path) <= calls:
                return replace(sampling, steps=steps)
        except (ValueError, ArithmeticError):  # this solver cannot do with so few steps on this path
            continue
    return None


def _drawer(sampling: Sampling, model: Model) -> Draw:
    def draw(count: int, seed: int, flow: FlowMap) -> Tensor:
        return sampling.run(flow, model.shape, count, seed=seed)

    return draw


def _planned(plan: Plan, model: Model) -> Draw:
    def draw(count: int, seed: int, flow: FlowMap) -> Tensor:
        device = next(model.net.parameters()).device
        return sample(flow.denoiser, flow.path, plan, shape=(count, *model.shape), seed=seed, device=device)

    return draw
