"""Sums, products and activations that are written over their input where no gradients are recorded."""

import torch
import torch.nn.functional as F
from torch import Tensor


def plus(fresh: Tensor, x: Tensor) -> Tensor:
    """fresh + x in the layout of x; `fresh`, which nobody else may hold, becomes the sum where it can."""
    return fresh.add_(x) if _can_become(fresh, x) and fresh.stride() == x.stride() else x + fresh


def times(fresh: Tensor, x: Tensor) -> Tensor:
    """fresh · x; `fresh`, which nobody else may hold, becomes the product where it can."""
    return fresh.mul_(x) if _can_become(fresh, x) else fresh * x


def silu(fresh: Tensor) -> Tensor:
    """SiLU of `fresh`, which nobody else may hold, written over it where it can be."""
    return F.silu(fresh, inplace=not torch.is_grad_enabled())


def _can_become(fresh: Tensor, x: Tensor) -> bool:
    """Whether no gradient needs `fresh` and it has the precision of what is made of the two."""
    return not torch.is_grad_enabled() and torch.promote_types(fresh.dtype, x.dtype) == fresh.dtype
