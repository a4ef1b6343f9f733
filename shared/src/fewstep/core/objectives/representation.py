"""Representation learning along the ODE: the first of two stages of training in pixels."""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fewstep.core.clock import clock_at, time_of_clock
from fewstep.core.objectives.sample_batch import SampleBatch
from fewstep.core.objectives.times import LogNormal, TimeSampler
from fewstep.core.paths import Path
from fewstep.core.training import Moment, Objective, Phase
from fewstep.core.training.batches import Batch
from fewstep.core.training.phases import STUDENT, Losses, Networks

PROJECTOR, TARGET = "projector", "target"
Views = Callable[[Tensor, torch.Generator], Tensor]


class CosineDistance:
    """1 − cos(z_i, w_i), one number per sample."""

    def __call__(
        self, z: Float[Tensor, "batch features"], w: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "batch"]:
        return 1 - F.cosine_similarity(z, w, dim=1)


class InfoNCE:
    """−log softmax_j(cos(z_i, w_j)/temperature) at j = i: the other samples of the batch are the negatives.

    Args:
        temperature: of the softmax.

    Raises:
        ValueError: temperature is not positive.

    Reference: van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding", eq. 4.
    """

    def __init__(self, temperature: float = 0.2) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        self.temperature = temperature

    def __call__(
        self, z: Float[Tensor, "batch features"], w: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "batch"]:
        alike = F.normalize(z, dim=1) @ F.normalize(w, dim=1).T / self.temperature
        return F.cross_entropy(alike, torch.arange(len(z), device=z.device), reduction="none")


class RepresentationLearning(Objective):
    """Train the first blocks of a network to see the same thing all along a trajectory of the ODE.

    With z = projector(pooled features of block `layer`), z⁻ the same of averaged networks, two views y, y' of
    a picture and two points x_t, x_r (r < t) with the same x0 and eps,

        loss = InfoNCE(z(y, t_min), z⁻(y', t_min)) + w·distance(z(x_t, t), z⁻(x_r, r)).

    The first term gives meaning to clean pictures; the second carries it to noisy ones. It is the loss of
    consistency training with features in place of x0, and alone would be met by a constant.
    Blocks after `layer` get no gradient, so the network that comes out is a trained encoder with a new
    decoder: train it end to end with any other objective (denoising, consistency). Throw the projector away.

    The batch's samples are coupled by InfoNCE, in one process.

    Args:
        path: of the states.
        student: the network, with `features(x, t, **conditions)`.
        projector: of pooled features (batch, features).
        layer: whose features, an index into what `features` gives.
        views: views(x0, generator) gives an augmented copy.
        times: of x_t (None: ln sigma/a ~ N(−0.4, 1.2²)).
        gap: (tau_t − tau_r)/tau_t on the normalised clock, a number or a function of the moment.
        consistency: the distance of the second term.
        weight: w.
        temperature: of InfoNCE.
        decay: of the averaged networks.

    Raises:
        ValueError: decay is outside [0, 1), gap outside (0, 1], or the weight negative.

    Reference: Lei et al. 2025, "There is No VAE: End-to-End Pixel-Space Generative Modeling via
        Self-Supervised Pre-training", section 3.
    """

    partial = True  # the blocks after `layer`

    def __init__(
        self,
        path: Path,
        student: nn.Module,
        projector: nn.Module,
        layer: int,
        views: Views,
        *,
        times: TimeSampler | None = None,
        gap: float | Callable[[Moment], float] = 0.5,
        consistency: Callable[[Tensor, Tensor], Tensor] | None = None,
        weight: float = 1.0,
        temperature: float = 0.2,
        decay: float = 0.99,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay!r}")
        if not callable(gap) and not 0 < gap <= 1:
            raise ValueError(f"gap must be in (0, 1], got {gap!r}")
        if weight < 0:
            raise ValueError(f"weight must not be negative, got {weight!r}")
        self.path, self.layer, self.views = path, layer, views
        self.times, self.gap = times or LogNormal(-0.4, 1.2), gap
        self.contrast, self.consistency = InfoNCE(temperature), consistency or CosineDistance()
        self.weight, self.decay = weight, decay
        self.projector = projector
        averaged = nn.ModuleDict({STUDENT: copy.deepcopy(student), PROJECTOR: copy.deepcopy(projector)})
        self.target = averaged.requires_grad_(False)

    def phases(self) -> tuple[Phase, ...]:
        """One phase, "encoder"."""
        return (Phase("encoder", self._loss, (STUDENT, PROJECTOR)),)

    def modules(self) -> dict[str, nn.Module]:
        """The projector and the averaged networks."""
        return {PROJECTOR: self.projector, TARGET: self.target}

    @torch.no_grad()
    def after_update(self, phase: str, networks: Networks, moment: Moment) -> None:
        """Move the averages."""
        for name in (STUDENT, PROJECTOR):
            theirs: list[Tensor] = list(self.target[name].parameters())
            ours: list[Tensor] = list(networks[name].parameters())
            torch._foreach_lerp_(theirs, ours, 1 - self.decay)
            for old, new in zip(self.target[name].buffers(), networks[name].buffers(), strict=True):
                old.copy_(new)

    def represent(self, net: nn.Module, x: Tensor, t: Tensor, conditions: Any) -> Tensor:
        """Pooled features of `layer`, (batch, features): the mean over tokens or places."""
        told = self.path.network_time_at(t).to(x.dtype)
        scale = self.path.input_scale_at(t).to(x.dtype).reshape(-1, *[1] * (x.ndim - 1))
        states: Any = net.features(x * scale, told, **conditions)  # type: ignore[operator]
        found = states[self.layer]
        if found.ndim == 2:
            return found
        return found.mean(1) if found.ndim == 3 else found.flatten(2).mean(2)

    def _loss(self, networks: Networks, batch: Batch, generator: torch.Generator, moment: Moment) -> Losses:
        read = SampleBatch.read(batch)
        x0, told = read.x0, read.conditions
        net, project = networks[STUDENT], networks[PROJECTOR]
        noise = read.noise_or(generator)
        t = self.times(self.path, len(x0), generator, x0.device)
        r = self._earlier(t, moment)
        clean = torch.full_like(t, self.path.t_min)
        noisy = self.path.corrupt(x0, t, noise, read.y)
        first, second = self.views(x0, generator), self.views(x0, generator)
        z_clean = project(self.represent(net, first, clean, told))
        z_noisy = project(self.represent(net, noisy, t, told))
        with torch.no_grad():
            target, project = self.target[STUDENT], self.target[PROJECTOR]
            w_clean = project(self.represent(target, second, clean, told))
            w_noisy = project(self.represent(target, self.path.corrupt(x0, r, noise, read.y), r, told))
        contrastive = self.contrast(z_clean, w_clean).mean()
        consistency = self.consistency(z_noisy, w_noisy).mean()
        loss = contrastive + self.weight * consistency
        return {"loss": loss, "contrastive": contrastive.detach(), "consistency": consistency.detach()}

    def _earlier(self, t: Tensor, moment: Moment) -> Tensor:
        gap = self.gap(moment) if callable(self.gap) else self.gap
        tau = clock_at(self.path, t) * (1 - gap)
        return time_of_clock(self.path, tau.clamp_min(1e-12)).clamp(self.path.t_min, self.path.t_max)
