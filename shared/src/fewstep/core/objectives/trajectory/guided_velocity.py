"""Velocities on the normalised clock, with classifier-free guidance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.core.flow_map import FlowMap

LABEL = "label"


@dataclass(frozen=True)
class LabelGuidance:
    """v = v(none) + scale·(v(label) − v(none)).

    Args:
        scale: 1: no guidance.
        null_label: the label that means "none".

    Reference: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", eq. 6 (scale = 1 + w).
    """

    scale: float
    null_label: int


def guided_velocity(flow: FlowMap, x: Tensor, t: Tensor, guidance: LabelGuidance | None = None) -> Tensor:
    """The velocity (eps − x0) that a network estimates at s = t, guided if asked for."""
    velocity = flow.mean_velocity(x, t, t)
    if guidance is None or guidance.scale == 1:
        return velocity
    free = without_label(flow, guidance.null_label).mean_velocity(x, t, t)
    return torch.lerp(free, velocity, guidance.scale)


def without_label(flow: FlowMap, null_label: int) -> FlowMap:
    """The map with every label replaced by "none".

    Raises:
        ValueError: there are no labels.
    """
    return flow.given(label=torch.full_like(labels_of(flow), null_label))


def labels_of(flow: FlowMap) -> Tensor:
    """The labels that are bound.

    Raises:
        ValueError: there are none.
    """
    labels = flow.conditions.get(LABEL)
    if not isinstance(labels, Tensor):
        raise ValueError("guidance needs batches with the key 'label'")
    return labels
