"""Chains of invertible couplings: a backward pass that recomputes the states instead of keeping them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Body = Callable[..., Tensor]
State = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Link:
    """One coupling of two equal halves: (x1, x2) → ((1 − v) f(x1, *told) + v x2, x1).

    It is undone by x1 = y2, x2 = (y1 − (1 − v) f(x1, *told))/v, for any f.

    Args:
        body: f; it must give the same values whenever it is called with the same tensors.
        weight: v, one number, not 0.
        told: every other tensor that f depends on and that a gradient is wanted of.
        parameters: leaf tensors with gradients that f uses by itself, such as the weights of a module.

    Reference: Chen et al. 2025, "Invertible Diffusion Models for Compressed Sensing", section 3.2.
    """

    body: Body
    weight: Float[Tensor, "1"]
    told: tuple[Tensor, ...] = ()
    parameters: tuple[Tensor, ...] = ()

    def __call__(self, x1: Tensor, x2: Tensor) -> State:
        """The coupled halves."""
        f = self.body(x1, *self.told)
        # The weight has the precision of the halves: as a vector of one number it would raise it to its own.
        precision = torch.promote_types(f.dtype, x2.dtype)
        return torch.lerp(f.to(precision), x2.to(precision), self.weight.to(precision)), x1


Chain = Callable[[Tensor, Tensor, Sequence[Link]], State]


def keeping(x1: Tensor, x2: Tensor, links: Sequence[Link]) -> State:
    """Apply couplings in turn; autograd keeps what it needs of each."""
    for link in links:
        x1, x2 = link(x1, x2)
    return x1, x2


def recomputing(x1: Tensor, x2: Tensor, links: Sequence[Link]) -> State:
    """Apply couplings in turn; only the last two halves are kept for the backward pass.

    The backward pass finds the halves before each coupling by undoing it, last one first, and runs its body
    once more to get its gradients, so memory does not grow with the number of couplings. Bodies may hold
    chains of their own. Halves are float32 at least, also where autocast lets bodies compute in less. Every
    undoing multiplies rounding errors by about 1/v, so gradients equal those of `keeping` more closely in
    float64 than in float32.

    Args:
        x1: first half.
        x2: second half, of the same shape.
        links: the couplings.

    Returns:
        The halves after the last coupling.

    Example:
        >>> x, v = torch.ones(2, requires_grad=True), torch.tensor([0.5], requires_grad=True)
        >>> y1, y2 = recomputing(x, x, [Link(torch.square, v), Link(torch.square, v)])
        >>> (y1 + y2).sum().backward()
        >>> x.grad, v.grad
        (tensor([3.5000, 3.5000]), tensor([0.]))

    Reference: Chen et al. 2025, "Invertible Diffusion Models for Compressed Sensing", section 3.2.
    """
    if not links:
        return x1, x2
    x1, x2 = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (x1, x2))
    tensors = tuple(tensor for link in links for tensor in (link.weight, *link.told, *link.parameters))
    unique = tuple({id(tensor): tensor for tensor in tensors}.values())
    return _Recomputed.apply(tuple(links), unique, x1, x2, *unique)  # type: ignore[return-value]


def undo(y1: Tensor, y2: Tensor, links: Sequence[Link]) -> State:
    """The halves that a chain of couplings was given, from those that it gave."""
    for link in reversed(links):
        x2 = (y1 - (1 - link.weight) * link.body(y2, *link.told)) / link.weight
        y1, y2 = y2, x2
    return y1, y2


@dataclass(frozen=True)
class _Recipe:
    """A link without its tensors: where each is found among those of the chain."""

    body: Body
    weight: int
    told: tuple[int, ...]
    parameters: tuple[int, ...]


class _Recomputed(torch.autograd.Function):
    """A chain as one operation of autograd, whose inputs are all tensors that it depends on."""

    @staticmethod
    def forward(ctx: Any, links: tuple[Link, ...], unique: tuple[Tensor, ...], *inputs: Tensor) -> State:
        place = {id(tensor): i for i, tensor in enumerate(unique)}
        ctx.recipes = tuple(
            _Recipe(
                link.body,
                place[id(link.weight)],
                tuple(place[id(tensor)] for tensor in link.told),
                tuple(place[id(tensor)] for tensor in link.parameters),
            )
            for link in links
        )
        x1, x2 = inputs[:2]
        device = x1.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        with _autocast(ctx):
            y1, y2 = keeping(x1, x2, links)
        # Leaves live on anyway, and bodies know them as the objects that they are.
        ctx.leaves = [tensor if tensor.is_leaf else None for tensor in unique]
        ctx.save_for_backward(y1, y2, *(tensor for tensor in unique if not tensor.is_leaf))
        return y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d1: Tensor, d2: Tensor) -> tuple[Tensor | None, ...]:
        y1, y2, *saved = ctx.saved_tensors
        inner = iter(saved)
        tensors = [next(inner) if leaf is None else leaf for leaf in ctx.leaves]
        gradients: list[Tensor | None] = [None] * len(tensors)
        with _autocast(ctx):
            for recipe in reversed(ctx.recipes):
                y1, y2, d1, d2 = _back(recipe, tensors, gradients, (y1, y2), (d1, d2))
        return None, None, d1, d2, *gradients


def _autocast(ctx: Any) -> torch.autocast:
    """The precision of the forward pass.

    Casts of weights are not remembered: one made without gradients would be used again where they are wanted.
    """
    device, dtype, enabled = ctx.autocast
    return torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=False)


def _back(
    recipe: _Recipe,
    tensors: Sequence[Tensor],
    gradients: list[Tensor | None],
    y: State,
    dy: State,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Undo one coupling and pull gradients back through it; those of tensors are added to `gradients`.

    dx1 = (1 − v) (∂f/∂x1)ᵀ dy1 + dy2,   dx2 = v dy1,   dv = <x2 − f, dy1>.
    """
    v = tensors[recipe.weight].detach()
    x1 = y[1].detach().requires_grad_()
    told = [tensors[i].detach().requires_grad_(tensors[i].requires_grad) for i in recipe.told]
    sources = [(i, tensor) for i, tensor in zip(recipe.told, told, strict=True) if tensor.requires_grad]
    sources += [(i, tensors[i]) for i in recipe.parameters if tensors[i].requires_grad]
    with torch.enable_grad():
        f = recipe.body(x1, *told)
    pulled = torch.autograd.grad(
        f, [x1, *(tensor for _, tensor in sources)], ((1 - v) * dy[0]).to(f.dtype), allow_unused=True
    )
    f = f.detach()
    x2 = (y[0] - (1 - v) * f) / v
    for (i, _), gradient in zip(sources, pulled[1:], strict=True):
        _add(gradients, i, gradient)
    if tensors[recipe.weight].requires_grad:
        _add(gradients, recipe.weight, ((x2 - f) * dy[0]).sum().to(v.dtype).reshape(v.shape))
    dx1 = dy[1] if pulled[0] is None else pulled[0] + dy[1]
    return x1.detach(), x2, dx1, v * dy[0]


def _add(gradients: list[Tensor | None], place: int, gradient: Tensor | None) -> None:
    if gradient is not None:
        before = gradients[place]
        gradients[place] = gradient if before is None else before + gradient
