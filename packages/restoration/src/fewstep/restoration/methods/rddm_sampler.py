"""The published sampling rules of RDDM, each a table of weights."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core import paths
from fewstep.core.noise import NoiseSource
from fewstep.core.run import OnStep
from fewstep.core.step_info import StepInfo

from .rddm_heads import Reading, read


class Step(NamedTuple):
    """x ← x·x + residual·R + noise·ε + x0·x0 + fresh·z, from time t to the cleaner time s."""

    t: float
    s: float
    x: float = 0.0
    residual: float = 0.0
    noise: float = 0.0
    x0: float = 0.0
    fresh: float = 0.0


def grid(steps: int, calls: int) -> list[float]:
    """The published times: whole parts of equally spaced ones from −1 to T − 1, decreasing.

    Example:
        >>> grid(1000, 5)
        [999.0, 799.0, 599.0, 399.0, 199.0, -1.0]
    """
    # In float32 as published, where a few of the times are rounded to the next one.
    times = torch.linspace(-1, steps - 1, calls + 1).int().tolist()
    return [float(t) for t in reversed(times)]


def table(path: paths.RDDM, rule: str, calls: int, eta: float) -> list[Step]:
    """The steps of a published rule.

    With A = b(t), B = σ(t), A', B' those of s and δ² = η (B² − B'²) B'²/B²:
    "rddm" x − (A − A') R − (B − √(B'² − δ²)) ε + δ z;
    "rddm-posterior" c₁ x + c₂ R + c₃ x0 + √(c₁ (B² − B'²)) z, with c₁ = B'²/B², c₃ = 1 − c₁ and
    c₂ = c₃ A' − c₁ (A − A');
    "rddm-residual-first" the first rule twice, at first without its ε, then without its R.
    The step to the clean end is x0.

    Args:
        path: of the model.
        rule: which one.
        calls: network calls.
        eta: share of fresh noise; the posterior has all of it.

    Raises:
        ValueError: "rddm-residual-first" with an odd number of calls above 1.

    Reference: Liu et al. 2024, "Residual Denoising Diffusion Models", equations 13 and 14, section 5 and
        published code.
    """
    if rule != "rddm-residual-first" or calls == 1:
        return [_step(path, rule, t, s, eta) for t, s in pairwise(grid(path.steps, calls))]
    if calls % 2:
        raise ValueError(
            f"steps must be even with solver {rule!r}, which visits every time twice, got {calls}"
        )
    pairs = list(pairwise(grid(path.steps, calls // 2)))
    both = [_step(path, rule, t, s, eta) for t, s in pairs]
    return [step._replace(noise=0.0) for step in both] + [step._replace(residual=0.0) for step in both]


def _step(path: paths.RDDM, rule: str, t: float, s: float, eta: float) -> Step:
    if s < 0:
        return Step(t, s, x0=1.0)
    (_, done, sigma), (_, left, next_sigma) = path.coefficients(t), path.coefficients(s)
    kept = (next_sigma / sigma) ** 2
    fresh = kept * (sigma**2 - next_sigma**2)
    if rule == "rddm-posterior":
        residual = (1 - kept) * left - kept * (done - left)
        return Step(t, s, x=kept, residual=residual, x0=1 - kept, fresh=math.sqrt(fresh))
    noise = math.sqrt(next_sigma**2 - eta * fresh) - sigma
    return Step(t, s, x=1.0, residual=left - done, noise=noise, fresh=math.sqrt(eta * fresh))


def run(
    steps: Sequence[Step],
    path: paths.RDDM,
    objective: str,
    predict: Callable[[Tensor, float], Tensor],
    x: Float[Tensor, "batch channels h w"],
    y: Float[Tensor, "batch channels h w"],
    source: NoiseSource,
    on_step: OnStep | None = None,
) -> Float[Tensor, "batch channels h w"]:
    """Follow a table.

    Args:
        steps: the table.
        path: of the model.
        objective: what the network predicts.
        predict: the network's heads along the channels, from (x, t).
        x: start.
        y: degraded image.
        source: where fresh noise comes from.
        on_step: called with a StepInfo after each step; False stops.

    Returns:
        The last state.
    """
    fresh = torch.empty_like(x)
    for number, step in enumerate(steps, 1):
        said = read(objective, predict(x, step.t), x, y, path.coefficients(step.t), step.t == path.t_max)
        x = _follow(step, x, said)
        if step.fresh:
            source.fill(fresh)
            x = x.add_(fresh, alpha=step.fresh)
        if on_step is not None:
            info = StepInfo(number, len(steps), step.s, number, x, lambda said=said: said.x0)
            if on_step(info) is False:
                break
    return x


def _follow(step: Step, x: Tensor, said: Reading) -> Tensor:
    """The weighted sum, in a tensor of its own."""
    total = x * step.x if step.x else torch.zeros_like(x)
    for weight, part in ((step.residual, said.residual), (step.noise, said.noise), (step.x0, said.x0)):
        if weight:
            total.add_(part, alpha=weight)
    return total
