"""Denoiser: the one thing a sampler may ask, (x, t) -> x0."""

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core import predictions
from fewstep.core.conditions import ConditionMap, Conditions, condition_names, expanded, is_batched, keepable
from fewstep.core.paths.base import Path
from fewstep.core.predictions import Prediction
from fewstep.core.wrapping import BaseDenoiser, Time

# Time tensors kept at most: a sampler uses a few dozen, a data-dependent one could make new ones for ever.
_KEPT_TIMES = 1024


class Denoiser(BaseDenoiser):
    """A network with a path and a meaning of its output.

    predict = net(input_scale(t)·x, network_time(t), **conditions);  x0 = p·x + q·predict + r·y.

    The network may compute in bfloat16 while x stays float32: x and floating conditions are cast to `dtype`,
    the output is cast back. The time keeps float32 (float64 for a float64 x): bfloat16 cannot count to 999.

    `y` is the degraded input of the path; a network gets it only if it has an argument of that name. Bound
    tensors are cast and moved once, so they must not be changed afterwards.

    Args:
        net: called as net(x, t, **conditions) with t of shape (batch,).
        path: how x was made.
        prediction: what the network predicts, a name of `predictions.names()` or a Prediction.
        dtype: what the network computes in; default: the dtype of a module's parameters, or x's own.
        autocast: run the network under torch.autocast with this dtype; the parameters keep theirs.

    Raises:
        TypeError: when net cannot be called or path is not a Path.
        ValueError: for an unknown prediction.

    >>> from fewstep.core import paths
    >>> denoise = Denoiser(lambda x, t, gain: gain * x, paths.VP.linear(), "eps").given(gain=0.5)
    >>> denoise(torch.ones(1, 3, 4), 0.5).shape
    torch.Size([1, 3, 4])
    """

    path: Path

    def __init__(
        self,
        net: Callable[..., Any],
        path: Path,
        prediction: str | Prediction = "x0",
        *,
        dtype: torch.dtype | None = None,
        autocast: torch.dtype | None = None,
    ) -> None:
        if not callable(net):
            raise TypeError(f"net must be callable as net(x, t, **conditions), not {type(net).__name__}")
        if not isinstance(path, Path):
            raise TypeError(f"path must be a Path such as paths.VP.linear(), not {type(path).__name__}")
        self.net = net
        self.path = path
        self.prediction = predictions.get(prediction) if isinstance(prediction, str) else prediction
        self.dtype = dtype if dtype is not None else _parameter_dtype(net)
        self.autocast = autocast
        self._conditions = Conditions()
        self._accepted = condition_names(net)
        self._times: dict[tuple[Any, ...], tuple[Tensor, float]] = {}
        self._ready: tuple[Any, dict[str, Any]] | None = None

    @property
    def conditions(self) -> Conditions:
        """What is bound."""
        return self._conditions

    def given(self, *, spatial: Iterable[str] = (), **conditions: Any) -> "Denoiser":
        """A denoiser with these conditions bound as well; this one stays as it is.

        Args:
            spatial: names of those that lie on x's grid (at any scale); y of a path with y always does.
            conditions: keyword arguments of the network, or y.

        Raises:
            ValueError: for a condition that the network does not take.
        """
        needs_y = self.path.uses_y or self.prediction.requires_y(self.path)
        for name in conditions:
            if not self._takes(name) and not (name == "y" and needs_y):
                raise ValueError(
                    f"the network takes no condition {name!r}; it takes {sorted(self._accepted or ())}"
                )
        if self.path.uses_y and isinstance(conditions.get("y"), Tensor) and conditions["y"].ndim > 2:
            spatial = (*spatial, "y")
        return self._with(self._conditions.given(spatial, conditions))

    def mapped(self, function: ConditionMap) -> "Denoiser":
        """A denoiser with a function applied to every bound tensor."""
        return self._with(self._conditions.mapped(function))

    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch out *space"]:
        """Raw network output, in x's dtype."""
        time, scale = self._told(x, t)
        told = x if isinstance(scale, float) and scale == 1.0 else x * scale
        if self.dtype is not None and told.dtype is not self.dtype:
            told = told.to(self.dtype)
        conditions = self._ready_conditions(told) if self._conditions.values else {}
        if self.autocast is None:
            out = self.net(told, time, **conditions)
        else:
            with torch.autocast(x.device.type, dtype=self.autocast):
                out = self.net(told, time, **conditions)
        self._check(out, x)
        return out if out.dtype is x.dtype else out.to(x.dtype)

    def _told(self, x: Tensor, t: Time) -> tuple[Tensor, float | Tensor]:
        """The time tensor for the network and the factor on x."""
        if isinstance(t, Tensor):
            if t.ndim:
                return self._told_each(x, t)
            t = t.item()
        key = (t, x.shape[0], x.device, x.dtype)
        known = self._times.get(key)
        if known is None:
            if not isinstance(x, Tensor) or not x.is_floating_point():
                raise TypeError(
                    f"x must be a floating-point tensor, not {getattr(x, 'dtype', type(x).__name__)}"
                )
            if len(self._times) >= _KEPT_TIMES:
                self._times.clear()
            with keepable():
                time = torch.full(
                    x.shape[:1], self.path.network_time(float(t)), dtype=_time_dtype(x), device=x.device
                )
            known = self._times[key] = (time, self.path.input_scale(float(t)))
        return known

    def _told_each(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must be one number or have shape ({x.shape[0]},), not {tuple(t.shape)}")
        time = self.path.network_time_at(t.double()).to(x.device, _time_dtype(x))
        scale = self.path.input_scale_at(t.double()).to(x.device, x.dtype)
        return time, scale.reshape(-1, *[1] * (x.ndim - 1))

    def _ready_conditions(self, x: Tensor) -> dict[str, Any]:
        """The network's conditions for a batch like x: expanded, on its device, in its dtype; made once."""
        key = (x.shape[0], x.device, x.dtype)
        if self._ready is not None and self._ready[0] == key:
            return self._ready[1]
        ready: dict[str, Any] = {}
        for name, value in self._conditions.values.items():
            if not self._takes(name):
                continue
            ready[name] = _cast(expanded(name, value, x.shape[0]), x) if is_batched(value) else value
        # A graph belongs to one backward pass, so nothing that could carry one is kept.
        if not any(isinstance(value, Tensor) and value.requires_grad for value in self.bound.values()):
            self._ready = (key, ready)
        return ready

    def _check(self, out: Any, x: Tensor) -> None:
        if isinstance(out, Tensor):
            if out.shape == x.shape and self.prediction.heads == 1:
                return
            if out.shape == (x.shape[0], x.shape[1] * self.prediction.heads, *x.shape[2:]):
                return
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"the network returned {shape} for x of {tuple(x.shape)}; prediction {self.prediction.name!r} "
            f"needs a tensor with {self.prediction.heads} times the channels of x"
        )

    def _takes(self, name: str) -> bool:
        return self._accepted is None or name in self._accepted

    def _with(self, conditions: Conditions) -> "Denoiser":
        other = copy.copy(self)
        other._conditions = conditions
        other._ready = None
        return other


def _cast(condition: Tensor, x: Tensor) -> Tensor:
    """The condition on x's device and, if it has fractions, in x's dtype."""
    with keepable():
        return condition.to(x.device, x.dtype if condition.is_floating_point() else condition.dtype)


def _time_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def _parameter_dtype(net: object) -> torch.dtype | None:
    parameters = net.parameters() if isinstance(net, nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), None)
