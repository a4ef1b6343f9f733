"""Values that are computed once and reused until what they were computed from changes."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Value = TypeVar("Value")


class Remembered(Generic[Value]):
    """The last few values of a pure function of tensors.

    A value is reused only while every input is the same tensor object, unchanged in place (autograd's version
    counter) and neither moved nor cast. Nothing is remembered where gradients are recorded (training), inside
    a compiled graph, or for tensors made in inference mode (they count no versions). Writing in place through
    `.data` is invisible to the version counter: call `clear` after such a write.

    Args:
        size: how many values are kept; the one unused for the longest time is dropped.

    Example:
        >>> remembered = Remembered(2)
        >>> x = torch.ones(3)
        >>> with torch.no_grad():
        ...     first = remembered.get((x,), lambda: x.sum())
        ...     again = remembered.get((x,), lambda: x.sum())
        ...     _ = x.add_(1)
        ...     later = remembered.get((x,), lambda: x.sum())
        >>> first is again, later.item()
        (True, 6.0)
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: OrderedDict[Hashable, tuple[object, Value]] = OrderedDict()

    def get(self, inputs: tuple[Tensor, ...], compute: Callable[[], Value]) -> Value:
        """The value for these inputs: remembered, or computed now."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or any(x.is_inference() for x in inputs):
            return compute()
        device = inputs[0].device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        key = (autocast, *((id(x), x._version, x.data_ptr(), x.dtype) for x in inputs))
        entry = self._entries.get(key)
        if entry is None:
            # The inputs are held, so that no other tensor can take over their identities, and their memory,
            # so that weights that are cast twice cannot come back to the same address with other values.
            held = inputs, tuple(x.detach() for x in inputs)
            entry = self._entries[key] = (held, compute())
            while len(self._entries) > self.size:
                self._entries.popitem(last=False)
        else:
            self._entries.move_to_end(key)
        return entry[1]

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()

    def __reduce__(self) -> tuple[type, tuple[int]]:
        # A copy or an unpickled module starts with nothing remembered: identities do not travel.
        return Remembered, (self.size,)


class Remembering(nn.Module):
    """A module that forgets what it remembered when it is cast, moved, or set to training or evaluation."""

    def forget(self) -> None:
        """Drop remembered values."""
        for value in vars(self).values():
            if isinstance(value, Remembered):
                value.clear()

    def train(self, mode: bool = True) -> "Remembering":
        """Set the mode as every module does, and forget."""
        self.forget()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Remembering":
        self.forget()
        return super()._apply(fn, recurse)
