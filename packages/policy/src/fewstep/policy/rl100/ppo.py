"""The clipped surrogate of every denoising step, and what goes with it."""

import torch
from jaxtyping import Float
from torch import Tensor


def chunk_log_ratio(
    new: Float[Tensor, "batch time numbers"], old: Float[Tensor, "batch time numbers"], executed: slice
) -> Float[Tensor, "batch"]:
    """Σ (ln π_θ − ln π_old) over the executed actions: the whole chunk is one decision.

    It is a sum, as published; its exponential can overflow for large chunks, which the clipping of the
    surrogate does not mend where the advantage is negative, so keep updates small.

    Args:
        new: log-densities under the policy that learns.
        old: under the policy that acted.
        executed: actions of the chunk that are carried out.

    Reference: Lei et al. 2025, "RL-100", its chunk-level ratio, and released code.
    """
    return (new - old)[:, executed].flatten(1).sum(1)


def action_log_ratio(
    new: Float[Tensor, "batch time numbers"], old: Float[Tensor, "batch time numbers"], executed: slice
) -> Float[Tensor, "batch actions"]:
    """Σ (ln π_θ − ln π_old) over the numbers of each executed action: every action is a decision of its own.

    Args:
        new: log-densities under the policy that learns.
        old: under the policy that acted.
        executed: actions of the chunk that are carried out.

    Reference: Lei et al. 2025, "RL-100", single-action control, released code.
    """
    return (new - old)[:, executed].sum(2)


def surrogate_loss(
    log_ratio: Float[Tensor, "batch *actions"], advantage: Float[Tensor, "batch 1"], clip: float
) -> Float[Tensor, ""]:
    """−mean min(ρA, clip(ρ, 1 ± c)·A), ρ = exp(log ratio).

    All denoising steps of a decision share its advantage.

    Args:
        log_ratio: of a denoising step.
        advantage: of the decision.
        clip: c.

    Raises:
        ValueError: c is not in (0, 1).

    Reference: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", eq. 7; Lei et al. 2025,
        "RL-100" (per denoising step).
    """
    if not 0 < clip < 1:
        raise ValueError(f"clip must lie in (0, 1), got {clip}")
    ratio = log_ratio.exp()
    gain = advantage if ratio.ndim > 1 else advantage[:, 0]
    return -torch.minimum(ratio * gain, ratio.clamp(1 - clip, 1 + clip) * gain).mean()


def approximate_kl(log_ratio: Float[Tensor, "batch *actions"]) -> float:
    """mean (ρ − 1 − ln ρ), an unbiased estimate of KL(π_old ‖ π_θ) that is never negative.

    Args:
        log_ratio: ln ρ of decisions that π_old took.

    Reference: Schulman 2020, "Approximating KL Divergence" (k3).
    """
    return float((log_ratio.exp() - 1 - log_ratio).mean())


def clipped_value_loss(
    value: Float[Tensor, "batch 1"],
    before: Float[Tensor, "batch 1"],
    target: Float[Tensor, "batch 1"],
    clip: float,
) -> Float[Tensor, ""]:
    """½ mean max((V − G)², (V_old + clip(V − V_old, ± c) − G)²).

    Args:
        value: V of the network that learns.
        before: V_old when the data were collected.
        target: G, the return.
        clip: c.

    Reference: Schulman et al. 2017, released code.
    """
    held = before + (value - before).clamp(-clip, clip)
    return 0.5 * torch.maximum((value - target).square(), (held - target).square()).mean()


def adapted_rate(rate: float, kl: float, wanted: float, low: float, high: float) -> float:
    """A learning rate that falls by a third when the policy moved twice as far as wanted, and rises likewise.

    Args:
        rate: present learning rate.
        kl: how far the last pass moved the policy.
        wanted: divergence that it should have moved.
        low, high: limits of the rate.

    Reference: Lei et al. 2025, "RL-100", released code (target 0.02, 5e-7 … 1e-5); the factor 1.5 is ours.

    Example:
        >>> adapted_rate(3e-6, kl=0.1, wanted=0.02, low=5e-7, high=1e-5)
        2e-06
    """
    if kl > 2 * wanted:
        return max(rate / 1.5, low)
    return min(rate * 1.5, high) if kl < wanted / 2 else rate
