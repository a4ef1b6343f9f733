"""Low-rank adapters: a frozen network that learns by a few small matrices beside its layers."""

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

_NAME = "low_rank"
"""Under which an adapter is a child of its layer."""


class LowRank(nn.Module):
    """The change (alpha/rank)·up·down of one layer's weight; up starts at zero.

    Args:
        layer: a linear layer or an ungrouped convolution; its shape is taken, not the layer.
        rank: of the change.
        alpha: the change is scaled by alpha/rank.
        generator: of the first values of `down` (None: PyTorch's global one).
    """

    def __init__(
        self, layer: nn.Module, rank: int, alpha: float, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        weight = layer.weight
        assert isinstance(weight, Tensor)
        self.scale, self.second_half_only = alpha / rank, False
        self.down = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
        self.up = nn.Parameter(weight.new_zeros(weight.shape[0], rank))
        # PyTorch's own start of a linear layer: uniform in ±1/sqrt(inputs).
        bound = 1 / math.sqrt(weight[0].numel())
        nn.init.uniform_(self.down, -bound, bound, generator=generator)

    def weight(self) -> Tensor:
        """The change, shaped like the layer's weight."""
        return self.scale * (self.up @ self.down.flatten(1)).reshape(-1, *self.down.shape[1:])

    def added(self, layer: nn.Module, x: Tensor, out: Tensor) -> Tensor:
        """The layer's output `out` for x, with what the change adds to it."""
        if not self.second_half_only:
            return out + self._change(layer, x)
        half = len(x) // 2
        return torch.cat([out[:half], out[half:] + self._change(layer, x[half:])])

    def _change(self, layer: nn.Module, x: Tensor) -> Tensor:
        if not isinstance(layer, _ConvNd):
            return self.scale * F.linear(F.linear(x, self.down), self.up)
        inner = layer._conv_forward(x, self.down, None)  # type: ignore[operator]
        return self.scale * F.linear(inner.movedim(1, -1), self.up).movedim(-1, 1)


def attach(
    net: nn.Module,
    rank: int = 4,
    *,
    alpha: float | None = None,
    layers: Sequence[str] = ("*",),
    generator: torch.Generator | None = None,
) -> list[nn.Parameter]:
    """Freeze a network and put an adapter beside its linear layers and convolutions.

    W·x + b becomes (W + (alpha/rank)·up·down)·x + b. As up starts at zero the network begins unchanged; the
    names of its own weights stay. Grouped and transposed convolutions get none, nor do layers whose weights
    are read without calling them (those of torch.nn.MultiheadAttention).

    Args:
        net: changed in place; nothing of it but the adapters requires a gradient afterwards.
        rank: of every change.
        alpha: None: the rank, which makes the scale 1.
        layers: patterns of names such as "blocks.*.mixed"; a layer that fits one of them gets an adapter.
        generator: of the first values.

    Returns:
        The adapters' parameters.

    Raises:
        ValueError: rank is below 1, alpha is not positive, no layer fits, or there are adapters already.

    Reference: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.

    Example:
        >>> net = nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))
        >>> sum(weight.numel() for weight in attach(net, rank=2, layers=("0",)))
        32
    """
    alpha = float(rank) if alpha is None else alpha
    if rank < 1 or not alpha > 0:
        raise ValueError(f"rank must be at least 1 and alpha positive, got rank={rank}, alpha={alpha}")
    if adapters(net):
        raise ValueError("net has adapters already; merge or detach them first")
    chosen = [layer for name, layer in _layers(net) if any(fnmatchcase(name, like) for like in layers)]
    if not chosen:
        known = ", ".join(name for name, _ in _layers(net))
        raise ValueError(f"layers {tuple(layers)} fit none of the layers that can have adapters: {known}")
    net.requires_grad_(False)
    for layer in chosen:
        layer.add_module(_NAME, LowRank(layer, rank, alpha, generator))
        layer.register_forward_hook(_add)
    return list(trainable(net))


def adapters(net: nn.Module) -> dict[str, LowRank]:
    """The adapters of a network by the name of their layer."""
    found = {name: getattr(layer, _NAME, None) for name, layer in net.named_modules()}
    return {name: adapter for name, adapter in found.items() if isinstance(adapter, LowRank)}


def trainable(net: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of the adapters."""
    for adapter in adapters(net).values():
        yield from adapter.parameters()


def merge(net: nn.Module) -> nn.Module:
    """Put the changes into the weights and take the adapters away: the same function as a plain network."""
    for name, adapter in adapters(net).items():
        weight = net.get_submodule(name).weight
        with torch.no_grad():
            weight.add_(adapter.weight())  # type: ignore[union-attr, operator]
    return detach(net)


def detach(net: nn.Module) -> nn.Module:
    """Take the adapters away, unused: the network is as it was, and still frozen."""
    for name in adapters(net):
        layer = net.get_submodule(name)
        delattr(layer, _NAME)
        for key in [key for key, hook in layer._forward_hooks.items() if hook is _add]:
            del layer._forward_hooks[key]
    return net


def adapter_state(net: nn.Module) -> dict[str, Tensor]:
    """The weights of the adapters alone, under the names that they have in `net.state_dict()`."""
    return {name: value for name, value in net.state_dict().items() if f".{_NAME}." in f".{name}"}


def load_adapter_state(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Take up the weights of `adapter_state` in a network with the same adapters.

    Raises:
        ValueError: the names are not those of this network's adapters.
    """
    own = adapter_state(net)
    if set(own) != set(state):
        raise ValueError(f"state must hold {sorted(own)}, got {sorted(state)}")
    net.load_state_dict(dict(state), strict=False)


def shared_copy(net: nn.Module) -> nn.Module:
    """A second network with the very same weights, not copies of them, that can get adapters of its own.

    A teacher and the fake score that is its low-rank change then need the memory of one.
    """
    kept = [*net.parameters(), *net.buffers()]
    return copy.deepcopy(net, {id(tensor): tensor for tensor in kept})


@contextmanager
def second_half(net: nn.Module) -> Iterator[None]:
    """Let the adapters act on the second half of the batch alone: one call for a network with and without.

    Layers must keep the batch first, as those of every network here do.
    """
    own = adapters(net).values()
    for adapter in own:
        adapter.second_half_only = True
    try:
        yield
    finally:
        for adapter in own:
            adapter.second_half_only = False


def _add(layer: nn.Module, inputs: tuple[Float[Tensor, "batch *inputs"], ...], out: Tensor) -> Tensor:
    adapter = getattr(layer, _NAME)
    return adapter.added(layer, inputs[0], out)


def _layers(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers that can have an adapter, by name."""
    unseen = tuple(name for name, part in net.named_modules() if isinstance(part, nn.MultiheadAttention))
    return [
        (name, layer)
        for name, layer in net.named_modules()
        if _fits(layer) and not any(name.startswith(f"{parent}.") for parent in unseen)
    ]


def _fits(layer: nn.Module) -> bool:
    convolution = isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and layer.groups == 1
    return convolution or isinstance(layer, nn.Linear)
