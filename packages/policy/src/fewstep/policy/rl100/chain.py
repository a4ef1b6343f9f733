"""A stochastic chain of denoising steps as a chain of decisions, each with a known density."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.paths.vp import TableVP

Network = Callable[[Tensor, int], Tensor]
"""(x, number of the step) → the network's output."""


class Moments(NamedTuple):
    """Where a step goes on average, and how far it strays.

    Attributes:
        mean: (batch, …).
        std: the same for all numbers.
    """

    mean: Tensor
    std: float


class Chain(ABC):
    """K steps from noise to an action, x_{k+1} ~ N(μ_k(x_k, network), σ_k²).

    The smallest σ keeps the last step random too, so that every step has a density.

    Attributes:
        times: of the path where each step starts.
        targets: times where each step ends.
    """

    times: tuple[float, ...]
    targets: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.times)

    @abstractmethod
    def moments(
        self, step: int, x: Float[Tensor, "batch *shape"], out: Float[Tensor, "batch *shape"]
    ) -> Moments:
        """Mean and deviation of a step.

        Args:
            step: its number, from 0.
            x: the state.
            out: what the network says of it.
        """


class DDIMChain(Chain):
    """Stochastic DDIM on a table of levels, as RL-100 optimises it.

    x̂0 = clip((x − √(1−ᾱ_t)·ε)/√ᾱ_t),  s² = η²·(1−ᾱ_m)/(1−ᾱ_t)·(1 − ᾱ_t/ᾱ_m),  m = max(t − T//K, 0)
    μ = √ᾱ_m·x̂0 + √(1 − ᾱ_m − s²)·ε,  σ = s within [std_min, std_max]

    t = i·(T//K) + offset for i = K−1 … 0. The mean keeps s and the unclipped ε, as published.

    Args:
        path: a table of betas.
        steps: K.
        offset: of the levels; 1 as published, T//K − 1 starts at the noisiest level.
        std_min, std_max: limits of σ.
        eta: η; 1 is the ancestral deviation.
        clip: of x̂0 (0: none).

    Raises:
        ValueError: more steps than levels, or levels outside of the table.

    Reference: Lei et al. 2025, "RL-100: Performant Robotic Manipulation with Real-World Reinforcement
        Learning", released code (its DDIM scheduler); Song, Meng & Ermon 2021, "Denoising Diffusion Implicit
        Models", eqs. 12 and 16.
    """

    def __init__(
        self,
        path: TableVP,
        steps: int = 10,
        offset: int = 1,
        std_min: float = 0.0067,
        std_max: float = math.inf,
        eta: float = 1.0,
        clip: float = 1.0,
    ) -> None:
        levels = round(path.t_max) + 1
        if not 1 <= steps <= levels:
            raise ValueError(f"steps must lie in 1..{levels}, got {steps}")
        stride = levels // steps
        first = (steps - 1) * stride + offset
        if offset < 0 or first >= levels:
            raise ValueError(f"offset must keep the levels within 0..{levels - 1}, got {offset}")
        _check_limits(std_min, std_max)
        starts = [i * stride + offset for i in reversed(range(steps))]
        self.times = tuple(float(t) for t in starts)
        self.targets = tuple(float(max(t - stride, 0)) for t in starts)
        self.clip = clip
        self._scalars = []
        for t, m in zip(self.times, self.targets, strict=True):
            (a_t, _, sigma_t), (a_m, _, sigma_m) = path.coefficients(t), path.coefficients(m)
            ratio = (a_t / a_m) ** 2
            spread = eta * sigma_m / sigma_t * math.sqrt(max(1 - ratio, 0.0))
            rest = math.sqrt(max(sigma_m**2 - spread**2, 0.0))
            self._scalars.append((a_t, sigma_t, a_m, rest, min(max(spread, std_min), std_max)))

    def moments(
        self, step: int, x: Float[Tensor, "batch *shape"], out: Float[Tensor, "batch *shape"]
    ) -> Moments:
        """See the class; `out` is the predicted noise."""
        a_t, sigma_t, a_m, rest, std = self._scalars[step]
        x0 = (x - sigma_t * out) / a_t
        x0 = x0.clamp(-self.clip, self.clip) if self.clip else x0
        return Moments(a_m * x0 + rest * out, std)


