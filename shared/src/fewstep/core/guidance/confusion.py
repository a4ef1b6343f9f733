"""Gradient-free classifier guidance: away from the class that a classifier mistakes the estimate for."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.guidance.base import Beside, estimate_elsewhere
from fewstep.core.wrapping import BaseDenoiser, Time


def confusion_share(
    wanted: Float[Tensor, " batch"], rival: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """p(rival) / (p(rival) + p(wanted)): 0 where the classifier is sure, 1/2 where it cannot decide.

    >>> confusion_share(torch.tensor([1.0, 0.4]), torch.tensor([0.0, 0.4]))
    tensor([0.0000, 0.5000])
    """
    total = rival + wanted
    return torch.where(total > 0, rival / total, 0.5)


class ConfusionGuided(Beside):
    """Guidance by a classifier without its gradient (GFCG).

    With c the wanted class, p the classifier's probabilities of the estimate x0_c and
        r = argmax_{c' ≠ c} p(c'),  the most confused class,
        x0 = x0_c + w·(x0_c - x0_r),  w = scale·weight(p(c), p(r)) for each sample.

    The reference x0_r is the denoiser's own estimate with class r or, combined with autoguidance, that of a
    worse model. It depends on the first estimate, so the two calls follow each other and cannot be one batch.

    The rule (reference = the most confused class, weight that grows with the confusion and vanishes for a
    confident classifier, reference taken from the bad model with autoguidance) follows the paper's abstract
    and a summary; the paper's exact formula of the weight was not at hand. The default weight,
    p(r)/(p(r) + p(c)), is ours; pass `weight` for another.

    Args:
        inner: a denoiser with the class bound, one integer for each sample or for all.
        classifier: classifier(x0) gives logits, shape (batch, classes); it is never differentiated.
        scale: factor on the adaptive weight.
        name: name of the condition that holds the class.
        reference: the denoiser that is asked with the confused class, with that condition bound; default:
            `inner`. May have another prediction and path.
        weight: (p(c), p(r)), each of shape (batch,), to the weight before `scale`.

    Attributes:
        nfe: network evaluations of both calls.
        classifier_calls: evaluations of the classifier for one call.

    Raises:
        ValueError: when the condition is not bound, or is not integers of shape (batch or 1,); on a call,
            when the logits have another shape.
        TypeError: when the classifier cannot be called.

    Reference: Shenoy et al. 2024, "Gradient-Free Classifier Guidance for Diffusion Model Sampling".
    """

    def __init__(
        self,
        inner: BaseDenoiser,
        classifier: Callable[[Tensor], Tensor],
        scale: float = 1.0,
        *,
        name: str = "label",
        reference: BaseDenoiser | None = None,
        weight: Callable[[Tensor, Tensor], Tensor] = confusion_share,
    ) -> None:
        super().__init__(inner, reference)
        if not callable(classifier):
            raise TypeError(f"classifier must be callable as classifier(x0), not {type(classifier).__name__}")
        self.classifier = classifier
        self.scale = float(scale)
        self.name = name
        self.weight = weight
        self.nfe = self.inner.nfe + (self.inner if self.other is None else self.other).nfe
        self.classifier_calls = 1
        for denoise in (self.inner, self.other):
            if denoise is not None:
                _check_label(denoise, name)

    def predict(
        self, x: Float[Tensor, "batch channels *space"], t: Time
    ) -> Float[Tensor, "batch channels *space"]:
        """Guided x0."""
        x0 = self.inner(x, t)
        rival, weight = self.confused(x0)
        source = self.inner if self.other is None else self.other
        told: dict[str, Any] = {self.name: rival.to(source.bound[self.name].dtype)}
        asked = source.given(**told)
        reference = estimate_elsewhere(asked, x, t, self.path, self.inner.y)
        return x0 + weight.to(x0).view(-1, *[1] * (x.ndim - 1)) * (x0 - reference)

    def confused(self, x0: Float[Tensor, "batch *rest"]) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """(most confused class, guidance weight) of each sample."""
        label = self.inner.bound[self.name].long().expand(x0.shape[0])[:, None]
        logits = self.classifier(x0)
        if logits.ndim != 2 or logits.shape[0] != x0.shape[0] or logits.shape[1] < 2:
            raise ValueError(
                f"classifier must give logits (batch, classes) for {x0.shape[0]} samples, "
                f"not {tuple(logits.shape)}"
            )
        probability = logits.softmax(1)
        rival = probability.scatter(1, label, -1.0).argmax(1)
        wanted, other = (probability.gather(1, c).squeeze(1) for c in (label, rival[:, None]))
        return rival, self.scale * self.weight(wanted, other)


def _check_label(denoise: BaseDenoiser, name: str) -> None:
    value = denoise.bound.get(name)
    if not isinstance(value, Tensor) or value.ndim != 1 or value.is_floating_point():
        have = "nothing" if value is None else getattr(value, "shape", type(value).__name__)
        raise ValueError(f"{name!r} must be bound to integers of shape (batch,) or (1,), it is {have}")
