"""Classifier-free guidance: a denoiser pushed away from what it says without the condition."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.conditions import ConditionMap, expanded, is_batched, keepable
from fewstep.core.guidance.base import Interval, interval_of, weight_at
from fewstep.core.wrapping import BaseDenoiser, Time, Wrapper


class Guided(Wrapper):
    """Classifier-free guidance, both halves in one batch.

    out = out_null + scale·(out_condition - out_null), on the raw prediction; that is the same rule on x0 or
    eps, since these are one affine function of the prediction for both halves.

    Scale 1 asks only with the condition, scale 0 only without, everything else doubles the batch. Outside
    of `interval` the denoiser is asked once, with the condition.

    `rescale` gives a guided prediction back the spread that large scales inflate, for each sample,
        out <- out·(rescale·std(out_condition)/std(out) + 1 - rescale).
    This one depends on what the network predicts, as published.

    Args:
        inner: a denoiser with its conditions bound.
        scale: guidance weight.
        null: by name of a bound condition, its value without guidance: a tensor (batch or 1 entry first),
            or a number that fills a tensor like the bound one.
        interval: smallest and largest sigma/a at which to guide; default: everywhere. With one time for each
            sample both halves are always asked.
        rescale: 0 leaves the prediction, 1 gives it the spread of the conditional one; published value 0.7.

    Attributes:
        nfe: network evaluations inside the interval; `nfe_at(t)` tells them at a time.

    Raises:
        ValueError: when a name is not bound, its value does not fit, y of the path is named, the interval is
            empty or needs a path, or rescale is not in [0, 1].

    Reference: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6 (scale = 1 + w);
    Kynkäänniemi et al. 2024 (interval); Lin et al. 2024, "Common Diffusion Noise Schedules and Sample Steps
    are Flawed", section 3.4 (rescale).

    >>> from fewstep.core.wrapping import as_denoiser
    >>> denoise = as_denoiser(lambda x, t, gain: gain * x).given(gain=torch.tensor([[3.0]]))
    >>> Guided(denoise, scale=2.0, null={"gain": 1.0})(torch.ones(1, 1), 0.5)
    tensor([[5.]])
    """

    def __init__(
        self,
        inner: BaseDenoiser | Callable[..., Tensor],
        scale: float,
        null: Mapping[str, Tensor | float],
        *,
        interval: Interval | tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(inner)
        if not null:
            raise ValueError("null must name at least one bound condition, such as null={'label': 1000}")
        if not 0.0 <= rescale <= 1.0:
            raise ValueError(f"rescale must lie in [0, 1], not {rescale}")
        self.scale = float(scale)
        self.null: Mapping[str, Tensor | float] = MappingProxyType(dict(null))
        self.interval = interval_of(interval)
        if self.interval is not None and self.path is None:
            raise ValueError("an interval in sigma/a needs a denoiser that knows its path")
        self.rescale = float(rescale)
        self.nfe = self.inner.nfe * (2 if self._needs_both else 1)
        self._check()
        self._halves: dict[int, BaseDenoiser] = {}

    def nfe_at(self, t: Time) -> int:
        """Network evaluations of a sample for a call at t."""
        return self.inner.nfe if self._is_plain(t) else self.nfe

    def given(self, *, spatial: Iterable[str] = (), **conditions: Any) -> "Guided":
        """The same guidance with these conditions bound as well; the unguided half keeps its null."""
        other = super().given(spatial=spatial, **conditions)
        other._check()
        return other

    def mapped(self, function: ConditionMap) -> "Guided":
        """The same guidance with a function applied to the conditions of both halves."""
        other = super().mapped(function)
        other.null = MappingProxyType(
            {
                name: function(name, value, name in self.spatial) if isinstance(value, Tensor) else value
                for name, value in self.null.items()
            }
        )
        return other

    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch out *space"]:
        """Guided raw prediction."""
        if self._is_plain(t):
            return self.inner.predict(x, t)
        if not self._needs_both:
            return self._half(0, self._without).predict(x, t)
        both = self._half(x.shape[0], self._doubled)
        times = torch.cat([t, t]) if isinstance(t, Tensor) and t.ndim else t
        guided, unguided = both.predict(torch.cat([x, x]), times).chunk(2)
        weight = weight_at(self.scale, self.interval, self.path, t, x)
        out = torch.lerp(unguided, guided, weight)
        return self._rescaled(out, guided) if self.rescale else out

    @property
    def _needs_both(self) -> bool:
        alone = self.scale == 0.0 and self.rescale == 0.0 and self.interval is None
        return self.scale != 1.0 and not alone

    def _is_plain(self, t: Time) -> bool:
        """Whether the conditional prediction is the answer for every sample."""
        if self.scale == 1.0:
            return True
        return self.interval is not None and self.interval.contains(self.path, t) is False

    def _rescaled(self, out: Tensor, guided: Tensor) -> Tensor:
        heads = (-1, self.prediction.heads, out[0].numel() // self.prediction.heads)
        wide, wanted = out.reshape(heads), guided.reshape(heads)
        have = wide.std(-1, correction=0, keepdim=True)
        ratio = torch.where(have > 0, wanted.std(-1, correction=0, keepdim=True) / have, 1.0)
        return (wide * (self.rescale * ratio + (1.0 - self.rescale))).reshape(out.shape)

    def _half(self, batch: int, make: Callable[[int], BaseDenoiser]) -> BaseDenoiser:
        """The inner denoiser with other conditions, made once for each batch size."""
        if batch not in self._halves:
            with keepable():
                made = make(batch)
            if any(isinstance(value, Tensor) and value.requires_grad for value in made.bound.values()):
                return made
            self._halves[batch] = made
        return self._halves[batch]

    def _without(self, _: int) -> BaseDenoiser:
        return self.inner.mapped(lambda name, value, _: self._null_value(name, value))

    def _doubled(self, batch: int) -> BaseDenoiser:
        def double(name: str, value: Tensor, _: bool) -> Tensor:
            if value.shape[0] == 1 and name not in self.null:
                return value
            halves = (value, self._null_value(name, value))
            return torch.cat([expanded(name, half, batch) for half in halves])

        return self.inner.mapped(double)

    def _null_value(self, name: str, value: Tensor) -> Tensor:
        null = self.null.get(name, value)
        return null.to(value) if isinstance(null, Tensor) else torch.full_like(value[:1], null)

    def _around(self, inner: BaseDenoiser) -> "Guided":
        other = super()._around(inner)
        other._halves = {}
        return other

    def _check(self) -> None:
        for name, null in self.null.items():
            if name not in self.bound:
                raise ValueError(f"null names {name!r}, which is not bound; bound: {sorted(self.bound)}")
            value = self.bound[name]
            if not is_batched(value):
                raise TypeError(f"condition {name!r} must be a tensor with the batch first, not {value!r}")
            if name == "y" and self.path is not None and self.prediction.requires_y(self.path):
                raise ValueError(
                    f"null cannot replace y: prediction {self.prediction.name!r} is relative to it"
                )
            if isinstance(null, Tensor) and null.shape[1:] != value.shape[1:]:
                raise ValueError(
                    f"null for {name!r} must have the shape (batch or 1, *{tuple(value.shape[1:])}), "
                    f"not {tuple(null.shape)}"
                )
