"""Adversarial post-training: the teacher itself, with heads on its tokens, judges clean samples."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fewstep.core.clock import time_of_clock
from fewstep.core.objectives.adversarial.features import OwnFeatures
from fewstep.core.objectives.adversarial.head import AdversarialHead
from fewstep.core.objectives.adversarial.heads import (
    HeadPerLayer,
    QueryHead,
    feature_shapes,
    head_for,
)
from fewstep.core.objectives.adversarial.regularisers import ApproximateR1
from fewstep.core.objectives.sample_batch import uniform
from fewstep.core.paths import Path


@dataclass(frozen=True)
class ShiftedUniform:
    """tau' = shift·tau/(1 + (shift − 1)·tau) on the clock sigma/(a + sigma), tau uniform.

    Args:
        shift: 1 for uniform; above 1 noisier times are drawn more often.

    Raises:
        ValueError: shift is not positive.

    Reference: Esser et al. 2024, "Scaling Rectified Flow Transformers", eq. 23; Lin et al. 2025 (APT),
        section 3.3, with shift 1 for pictures and 12 for videos.
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}")

    def __call__(
        self, path: Path, count: int, generator: torch.Generator, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Times of the path."""
        tau = uniform(count, generator, device).clamp(1e-12, 1 - 1e-12)
        t = time_of_clock(path, self.shift * tau / (1 + (self.shift - 1) * tau))
        t = t.clamp(path.t_min, path.t_max)
        return t.round() if path.is_discrete else t


def post_training_judge(
    path: Path,
    net: nn.Module,
    shape: Sequence[int],
    *,
    layers: tuple[int, ...] = (-1,),
    shift: float = 1.0,
    weight: float = 100.0,
    sigma: float = 0.01,
) -> AdversarialHead:
    """The judge of adversarial post-training.

    A trainable copy of the network sees clean samples but is told random times, so that it looks at coarse
    and fine features alike; every chosen layer has a head (a learned query over tokens, convolutions over
    maps, an MLP on vectors). Non-saturating logistic loss with the approximate R1.

    Args:
        path: of student and teacher.
        net: the teacher's network, with a method `features(x, t, **conditions)`; it is copied.
        shape: of one sample.
        layers: places in the list of features.
        shift: of the times that the judge is told.
        weight: of the approximate R1.
        sigma: of its perturbation.

    Reference: Lin et al. 2025, "Diffusion Adversarial Post-Training for One-Step Video Generation",
        section 3.
    """
    trunk = copy.deepcopy(net).requires_grad_(True)
    parameter = next(trunk.parameters())
    sample = torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)
    shapes = feature_shapes(trunk.features, sample)  # type: ignore[arg-type]
    heads = [
        QueryHead(shapes[place][1]) if len(shapes[place]) == 2 else head_for(shapes[place])
        for place in layers
    ]
    return AdversarialHead(
        path,
        HeadPerLayer(heads),
        OwnFeatures(trunk, layers),
        loss="softplus",
        regulariser=ApproximateR1(weight, sigma),
        told=ShiftedUniform(shift),
    )
