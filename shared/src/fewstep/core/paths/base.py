"""The path: how data becomes noise, x_t = a(t)·x0 + b(t)·y + sigma(t)·eps.

Everything about a path is computed in float64. A concrete path writes ``evaluate``; what solvers, grids and
denoisers ask for follows from it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any, overload

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from fewstep.core.paths.network_time import NETWORK_TIMES
from fewstep.core.paths.roots import invert_increasing

Scalars = Float64[Tensor, "*shape"]
Triple = tuple[float, float, float]

_MEMO_LIMIT = 20_000
"""Scalars remembered per path and kind; beyond it (a data-dependent solver, say) the memory starts afresh."""


class Path(ABC):
    """An affine Gaussian path from data to noise.

    x_t = a(t)·x0 + b(t)·y + sigma(t)·eps, with y the degraded input or prior mean (b = 0 without one).

    Concrete paths are frozen dataclasses: hashable, equal by value, saved to and read from JSON.

    Attributes:
        t_max: start of sampling (most noise).
        t_min: smallest time at which a network should be asked.
        t_clean: time of the clean end: sigma = 0, or the smallest there is. Tables of N network times have
            the times 0 … N-1 and t_clean = -1.
        uses_y: b is not identically 0.
        is_discrete: the network knows only the integer times of a table.
        sigma_data: standard deviation of the data, for preconditioned predictions.
        time: what the network is told about t; a key of ``network_time.NETWORK_TIMES``.
    """

    t_max: float
    t_min: float
    t_clean: float
    uses_y: bool = False
    is_discrete: bool = False
    sigma_data: float = 0.5
    time: str = "t"

    @abstractmethod
    def evaluate(self, t: Shaped[Tensor, "*shape"]) -> tuple[Scalars, Scalars, Scalars]:
        """Return (a, b, sigma) in float64 at every time of ``t``, on its device."""

    def half_log_snr_at(self, t: Shaped[Tensor, "*shape"]) -> Scalars:
        """Return log(a/sigma) at every time of ``t``: +inf where sigma = 0, -inf where a <= 0."""
        a, _, sigma = self.evaluate(t)
        return a.clamp_min(0).log() - sigma.log()

    def transition(self, s: float, t: float) -> float:
        """Return r, the coefficient of x_s in the forward chain from s to the noisier t; here a_t / a_s."""
        return self.coefficients(t)[0] / self.coefficients(s)[0]

    def start_weights(self) -> tuple[float, float]:
        """Return (weight of y, weight of the noise) in the published start state at t_max."""
        _, b, sigma = self.coefficients(self.t_max)
        return b, sigma

    def input_scale_at(self, t: Shaped[Tensor, "*shape"]) -> Scalars:
        """Return the factor on the network's x at every time of ``t``; here 1."""
        return torch.ones_like(t, dtype=torch.float64)

    def network_time_at(self, t: Shaped[Tensor, "*shape"]) -> Scalars:
        """Return what the network is told at every time of ``t``."""
        return NETWORK_TIMES[self.time](self._network_clock(t.double()), self.evaluate(t)[2])

    def v_weights(self, a: Any, sigma: Any) -> tuple[Any, Any, Any]:
        """Return (u, w, s) of v = u·x0 + w·eps + s·y, the direction of the circle (a, sigma)/|(a, sigma)|.

        For a² + sigma² = 1 this is v = a·eps - sigma·x0.

        Reference: Salimans and Ho 2022, appendix D.
        """
        norm = (a * a + sigma * sigma) ** 0.5
        return -sigma / norm, a / norm, 0.0

    def velocity_at(self, t: Shaped[Tensor, "*shape"]) -> tuple[Scalars, Scalars, Scalars]:
        """Return the rates of (a, b, sigma) that a velocity network reports; here the derivatives by t."""
        return self.derivatives_at(t)

    def elapsed(self, t: float | Tensor) -> float | Tensor:
        """Return how far t lies from the clean end, on the clock of ``velocity_at``; here t - t_clean."""
        return t - self.t_clean

    @property
    def t_limit(self) -> float:
        """The largest time at which the path is defined; here t_max."""
        return self.t_max

    def _network_clock(self, t: Tensor) -> Tensor:
        """Return the time that ``NETWORK_TIMES`` starts from; here t itself."""
        return t

    def _time_at_ratio(self, ratio: Scalars) -> Scalars:
        """Return the time at which sigma/a equals ``ratio`` > 0; here by a bracketed root search."""
        return invert_increasing(self._angle, self._angle_knots, torch.atan(ratio))

    def derivatives_at(self, t: Shaped[Tensor, "*shape"]) -> tuple[Scalars, Scalars, Scalars]:
        """Return (da/dt, db/dt, dsigma/dt) in float64 at every time of ``t``."""
        with torch.inference_mode(False), torch.enable_grad():
            times = t.detach().clone().double().requires_grad_()
            rates = []
            for value in self.evaluate(times):
                (rate,) = (
                    torch.autograd.grad(value.sum(), times, retain_graph=True, allow_unused=True)
                    if value.requires_grad
                    else (None,)
                )
                rates.append(torch.zeros_like(times) if rate is None else rate)
        da, db, dsigma = (rate.detach() for rate in rates)
        return da, db, dsigma

    def coefficients(self, t: float) -> Triple:
        """Return the floats (a, b, sigma) at t.

        Raises:
            ValueError: t lies outside the path.
        """
        return self.coefficients_at((t,))[0]

    def coefficients_at(self, times: Sequence[float]) -> list[Triple]:
        """Return the floats (a, b, sigma) at each time: one evaluation for all, then remembered."""
        return self._scalars("coefficients", self.evaluate, times)

    def derivatives(self, t: float) -> Triple:
        """Return the floats (da/dt, db/dt, dsigma/dt) at t."""
        return self._scalars("derivatives", self.derivatives_at, (t,))[0]

    def velocity(self, t: float) -> Triple:
        """Return the floats of ``velocity_at`` at t."""
        return self._scalars("velocity", self.velocity_at, (t,))[0]

    def half_log_snr(self, t: float) -> float:
        """Return log(a/sigma) at t: +inf where sigma = 0, -inf where a <= 0."""
        return self._scalars("half_log_snr", self.half_log_snr_at, (t,))[0]

    def network_time(self, t: float) -> float:
        """Return what the network is told at t."""
        return self._scalars("network_time", self.network_time_at, (t,))[0]

    def input_scale(self, t: float) -> float:
        """Return the factor on the network's x at t."""
        return self._scalars("input_scale", self.input_scale_at, (t,))[0]

    @overload
    def time_at(self, half_log_snr: float) -> float: ...
    @overload
    def time_at(self, half_log_snr: Tensor) -> Tensor: ...
    def time_at(self, half_log_snr: float | Tensor) -> float | Tensor:
        """Return the time with the given log(a/sigma), clamped to [t_clean, t_max]."""
        if not isinstance(half_log_snr, Tensor):
            return self.time_at(torch.tensor([half_log_snr], dtype=torch.float64)).item()
        lam = half_log_snr.double()
        t = self._time_at_ratio(torch.exp(-lam)).clamp(self.t_clean, self.t_max)
        t = torch.where(lam == torch.inf, self.t_clean, t)
        return torch.where(lam == -torch.inf, self.t_max, t)

    def corrupt(
        self,
        x0: Float[Tensor, "batch *rest"],
        t: Shaped[Tensor, "batch"],
        noise: Float[Tensor, "batch *rest"],
        y: Float[Tensor, "batch *rest"] | None = None,
    ) -> Float[Tensor, "batch *rest"]:
        """Return x_t = a·x0 + b·y + sigma·noise, one time per sample, in x0's dtype."""
        shape = (-1,) + (1,) * (x0.ndim - 1)
        a, b, sigma = (c.to(x0.dtype).reshape(shape) for c in self.evaluate(t))
        x = a * x0 + sigma * noise
        return x + b * self._require(y, "corrupt") if self.uses_y else x

    def start(
        self, noise: Float[Tensor, "batch *rest"], y: Float[Tensor, "batch *rest"] | None = None
    ) -> Float[Tensor, "batch *rest"]:
        """Return the published start state at t_max, drawn from ``noise`` (and ``y``)."""
        weight_y, weight_noise = self.start_weights()
        x = weight_noise * noise
        return x + weight_y * self._require(y, "start") if self.uses_y else x

    def to_config(self) -> dict[str, Any]:
        """Return the path as a dictionary that JSON can hold; ``paths.from_config`` reads it."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        return {"path": type(self).__name__} | {
            name: list(value) if isinstance(value, tuple) else value for name, value in values.items()
        }

    def _angle(self, t: Tensor) -> Tensor:
        """Return atan(sigma/a) in [0, pi/2]: finite and increasing along the path, unlike log(a/sigma)."""
        a, _, sigma = self.evaluate(t)
        return torch.atan2(sigma, a.clamp_min(0))

    @cached_property
    def _angle_knots(self) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False):
            t = torch.linspace(self.t_clean, self.t_max, 8193, dtype=torch.float64)
            return t, self._angle(t)

    def _require(self, y: Tensor | None, caller: str) -> Tensor:
        if y is None:
            raise ValueError(
                f"y is needed: {type(self).__name__}.{caller} mixes the degraded input in, got None"
            )
        return y

    @cached_property
    def _memo(self) -> dict[str, dict[float, Any]]:
        return {}

    def _scalars(self, kind: str, function: Callable[[Tensor], Any], times: Sequence[float]) -> list[Any]:
        """Return ``function`` at each time as floats; new times are evaluated together and remembered."""
        memo = self._memo.setdefault(kind, {})
        if len(memo) > _MEMO_LIMIT:
            memo.clear()
        missing = [t for t in times if t not in memo]
        if missing:
            low, high = min(self.t_clean, self.t_min), self.t_limit
            for t in missing:
                if not low <= t <= high:
                    raise ValueError(f"t must lie in [{low:g}, {high:g}] on {type(self).__name__}, got {t!r}")
            values = function(torch.tensor(missing, dtype=torch.float64))
            rows = (
                zip(*((v + 0.0).tolist() for v in values), strict=True)
                if isinstance(values, tuple)
                else values.tolist()
            )
            memo.update(zip(missing, rows, strict=True))
        return [memo[t] for t in times]
