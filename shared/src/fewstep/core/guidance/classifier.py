"""Classifier guidance: a denoiser pushed along the gradient of a classifier's log-probability."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.conditions import ConditionMap, Conditions, condition_names, expanded, is_batched
from fewstep.core.guidance.base import EstimateWrapper, Interval, interval_of
from fewstep.core.paths import Path
from fewstep.core.wrapping import BaseDenoiser, Time, as_denoiser


class ClassifierGuided(EstimateWrapper):
    """Guidance by the gradient of log p(c | x_t), which is taken through the classifier and not the network.

    eps <- eps - scale·sigma·∇_x log p(c | x_t), that is  x0 <- x0 + scale·(sigma²/a)·∇_x log p(c | x_t).

    With scale 1 and the exact p(c | x_t) this is the exact conditional denoiser. Where a = 0 the state says
    nothing about c, and nothing is added.

    Args:
        inner: a denoiser that knows its path.
        log_prob: called as log_prob(x, t, **conditions), gives log p(c | x_t) for each sample, (batch,).
            It gets t as the sampler gives it, and by name the conditions it has arguments for: those bound in
            `inner` and those that `given` of this wrapper adds. Any differentiable log-likelihood will do.
        scale: guidance weight.
        interval: smallest and largest sigma/a at which to guide; default: everywhere.

    Attributes:
        nfe: network evaluations, those of `inner`.
        classifier_calls: evaluations of log_prob with its gradient for one call.

    Raises:
        TypeError: when log_prob cannot be called.
        ValueError: when `inner` has no path, the interval is empty, or (on a call) log_prob gives another
            shape or does not depend on x.

    Reference: Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", algorithm 2;
    Song et al. 2021, "Score-Based Generative Modeling through SDEs", section 5.

    >>> from fewstep.core import paths
    >>> from fewstep.core.wrapping import as_denoiser
    >>> ball = as_denoiser(lambda x, t: x / (1 + t * t), paths.EDM())
    >>> towards = ClassifierGuided(ball, lambda x, t: x.sum(1), scale=0.5)
    >>> towards(torch.zeros(1, 2), 2.0)  # 0.5·sigma²/a = 2
    tensor([[2., 2.]])
    """

    path: Path

    def __init__(
        self,
        inner: BaseDenoiser | Callable[..., Tensor],
        log_prob: Callable[..., Tensor],
        scale: float = 1.0,
        *,
        interval: Interval | tuple[float, float] | None = None,
    ) -> None:
        if not callable(log_prob):
            raise TypeError(f"log_prob must be callable as log_prob(x, t), not {type(log_prob).__name__}")
        if as_denoiser(inner).path is None:
            raise ValueError("classifier guidance needs a denoiser that knows its path")
        super().__init__(inner)
        self.log_prob = log_prob
        self.scale = float(scale)
        self.interval = interval_of(interval)
        self.classifier_calls = 1
        self._names = condition_names(log_prob) or frozenset()
        self._own = Conditions()

    @property
    def conditions(self) -> Conditions:
        """What is bound, for the denoiser or for log_prob."""
        inner = self.inner.conditions
        return Conditions({**self._own.values, **inner.values}, inner.spatial | self._own.spatial)

    def given(self, *, spatial: Iterable[str] = (), **conditions: Any) -> "ClassifierGuided":
        """The same guidance with these conditions bound as well.

        A name that log_prob takes and the denoiser has not bound is for log_prob alone.
        """
        own = {
            name: value
            for name, value in conditions.items()
            if name in self._names and name not in self.inner.bound
        }
        rest = {name: value for name, value in conditions.items() if name not in own}
        other = self._around(self.inner.given(spatial=[n for n in spatial if n not in own], **rest))
        other._own = self._own.given([name for name in spatial if name in own], own)
        return other

    def mapped(self, function: ConditionMap) -> "ClassifierGuided":
        """The same guidance with a function applied to every bound tensor."""
        other = super().mapped(function)
        other._own = self._own.mapped(function)
        return other

    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """Guided x0."""
        x0 = self.inner(x, t)
        strength = self._strength(x, t)
        return x0 if strength is None else x0 + strength * self.gradient(x, t)

    def gradient(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """∇_x log p(c | x_t); no gradient flows through it."""
        told = {
            name: expanded(name, value, x.shape[0]) if is_batched(value) else value
            for name, value in self.bound.items()
            if name in self._names
        }
        with torch.inference_mode(False), torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            value = self.log_prob(point, t, **told)
            if value.shape != x.shape[:1]:
                raise ValueError(
                    f"log_prob must give one number for each sample, shape ({x.shape[0]},), "
                    f"not {tuple(value.shape)}"
                )
            if not value.requires_grad:
                raise ValueError(
                    "log_prob must depend on x in a differentiable way; its result has no gradient"
                )
            return torch.autograd.grad(value.sum(), point)[0]

    def _strength(self, x: Tensor, t: Time) -> Any:
        """scale·sigma²/a; None where nothing is to be added."""
        if isinstance(t, Tensor) and t.ndim:
            a, _, sigma = self.path.evaluate(t)
            strength = torch.where(a > 0, self.scale * sigma**2 / a, 0.0)
            if self.interval is not None:
                strength = torch.where(self.interval.contains(self.path, t), strength, 0.0)
            return strength.to(x).view(-1, *[1] * (x.ndim - 1))
        a, _, sigma = self.path.coefficients(float(t))
        if a <= 0 or self.scale == 0.0:
            return None
        if self.interval is not None and not self.interval.contains(self.path, t):
            return None
        return self.scale * sigma**2 / a
