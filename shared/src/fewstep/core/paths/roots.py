"""Finding where an increasing function of time takes given values."""

from collections.abc import Callable

import torch
from torch import Tensor

_ROUNDS = 80


def invert_increasing(
    function: Callable[[Tensor], Tensor], knots: tuple[Tensor, Tensor], target: Tensor
) -> Tensor:
    """Return the times at which ``function`` equals ``target``.

    A table brackets each root; the Illinois variant of the false-position rule closes the bracket.

    Args:
        function: increasing function of time, elementwise.
        knots: (times, values of the function there), both increasing.
        target: the values to find, within the range of the knots.
    """
    times, values = (table.to(target.device) for table in knots)
    position = torch.searchsorted(values, target.contiguous()).clamp(1, len(values) - 1)
    low, high = times[position - 1], times[position]
    f_low, f_high = values[position - 1] - target, values[position] - target
    t, tolerance = low, 2e-15 * target.abs()
    last_side = torch.zeros_like(target)
    for _ in range(_ROUNDS):
        slope = f_high - f_low
        t = torch.where(slope > 0, high - f_high * (high - low) / slope, 0.5 * (low + high))
        t = torch.minimum(torch.maximum(t, low), high)
        f = function(t) - target
        if bool((f.abs() <= tolerance).all()):
            break
        left = f < 0
        side = torch.where(left, -1.0, 1.0).to(target)
        # An end that stays twice running has its value halved, so that it cannot stay for ever.
        kept = torch.where(side == last_side, 0.5, 1.0)
        low, high = torch.where(left, t, low), torch.where(left, high, t)
        f_low, f_high = torch.where(left, f, kept * f_low), torch.where(left, kept * f_high, f)
        last_side = side
    return t
