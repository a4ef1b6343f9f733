"""Exponential moving averages of a network's weights, several at once."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

Rule = float | str


def check_rule(rule: Rule) -> Rule:
    """Return a rule as `Ema` keeps it.

    Raises:
        ValueError: it is none of a decay in [0, 1), "power:…", "half-life:…" and "inverse-power:…" with a
            positive number.
    """
    if isinstance(rule, str):
        kind, _, number = rule.partition(":")
        try:
            fits = kind in ("power", "half-life", "inverse-power") and 0 < float(number) < math.inf
        except ValueError:
            fits = False
    else:
        rule = float(rule)
        fits = 0 <= rule < 1
    if not fits:
        raise ValueError(
            "ema_decays must be numbers in [0, 1), or such as 'power:16.97', 'half-life:2000' and "
            f"'inverse-power:0.75', got {rule!r}"
        )
    return rule


def decay_after(rule: Rule, updates: int) -> float:
    """Return d of update number `updates` (0 is the first).

    Example:
        >>> decay_after(0.999, 0), decay_after("power:6.94", 0)
        (0.1, 0.0)
        >>> round(decay_after("half-life:1000", 10**6), 4)
        0.9993
    """
    if not isinstance(rule, str):
        return min(rule, (1 + updates) / (10 + updates))
    kind, _, number = rule.partition(":")
    n, value = updates + 1, float(number)
    if kind == "power":
        return (1 - 1 / n) ** (value + 1)
    if kind == "inverse-power":
        return min(0.9999, 1 - updates**-value) if updates > 1 else 0.0
    return 0.5 ** (1 / min(value, 0.05 * n))


class Ema:
    """Averaged copies of a network, one per rule; parameters are averaged, buffers are copied.

    w̄ ← d_n·w̄ + (1 − d_n)·w   before which there were n − 1 updates, with d_n of the rule
        0.999               min(0.999, n/(9 + n)): constant after a warm-up
        "power:16.97"       (1 − 1/n)^(γ + 1), γ = 16.97: the average spans a fixed share of the run
        "half-life:2000"    2^(−1/min(H, n/20)), H = 2000 updates
        "inverse-power:0.75"    min(1 − (n − 1)^(−p), 0.9999), p = 0.75; 0 for the first two updates

    so that an average of a young run does not remember its initial weights.

    Args:
        model: the network that is trained; copied, not kept.
        decays: one copy per rule; numbers in [0, 1) or text as above.

    Reference: Tarvainen and Valpola (2017), Mean teachers, section 2 (the average), with the warm-up that
        TensorFlow's moving averages made common; Karras et al. (2024), Analyzing and Improving the Training
        Dynamics of Diffusion Models, eq. 2 (power); Karras et al. (2022), appendix F.1 (half-life); Chi et
        al. (2023), Diffusion Policy, released code (inverse power).
    """

    def __init__(self, model: nn.Module, decays: Sequence[Rule]) -> None:
        self.models = {check_rule(rule): copy.deepcopy(model).eval().requires_grad_(False) for rule in decays}
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move every average towards the weights of `model`."""
        parameters: list[Tensor] = [p.detach() for p in model.parameters()]
        for decay, averaged in self.models.items():
            average = get_ema_multi_avg_fn(decay_after(decay, self.updates))
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
        """Updates so far and the weights of every average, by rule."""
        weights = {name_of(decay): averaged.state_dict() for decay, averaged in self.models.items()}
        return {"updates": self.updates, "weights": weights}

    def load_state_dict(self, state: dict[str, Any], model: nn.Module) -> list[Rule]:
        """Take up saved averages; a decay that was not saved starts at the weights of `model`.

        Returns:
            The decays that were not saved.
        """
        self.updates = int(state["updates"])
        missing = []
        for decay, averaged in self.models.items():
            saved = state["weights"].get(name_of(decay))
            if saved is None:
                missing.append(decay)
            averaged.load_state_dict(model.state_dict() if saved is None else saved)
        return missing


def name_of(rule: Rule) -> str:
    """Under which an average is saved."""
    return rule if isinstance(rule, str) else repr(float(rule))


def _copy_buffers(source: nn.Module, target: nn.Module) -> None:
    """Counters and running statistics are states: their average is no state that the network ever had."""
    for theirs, ours in zip(source.buffers(), target.buffers(), strict=True):
        ours.copy_(theirs)
