"""What a network is told besides x and t: bound once, immutable."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.core.layout import Window

# (name, tensor, is it spatial) -> tensor
ConditionMap = Callable[[str, Tensor, bool], Tensor]


class Conditions:
    """Named conditions of a batch of samples.

    A tensor has the batch first, either one entry for each sample or a single one for all; a 0-d tensor and
    anything that is not a tensor is passed on as it is. Spatial conditions (batch, channels, *space) lie on
    the sample's own grid, at any scale, and are cropped with it.
    """

    def __init__(self, values: Mapping[str, Any] | None = None, spatial: Iterable[str] = ()) -> None:
        self.values: Mapping[str, Any] = MappingProxyType(dict(values or {}))
        self.spatial = frozenset(spatial)
        for name in self.spatial:
            if name not in self.values:
                raise ValueError(f"spatial names {name!r}, which is not bound; bound: {sorted(self.values)}")
            value = self.values[name]
            if not isinstance(value, Tensor) or value.ndim < 3:
                shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise ValueError(f"spatial condition {name!r} must be (batch, channels, *space), not {shape}")

    def given(self, spatial: Iterable[str], values: Mapping[str, Any]) -> "Conditions":
        """These conditions with others added or replaced; a replaced one stays spatial."""
        if isinstance(spatial, str):
            raise TypeError(
                f"spatial must be a sequence of names such as ({spatial!r},), not the string {spatial!r}"
            )
        return Conditions({**self.values, **values}, {*self.spatial, *spatial})

    def mapped(self, function: ConditionMap) -> "Conditions":
        """These conditions with a function applied to every batched tensor."""
        changed = {
            name: function(name, value, name in self.spatial) if is_batched(value) else value
            for name, value in self.values.items()
        }
        return Conditions(changed, self.spatial)


@contextmanager
def keepable() -> Iterator[None]:
    """Tensors made inside may be kept for later calls that need gradients, unlike inference tensors."""
    grad = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.set_grad_enabled(grad):
        yield


def condition_names(net: Callable[..., Any]) -> frozenset[str] | None:
    """Names of a network's arguments after x and t; None when it takes any."""
    try:
        signature = inspect.signature(net.forward if isinstance(net, nn.Module) else net)
    except (TypeError, ValueError):
        return None
    parameters = list(signature.parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return frozenset(p.name for p in parameters[2:] if p.kind in named)


def is_batched(value: Any) -> bool:
    """Whether a condition has one entry for each sample."""
    return isinstance(value, Tensor) and value.ndim > 0


def expanded(name: str, value: Tensor, batch: int) -> Tensor:
    """View of a condition with exactly `batch` entries.

    Raises:
        ValueError: when it has neither one entry nor `batch`.
    """
    if value.shape[0] == batch:
        return value
    if value.shape[0] != 1:
        raise ValueError(
            f"condition {name!r} has {value.shape[0]} entries; x has {batch} samples (1 fits all)"
        )
    return value.expand(batch, *value.shape[1:])


def repeating(count: int) -> ConditionMap:
    """Repeats every entry `count` times in place: 0 0 0 1 1 1 for count 3."""

    def repeat(name: str, value: Tensor, spatial: bool) -> Tensor:
        return value if value.shape[0] == 1 else value.repeat_interleave(count, dim=0)

    return repeat


def cropping(windows: Sequence[Window], size: Sequence[int], batch: int) -> ConditionMap:
    """Crops what is spatial to each window, at its own scale, and repeats the rest for each window."""

    def crop(name: str, value: Tensor, spatial: bool) -> Tensor:
        if not spatial:
            return value if value.shape[0] == 1 else value.repeat(len(windows), *[1] * (value.ndim - 1))
        scale = scale_of(name, value, size)
        value = expanded(name, value, batch)
        return torch.cat([window.crop(value, scale) for window in windows])

    return crop


def scale_of(name: str, value: Tensor, size: Sequence[int]) -> tuple[Fraction, ...]:
    """Length of a spatial condition relative to x, for each axis."""
    if value.ndim - 2 != len(size):
        raise ValueError(
            f"spatial condition {name!r} is {tuple(value.shape)}, but x has {len(size)} spatial axes"
        )
    return tuple(Fraction(have, full) for have, full in zip(value.shape[2:], size, strict=True))
