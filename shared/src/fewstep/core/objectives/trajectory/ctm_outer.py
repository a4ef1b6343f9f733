"""The outer forms of CTM: how a jump is made of the state and the network's estimate."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.clock import spread
from fewstep.core.flow_map import FlowMap
from fewstep.core.paths import Path
from fewstep.core.predictions import Prediction

OUTERS = ("euler", "variance", "mixed")


class OuterFlowMap(FlowMap):
    """A flow map whose jump is z_s/a_s = c·z_t/a_t + (1 − kappa_s/kappa_t)·g, g the network's estimate of x0.

    With kappa = sigma/a, m = kappa(t_min) and the path's `sigma_data` (sd),

        euler:     c = kappa_s/kappa_t, the form of `FlowMap`,
        variance:  c = v = sqrt(((kappa_s − m)² + sd²)/((kappa_t − m)² + sd²)),
        mixed:     c = (kappa_s + v)/(kappa_t + 1).

    As every jump is one towards some x0, this is a FlowMap with another D(x, t, s) = g + k(t, s)·z_t/a_t,
    k = (c − kappa_s/kappa_t)/(1 − kappa_s/kappa_t); the limit s → t makes it a denoiser. Samplers and losses
    need not know.

    Args:
        net: as for FlowMap.
        path: of the states; with a(t_max) > 0 for forms other than "euler".
        prediction: what the network's output says about g ("edm", "edm-boundary" or "x0" in the paper).
        conditions: as for FlowMap.
        outer: one of the three.

    Raises:
        ValueError: outer is unknown.

    Reference: Kim et al. 2024, "Consistency Trajectory Models", appendix C.3; the forms are those of the
        authors' code.
    """

    def __init__(
        self,
        net: nn.Module | Callable[..., Any],
        path: Path,
        prediction: str | Prediction,
        conditions: Mapping[str, Any] | None = None,
        outer: str = "euler",
    ) -> None:
        if outer not in OUTERS:
            raise ValueError(f"outer must be one of {', '.join(OUTERS)}, got {outer!r}")
        super().__init__(net, path, prediction, conditions)
        self.outer = outer

    @classmethod
    def of(cls, flow: FlowMap, outer: str) -> FlowMap:
        """A flow map in another form."""
        if outer == "euler":
            return flow
        return cls(flow.net, flow.path, flow.prediction, flow.conditions, outer)

    def given(self, **conditions: Any) -> "OuterFlowMap":
        """The map with other or further conditions."""
        return OuterFlowMap(
            self.net, self.path, self.prediction, {**self.conditions, **conditions}, self.outer
        )

    def inner(self, x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """g(x, t, s)."""
        return super().x0(x, t, s)

    def x0(self, x: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        """D(x, t, s); without s the denoiser."""
        g = self.inner(x, t, s)
        if self.outer == "euler":
            return g
        return g + spread(self._slant(t, t if s is None else s), x) * self._scaled(x, t)

    def _slant(self, t: Tensor, s: Tensor) -> Tensor:
        """k(t, s), and its limit where s = t."""
        (a_t, _, sigma_t), (a_s, _, sigma_s) = self.path.evaluate(t), self.path.evaluate(s)
        a, _, sigma = self.path.coefficients(self.path.t_min)
        kappa_t, kappa_s, least = sigma_t / a_t, sigma_s / a_s, sigma / a
        square = (kappa_t - least).square() + self.path.sigma_data**2
        c = (((kappa_s - least).square() + self.path.sigma_data**2) / square).sqrt()
        slope = (kappa_t - least) / square
        if self.outer == "mixed":
            c, slope = (kappa_s + c) / (kappa_t + 1), (1 + slope) / (kappa_t + 1)
        ratio = kappa_s / kappa_t
        near = ratio > 1 - 1e-9
        return torch.where(near, 1 - kappa_t * slope, (c - ratio) / torch.where(near, 1.0, 1 - ratio))
