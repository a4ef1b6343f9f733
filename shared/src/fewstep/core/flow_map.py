"""FlowMap: a network as a map between two times of a path."""

from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.clock import clock_at, spread
from fewstep.core.conditions import condition_names
from fewstep.core.denoiser import Denoiser
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction
from fewstep.core.predictions.base import point_on


class FlowMap:
    """A network that estimates x0 for a jump from time t to time s, with its gradients.

    D(x, t, s) = x0 of the network's output,
    jump(x, t, s) = a_s·D + b_s·y + (sigma_s/sigma_t)·(x − a_t·D − b_t·y),

    the exact step of an ODE solution whose mean direction points at D. At s = t, D is the denoiser; a network
    without the argument `s` has D(x, t, s) = D(x, t), for which a jump is a DDIM step. On rectified flow the
    mean velocity is u = (x − D)/t and jump = x − (t − s)·u, which are those of MeanFlow; on EDM's path the
    jump is the Euler form of CTM.

    Args:
        net: called as net(x, t[, s], **conditions), with times as the path tells them.
        path: of the states.
        prediction: what the network predicts, by name or itself.
        conditions: of the network, and y of a path that has one.

    Reference: Kim et al. 2024, "Consistency Trajectory Models", eq. 9; Geng et al. 2025, "Mean Flows for
        One-step Generative Modeling", eq. 3.

    Example:
        >>> from fewstep.core import paths
        >>> falling = FlowMap(lambda x, t: torch.full_like(x, 0.4), paths.RectifiedFlow(), "velocity")
        >>> falling.jump(torch.ones(1, 2), torch.tensor([1.0]), torch.tensor([0.5]))
        tensor([[0.8000, 0.8000]])
    """

    def __init__(
        self,
        net: nn.Module | Callable[..., Any],
        path: Path,
        prediction: str | Prediction,
        conditions: Mapping[str, Any] | None = None,
    ) -> None:
        accepted = condition_names(net)
        # Our networks have the argument also where their configuration leaves it without use.
        used = getattr(getattr(net, "config", None), "two_times", True)
        self.takes_target = accepted is not None and "s" in accepted and used
        self.net, self.path = net, path
        self.denoiser = Denoiser(net, path, prediction)
        self.prediction = self.denoiser.prediction
        self.conditions = dict(conditions or {})
        if self.conditions:
            self.denoiser = self.denoiser.given(**self.conditions)

    def given(self, **conditions: Any) -> "FlowMap":
        """The map with other or further conditions."""
        return FlowMap(self.net, self.path, self.prediction, {**self.conditions, **conditions})

    def predict(
        self,
        x: Float[Tensor, "batch *shape"],
        t: Shaped[Tensor, "batch"],
        s: Shaped[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch *outputs"]:
        """The raw output for the jump to s (None: s = t)."""
        return self._asked(t, s).predict(x, t)

    def x0(
        self,
        x: Float[Tensor, "batch *shape"],
        t: Shaped[Tensor, "batch"],
        s: Shaped[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """D(x, t, s); without s the denoiser."""
        return self._asked(t, s)(x, t)

    def jump(
        self, x: Float[Tensor, "batch *shape"], t: Shaped[Tensor, "batch"], s: Shaped[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """The state at time s."""
        return self.moved(x, t, s, self.x0(x, t, s))

    def moved(self, x: Tensor, t: Tensor, s: Tensor, x0: Tensor) -> Tensor:
        """The state at time s, if the way there points at x0."""
        a_t, b_t, sigma_t = self.path.evaluate(t)
        a_s, b_s, sigma_s = self.path.evaluate(s)
        ratio = sigma_s / sigma_t
        out = spread(ratio, x) * x + spread(a_s - ratio * a_t, x) * x0
        return out if self.y is None else out + spread(b_s - ratio * b_t, x) * self.y

    def mean_velocity(
        self,
        x: Float[Tensor, "batch *shape"],
        t: Shaped[Tensor, "batch"],
        s: Shaped[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """u = (z/(a + sigma) − D)/tau on the normalised clock, a velocity's raw output on rectified flow."""
        return self.velocity_of(self.predict(x, t, s), x, t)

    def velocity_of(self, out: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """`mean_velocity` from a raw output that is known already.

        The weights of x and of the output are made in float64, so nothing cancels where tau is small.

        Raises:
            ValueError: the prediction has several heads.
        """
        weights = self.prediction.x0_at(point_on(self.path, t))
        if self.prediction.heads != 1:
            raise ValueError(f"mean_velocity needs a prediction with one head, not {self.prediction.name!r}")
        a, b, sigma = self.path.evaluate(t)
        tau = clock_at(self.path, t)
        velocity = _weighted((1 / (a + sigma) - weights.x) / tau, x)
        velocity = velocity - _weighted(weights.out[0] / tau, out)
        if self.y is None:
            return velocity
        return velocity - _weighted((b / (a + sigma) + weights.y) / tau, self.y)

    def heun(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """The state at s after one Heun step of the denoiser in kappa = sigma/a; Euler where sigma_s = 0.

        With z = x − b·y and dz̃/dkappa = (z̃ − D)/kappa for z̃ = z/a.

        Reference: Karras et al. 2022, algorithm 1.
        """
        first = self.x0(x, t)
        euler = self.moved(x, t, s, first)
        inside = self.path.evaluate(s)[2] > 0
        if not bool(inside.any()):
            return euler
        safe = torch.where(inside, s, t)
        second = self.x0(torch.where(spread(inside, x) > 0, euler, x), safe)
        (a_t, _, sigma_t), (a_s, _, sigma_s) = self.path.evaluate(t), self.path.evaluate(safe)
        kappa_t, kappa_s = sigma_t / a_t, sigma_s / a_s
        # Heun's mean slope (d1 + d2)/2 as an Euler step towards another x0.
        z_t, z_s = self._scaled(x, t), self._scaled(torch.where(spread(inside, x) > 0, euler, x), safe)
        slope = (z_t - first) / spread(kappa_t, x) + (z_s - second) / spread(kappa_s, x)
        target = z_t - spread(kappa_t / 2, x) * slope
        return self.moved(x, t, s, torch.where(spread(inside, x) > 0, target, first))

    @cached_property
    def y(self) -> Tensor | None:
        """The degraded input, on a path that has one."""
        return self.conditions.get("y") if self.path.uses_y else None

    def _scaled(self, x: Tensor, t: Tensor) -> Tensor:
        a, b, _ = self.path.evaluate(t)
        z = x if self.y is None else x - spread(b, x) * self.y
        return z / spread(a, x)

    def _asked(self, t: Tensor, s: Tensor | None) -> Denoiser:
        if s is None or not self.takes_target:
            return self.denoiser
        told = s.double().clamp_min(self.path.t_min)
        return self.denoiser.given(s=self.path.network_time_at(torch.minimum(told, t.double())))


def _weighted(weight: Any, x: Tensor) -> Tensor:
    return spread(weight, x) * x if isinstance(weight, Tensor) else weight * x
