"""Objectives: what a plan is good for, as a number; smaller is better."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.noise import SampleNoise
from fewstep.core.paths import Path
from fewstep.core.plan import Plan
from fewstep.core.sample import sample
from fewstep.core.search.boss import fine_grid
from fewstep.core.solvers.unified import StepChoice, UnifiedSolver

STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda errors: errors.mean(),
    "geometric": lambda errors: errors.clamp_min(1e-12).log().mean().exp(),
    "median": lambda errors: errors.median(),
}
"""How the errors of many samples become one number."""


@runtime_checkable
class Objective(Protocol):
    """A number for a plan, smaller is better."""

    def __call__(self, plan: Plan, /) -> float: ...


@dataclass(frozen=True, eq=False)
class Starts:
    """Start noises, and degraded inputs for paths that have them: what plans are compared on.

    Args:
        denoise: a Denoiser, or any callable (x, t) -> x0.
        path: the path.
        noise: standard normal draws, shape (count, ...).
        y: degraded inputs, shape (count, ...), if the path uses them.
        batch: how many samples run at once; None: all.
    """

    denoise: Callable[..., Tensor]
    path: Path
    noise: Tensor
    y: Tensor | None = None
    batch: int | None = None

    @staticmethod
    def draw(
        denoise: Callable[..., Tensor],
        path: Path,
        shape: tuple[int, ...],
        seed: int,
        y: Tensor | None = None,
        batch: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "Starts":
        """Draw start noises: sample i from the seed `seed` + i, the same ones on every device.

        Args:
            shape: (count, ...). The other arguments are those of Starts.
        """
        noise = torch.empty(shape, dtype=dtype)
        SampleNoise(seed, shape[0]).fill(noise)
        return Starts(denoise, path, noise.to(device), y, batch)

    def first(self, count: int) -> "Starts":
        """The first `count` of them."""
        return replace(self, noise=self.noise[:count], y=None if self.y is None else self.y[:count])

    def run(self, plan: Plan) -> Float[Tensor, "count *rest"]:
        """The samples that a plan makes of all start noises; a plan may start below t_max."""
        if not isinstance(plan.start_time, float):
            raise ValueError("plan must not be stacked: one plan serves all samples")
        size = self.batch or len(self.noise)
        starts = self.at(plan.start_time).split(size)
        inputs = [None] * len(starts) if self.y is None else self.y.split(size)
        return torch.cat(
            [sample(self.denoise, self.path, plan, x=x, y=y) for x, y in zip(starts, inputs, strict=True)]
        )

    def at(self, t: float) -> Float[Tensor, "count *rest"]:
        """The start states of a plan that starts at time t."""
        if t == self.path.t_max:
            return self.path.start(self.noise, self.y)
        _, b, sigma = self.path.coefficients(t)
        return sigma * self.noise if self.y is None else sigma * self.noise + b * self.y


class ReferenceDistance:
    """Distance to the exact end of the trajectory: RMSE per sample, against many steps from the same noise.

    The reference is made once, by a third-order solver with a corrector.

    Args:
        starts: what plans are compared on.
        statistic: a name of STATISTICS. A search by the median forgets the bad half of the samples; one by
            the mean looks at the worst ones most, one by the geometric mean at all alike.
        steps: of the reference.

    Raises:
        ValueError: for an unknown statistic.
    """

    def __init__(self, starts: Starts, statistic: str = "mean", steps: int = 128) -> None:
        if statistic not in STATISTICS:
            raise ValueError(f"statistic must be one of {', '.join(STATISTICS)}, not {statistic!r}")
        self.starts, self.statistic = starts, statistic
        self.steps = steps
        self.target = starts.run(reference_plan(starts.path, steps))

    def cheap(self) -> "ReferenceDistance":
        """The same objective on the first quarter of the start noises."""
        part = copy.copy(self)
        count = _quarter(self.starts)
        part.starts, part.target = self.starts.first(count), self.target[:count]
        return part

    def errors(self, plan: Plan) -> Float[Tensor, "count"]:
        """RMSE of every sample."""
        return rmse(self.starts.run(plan), self.target)

    def __call__(self, plan: Plan) -> float:
        return float(STATISTICS[self.statistic](self.errors(plan)))

    def own_error(self) -> float:
        """How exact the reference is: its distance to one of half as many steps."""
        return self(reference_plan(self.starts.path, self.steps // 2))


class DataDistance:
    """Distance between the samples of a plan and given data, as distributions.

    Args:
        starts: what plans are compared on.
        data: real samples, shape (m, ...).
        distance: `energy_distance` or `sliced_wasserstein`.

    Raises:
        ValueError: if the data have another shape than the samples.
    """

    def __init__(
        self, starts: Starts, data: Tensor, distance: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> None:
        if data.shape[1:] != starts.noise.shape[1:]:
            wanted, got = tuple(starts.noise.shape[1:]), tuple(data.shape[1:])
            raise ValueError(f"data must have samples of shape {wanted}, not {got}")
        self.starts, self.distance = starts, distance or energy_distance
        self.data = data.to(starts.noise)

    def cheap(self) -> "DataDistance":
        """The same objective on the first quarter of the start noises."""
        return DataDistance(self.starts.first(_quarter(self.starts)), self.data, self.distance)

    def __call__(self, plan: Plan) -> float:
        return float(self.distance(self.starts.run(plan), self.data))


def _quarter(starts: Starts) -> int:
    return max(2, len(starts.noise) // 4)


def reference_plan(path: Path, steps: int) -> Plan:
    """Return a plan whose error is far below that of any few-step plan."""
    return UnifiedSolver(otherwise=StepChoice(order=3)).compile(path, fine_grid(path, steps))


def rmse(x: Float[Tensor, "n *rest"], target: Float[Tensor, "n *rest"]) -> Float[Tensor, "n"]:
    """Return the root mean square difference of every sample."""
    return (x - target).double().flatten(1).square().mean(1).sqrt()


def energy_distance(x: Float[Tensor, "n *rest"], y: Float[Tensor, "m *rest"]) -> Float[Tensor, ""]:
    """Return 2·E|X − Y| − E|X − X'| − E|Y − Y'|, unbiased: about 0 (even below it) for equal distributions.

    Reference: Székely and Rizzo 2013, equation 2.5.
    """
    x, y = x.double().flatten(1), y.double().flatten(1)

    def within(points: Tensor) -> Tensor:
        return torch.cdist(points, points).sum() / (len(points) * max(len(points) - 1, 1))

    return 2 * torch.cdist(x, y).mean() - within(x) - within(y)


def sliced_wasserstein(
    x: Float[Tensor, "n *rest"], y: Float[Tensor, "m *rest"], directions: int = 256
) -> Float[Tensor, ""]:
    """Return the root mean squared 2-Wasserstein distance of projections on fixed random directions.

    Reference: Bonneel et al. 2015, section 2.
    """
    x, y = x.double().flatten(1), y.double().flatten(1)
    generator = torch.Generator().manual_seed(0)
    ways = torch.randn(x.shape[1], directions, dtype=torch.float64, generator=generator).to(x.device)
    ways = ways / ways.norm(dim=0)
    levels = (torch.arange(min(len(x), len(y)), device=x.device, dtype=torch.float64) + 0.5) / min(
        len(x), len(y)
    )
    px, py = (torch.quantile(points @ ways, levels, dim=0) for points in (x, y))
    return (px - py).square().mean().sqrt()
