"""Sampling: how a model is meant to be sampled, saved with it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.flow_map import FlowMap
from fewstep.core.noise import SampleNoise
from fewstep.core.paths import Path
from fewstep.core.sample import sample
from fewstep.core.solvers.consistency import GammaSampling

KINDS = ("ode", "consistency", "flow-map")


@dataclass(frozen=True)
class Sampling:
    """From noise at the start time to samples.

    kind "ode": a solver on the model's denoiser, for teachers and for students with straight paths;
    "consistency": x0 = D(x, t), fresh noise for the next time, and again;
    "flow-map": deterministic jumps from each time to the next, D(x, t, s) told where it goes.

    Args:
        kind: one of the three.
        steps: network calls (steps of the solver for "ode").
        start: time of the first call; None: the path's t_max.
        times: of the calls after the first, decreasing, for that many steps; None: spread by `spacing`.
        spacing: "clock" (uniform on the normalised clock), "log" (uniform in log sigma/a), or "karras" (of
            sigma/a); from a start without signal, where sigma/a is infinite, always "clock".
        solver: of kind "ode".
        gamma: share of fresh noise between jumps, for "flow-map".
        kappa: sigma/a of the first call, in place of `start`: the same level on every path.

    Raises:
        ValueError: if an entry is unknown or out of range.
    """

    kind: str = "ode"
    steps: int = 18
    start: float | None = None
    times: tuple[float, ...] | None = None
    spacing: str = "karras"
    solver: str = "heun"
    gamma: float = 0.0
    kappa: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        if self.spacing not in _SPACINGS:
            raise ValueError(f"spacing must be one of {', '.join(_SPACINGS)}, got {self.spacing!r}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if self.kappa is not None and (self.start is not None or not self.kappa > 0):
            raise ValueError(
                f"kappa must be positive, without start, got kappa={self.kappa}, start={self.start}"
            )

    def first(self, path: Path) -> float:
        """The time of the first call."""
        if self.kappa is not None:
            t = max(path.time_at(-math.log(self.kappa)), path.t_min)
            return round(t) if path.is_discrete else t
        return path.t_max if self.start is None else self.start

    def grid(self, path: Path, steps: int | None = None) -> list[float]:
        """The times that are visited, from the start to the clean end (or to t_min for "consistency").

        Raises:
            ValueError: `steps` is below 1.
        """
        steps = self.steps if steps is None else steps
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        start = self.first(path)
        last = path.t_min if self.kind == "consistency" else path.t_clean
        if self.times is not None and steps == len(self.times) + 1:
            return [start, *self.times, last]
        inner = _SPACINGS[self.spacing](path, start, steps)
        return [*inner, last]

    def run(
        self,
        flow: FlowMap,
        shape: Sequence[int],
        count: int = 1,
        steps: int | None = None,
        seed: int = 0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Draw samples with a network; see `DiffusionModel.generate`."""
        path, times = flow.path, self.grid(flow.path, steps)
        device = _device_of(flow)
        count = count if noise is None else len(noise)
        draws = SampleNoise(seed, count, device)

        def draw(like: Tensor) -> Tensor:
            fresh = torch.empty_like(like)
            draws.fill(fresh)
            return fresh

        first = draw(torch.empty(count, *shape, device=device))
        _, b, sigma = path.coefficients(times[0])
        x = sigma * (first if noise is None else noise.to(device))
        if flow.y is not None:
            x = x + b * flow.y
        options: dict[str, Any] = {"grid": times, "x": x, "y": flow.y, "noise": draw}
        if self.kind == "flow-map":
            solver = GammaSampling(self.gamma)
            return sample(solver.asking(_asked(flow), path, times), path, solver, **options)
        solver = self.solver if self.kind == "ode" else "consistency"
        return sample(flow.denoiser, path, solver, **options)


def _asked(flow: FlowMap) -> Callable[[Tensor, float, float], Tensor]:
    def jump(x: Tensor, t: float, s: float) -> Tensor:
        times = torch.full((len(x),), t, dtype=torch.float64, device=x.device)
        return flow.x0(x, times, torch.full_like(times, s))

    return jump


def _device_of(flow: FlowMap) -> torch.device:
    parameters = flow.net.parameters() if isinstance(flow.net, nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def _by_clock(path: Path, start: float, steps: int) -> list[float]:
    a, _, sigma = path.coefficients(start)
    tau = sigma / (a + sigma)
    inner = [path.time_at(math.log((1 - tau * i / steps) / (tau * i / steps))) for i in range(1, steps)]
    return [start, *reversed(inner)]


def _by_log(path: Path, start: float, steps: int) -> list[float]:
    if path.half_log_snr(start) == -math.inf:
        return _by_clock(path, start, steps)
    lam, end = path.half_log_snr(start), path.half_log_snr(path.t_min)
    return [start, *(path.time_at(lam + (end - lam) * i / steps) for i in range(1, steps))]


def _by_karras(path: Path, start: float, steps: int) -> list[float]:
    if path.half_log_snr(start) == -math.inf:
        return _by_clock(path, start, steps)
    top, low = (math.exp(-path.half_log_snr(t) / 7) for t in (start, path.t_min))
    return [
        start,
        *(path.time_at(-7 * math.log(top + (low - top) * i / max(steps - 1, 1))) for i in range(1, steps)),
    ]


_SPACINGS = {"clock": _by_clock, "log": _by_log, "karras": _by_karras}
