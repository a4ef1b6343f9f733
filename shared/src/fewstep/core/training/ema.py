"""Exponential moving averages of a network's weights, several at once."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Averaged copies of a network, one per decay; parameters are averaged, buffers are copied.

    w̄ ← d_n·w̄ + (1 − d_n)·w   with   d_n = min(decay, (1 + n)/(10 + n)) after n updates,

    so that an average of a young run does not remember its initial weights.

    Args:
        model: the network that is trained; copied, not kept.
        decays: one copy per decay, each in [0, 1).

    Reference: Tarvainen and Valpola (2017), Mean teachers, section 2 (the average); the warm-up is the one
        that TensorFlow's moving averages made common.
    """

    def __init__(self, model: nn.Module, decays: Sequence[float]) -> None:
        self.models = {float(decay): copy.deepcopy(model).eval().requires_grad_(False) for decay in decays}
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move every average towards the weights of `model`."""
        parameters: list[Tensor] = [p.detach() for p in model.parameters()]
        for decay, averaged in self.models.items():
            now = min(decay, (1 + self.updates) / (10 + self.updates))
            average = get_ema_multi_avg_fn(now)
            average(list(averaged.parameters()), parameters, self.updates)
            _copy_buffers(model, averaged)
        self.updates += 1

    @torch.no_grad()
    def copy_from(self, model: nn.Module) -> None:
        """Start every average anew at the weights of `model`."""
        for averaged in self.models.values():
            averaged.load_state_dict(model.state_dict())
        self.updates = 0

    def state_dict(self) -> dict[str, Any]:
        """Updates so far and the weights of every average, by decay."""
        weights = {repr(decay): averaged.state_dict() for decay, averaged in self.models.items()}
        return {"updates": self.updates, "weights": weights}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> list[float]:
        """Take up saved averages; a decay that was not saved starts at the weights of `model`.

        Returns:
            The decays that were not saved.
        """
        self.updates = int(state["updates"])
        missing = []
        for decay, averaged in self.models.items():
            saved = state["weights"].get(repr(decay))
            if saved is None:
                missing.append(decay)
            averaged.load_state_dict(model.state_dict() if saved is None else saved)
        return missing


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Counters and running statistics are states: their average is no state that the network ever had."""
    for theirs, ours in zip(source.buffers(), target.buffers(), strict=True):
        ours.copy_(theirs)