class FlowChain(Chain):
    """Rectified flow with noise at every step, on the times 1 … 1/levels, 0.

    With a velocity v, dt = t' − t < 0 and λ the noise level,
        "sde"  s = min(t, safe), g = λ√(s/(1−s)),
               μ = x(1 + g²/(2s)·dt) + v(1 + g²(1−s)/(2s))·dt,  σ = g√(−dt)
        "cps"  σ = t'·sin(λπ/2),
               μ = (x − t·v)(1 − t') + (x + (1−t)v)·√(t'² − σ²)
    "cps" keeps the noise that the state should have at t'. A network that knows where it jumps (MeanFlow) is
    exact in it, also in a single step; σ = std_min is then all its chance.

    Args:
        steps: K.
        kind: "sde" or "cps".
        noise_level: λ.
        std_min, std_max: limits of σ.
        levels: that the smallest time stands for.
        safe: largest s of "sde".

    Raises:
        ValueError: an unknown kind or values out of range.

    Reference: Lei et al. 2025, "RL-100", released code (its flow scheduler); Liu et al. 2025, "Flow-GRPO",
        eq. 9 (sde); Wang & Yu 2025, "Coefficients-Preserving Sampling for Reinforcement Learning with Flow
        Matching" (cps).
    """

    def __init__(
        self,
        steps: int = 5,
        kind: str = "cps",
        noise_level: float = 0.7,
        std_min: float = 0.0067,
        std_max: float = math.inf,
        levels: int = 100,
        safe: float = 0.9,
    ) -> None:
        if kind not in ("sde", "cps"):
            raise ValueError(f"kind must be 'sde' or 'cps', got {kind!r}")
        if not 1 <= steps < levels:
            raise ValueError(f"steps must lie in 1..{levels - 1}, got {steps}")
        if not 0 < safe < 1 or not 0 <= noise_level <= 1:
            raise ValueError(f"safe must lie in (0, 1) and noise_level in [0, 1], got {safe}, {noise_level}")
        _check_limits(std_min, std_max)
        last = 1 / levels
        grid = [1 + (last - 1) * i / max(steps - 1, 1) for i in range(steps)]
        # At 1 itself the published schedule would divide by zero.
        self.times = tuple(min(t, 1 - 1e-4) for t in grid)
        self.targets = (*self.times[1:], 0.0)
        self.kind, self.noise_level, self.safe = kind, noise_level, safe
        self.limits = (std_min, std_max)

    def moments(
        self, step: int, x: Float[Tensor, "batch *shape"], out: Float[Tensor, "batch *shape"]
    ) -> Moments:
        """See the class; `out` is the predicted velocity."""
        t, after = self.times[step], self.targets[step]
        if self.kind == "sde":
            s, dt = min(t, self.safe), after - t
            g = self.noise_level * math.sqrt(s / (1 - s))
            half = g * g / (2 * s)
            mean = x * (1 + half * dt) + out * ((1 + half * (1 - s)) * dt)
            std = g * math.sqrt(-dt)
        else:
            std = after * math.sin(self.noise_level * math.pi / 2)
            kept = math.sqrt(after * after - std * std)
            mean = (x - t * out) * (1 - after) + (x + (1 - t) * out) * kept
        return Moments(mean, min(max(std, self.limits[0]), self.limits[1]))


@dataclass(frozen=True)
class Trajectory:
    """A chain that was walked.

    Args:
        states: from the noise to the action.
        log_probs: of every step, number by number.
    """

    states: Float[Tensor, "states batch *shape"]
    log_probs: Float[Tensor, "steps batch *shape"]

    @property
    def action(self) -> Tensor:
        """Where it ended."""
        return self.states[-1]


def walk(
    chain: Chain,
    network: Network,
    start: Float[Tensor, "batch *shape"],
    noise: Float[Tensor, "steps batch *shape"],
) -> Trajectory:
    """Take all steps of a chain, x' = μ + σ·z.

    Args:
        chain: the steps.
        network: that denoises.
        start: standard normal.
        noise: z of every step, as many as the chain has.

    Raises:
        ValueError: another number of draws.
    """
    if len(noise) != len(chain):
        raise ValueError(f"noise must hold {len(chain)} draws, one for each step, got {len(noise)}")
    states, log_probs = [start], []
    for step, z in enumerate(noise):
        mean, std = chain.moments(step, states[-1], network(states[-1], step))
        states.append(mean + std * z)
        log_probs.append(log_density(states[-1], Moments(mean, std)))
    return Trajectory(torch.stack(states), torch.stack(log_probs))


def log_density(x: Float[Tensor, "*shape"], moments: Moments) -> Float[Tensor, "*shape"]:
    """ln N(x; μ, σ²), number by number.

    Args:
        x: the next state.
        moments: of the step.
    """
    away = (x - moments.mean) / moments.std
    return -0.5 * away.square() - math.log(moments.std) - 0.5 * math.log(2 * math.pi)


def entropy(std: float) -> float:
    """½ + ½ ln 2π + ln σ: of one number of a step.

    Args:
        std: σ.

    Example:
        >>> round(entropy(1.0), 4)
        1.4189
    """
    return 0.5 + 0.5 * math.log(2 * math.pi) + math.log(std)


def _check_limits(low: float, high: float) -> None:
    if not 0 < low <= high:
        raise ValueError(f"std_min must be positive and at most std_max, got {low} and {high}")
