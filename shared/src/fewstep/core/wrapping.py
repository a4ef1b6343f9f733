"""What samplers and wrappers rely on in a denoiser, and how a plain function becomes one."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from fewstep.core import predictions
from fewstep.core.conditions import (
    ConditionMap,
    Conditions,
    condition_names,
    cropping,
    expanded,
    is_batched,
    repeating,
)
from fewstep.core.layout import Window
from fewstep.core.paths.base import Path
from fewstep.core.predictions import Prediction

Time = float | Float[Tensor, " batch"] | Float[Tensor, ""]
W = TypeVar("W", bound="Wrapper")


class BaseDenoiser(ABC):
    """What samplers and wrappers rely on: a raw prediction, what it means, and the bound conditions.

    Attributes:
        path: the path of the noisy x.
        prediction: what `predict` returns.
        nfe: network evaluations of a sample for one call.
    """

    path: Path | None
    prediction: Prediction
    nfe: int = 1

    @abstractmethod
    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch out *space"]:
        """Raw network output, in x's dtype."""

    @property
    @abstractmethod
    def conditions(self) -> Conditions:
        """What is bound."""

    @abstractmethod
    def given(self, *, spatial: Iterable[str] = (), **conditions: Any) -> "BaseDenoiser":
        """A denoiser with these conditions bound as well; this one stays as it is."""

    @abstractmethod
    def mapped(self, function: ConditionMap) -> "BaseDenoiser":
        """A denoiser with a function applied to every bound tensor."""

    def __call__(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """Estimate x0 from x at time t.

        Args:
            x: noisy samples.
            t: time, one for all or one for each sample.
        """
        if self.path is None:  # around a plain function, which gives x0
            return self.predict(x, t)
        return self.prediction.to_x0(self.path, t, x, self.predict(x, t), self.y)

    @property
    def bound(self) -> Mapping[str, Any]:
        """The bound conditions by name; read-only."""
        return self.conditions.values

    @property
    def spatial(self) -> frozenset[str]:
        """Names of the bound conditions that lie on x's grid."""
        return self.conditions.spatial

    @property
    def y(self) -> Tensor | None:
        """The degraded input or prior mean, when it is bound."""
        return self.bound.get("y")

    def repeat(self, count: int) -> "BaseDenoiser":
        """The denoiser for `count` samples of every bound entry, in the order 0 0 0 1 1 1 …"""
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        return self.mapped(repeating(count))

    def crop(self, windows: Sequence[Window], size: Sequence[int], batch: int = 1) -> "BaseDenoiser":
        """The denoiser for windows of x: all samples of the first window, then of the second, …

        Args:
            windows: windows of x.
            size: spatial lengths of the whole x.
            batch: samples of the whole x.
        """
        return self.mapped(cropping(windows, size, batch))


class Wrapper(BaseDenoiser):
    """A denoiser around another one: same path, same conditions, same meaning of the prediction.

    Args:
        inner: the denoiser, or any callable (x, t) -> x0.
    """

    def __init__(self, inner: "BaseDenoiser | Callable[..., Tensor]") -> None:
        self.inner = as_denoiser(inner)
        self.path = self.inner.path
        self.prediction = self.inner.prediction
        self.nfe = self.inner.nfe

    @property
    def conditions(self) -> Conditions:
        """What is bound in the inner denoiser."""
        return self.inner.conditions

    def given(self: W, *, spatial: Iterable[str] = (), **conditions: Any) -> W:
        """The same wrapper around the inner denoiser with these conditions bound as well."""
        return self._around(self.inner.given(spatial=spatial, **conditions))

    def mapped(self: W, function: ConditionMap) -> W:
        """The same wrapper around the inner denoiser with a function applied to every bound tensor."""
        return self._around(self.inner.mapped(function))

    def _around(self: W, inner: BaseDenoiser) -> W:
        other = copy.copy(self)
        other.inner = inner
        return other


class FunctionDenoiser(BaseDenoiser):
    """A plain function (x, t, **conditions) -> x0 as a denoiser; it gets y only if it has an argument y.

    Args:
        function: gets t as the sampler gives it.
        path: the path of x, where a wrapper or sampler needs to know it.
    """

    def __init__(self, function: Callable[..., Tensor], path: Path | None = None) -> None:
        if not callable(function):
            raise TypeError(f"a denoiser must be callable as denoise(x, t), not {type(function).__name__}")
        self.function = function
        self.path = path
        self.prediction = predictions.get("x0")
        self._conditions = Conditions()
        names = condition_names(function)
        self._takes_y = names is None or "y" in names

    @property
    def conditions(self) -> Conditions:
        """What is bound."""
        return self._conditions

    def given(self, *, spatial: Iterable[str] = (), **conditions: Any) -> "FunctionDenoiser":
        """A denoiser with these keyword arguments of the function bound as well."""
        return self._with(self._conditions.given(spatial, conditions))

    def mapped(self, function: ConditionMap) -> "FunctionDenoiser":
        """A denoiser with a function applied to every bound tensor."""
        return self._with(self._conditions.mapped(function))

    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """The function's x0."""
        told = {
            name: expanded(name, value, x.shape[0]) if is_batched(value) else value
            for name, value in self.bound.items()
            if name != "y" or self._takes_y
        }
        return self.function(x, t, **told)

    def __call__(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """The function's x0."""
        return self.predict(x, t)

    def _with(self, conditions: Conditions) -> "FunctionDenoiser":
        other = copy.copy(self)
        other._conditions = conditions
        return other


def as_denoiser(denoise: BaseDenoiser | Callable[..., Tensor], path: Path | None = None) -> BaseDenoiser:
    """A denoiser as it is, or a plain function (x, t) -> x0 made into one.

    Raises:
        TypeError: for anything that cannot be called.
    """
    return denoise if isinstance(denoise, BaseDenoiser) else FunctionDenoiser(denoise, path)
