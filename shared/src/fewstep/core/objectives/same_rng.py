"""The same dropout masks in two calls of a network."""

from contextlib import AbstractContextManager

import torch


def same_rng(device: torch.device | str = "cpu") -> AbstractContextManager[None]:
    """Remember the global generators now; inside the returned context they run from here again.

    Dropout draws from the global generator of its device. A student and its target that see different masks
    differ by the masks, which the loss then reports as an error. After the context the generators stand where
    they stood before it. It may be entered more than once.

    Args:
        device: where the networks compute; the generator of the CPU is always included.

    Example:
        >>> dropout, x = torch.nn.Dropout(0.5), torch.ones(8)
        >>> again = same_rng()
        >>> first = dropout(x)
        >>> with again:
        ...     second = dropout(x)
        >>> torch.equal(first, second)
        True

    Reference: Song, Dhariwal, Chen and Sutskever 2023, "Consistency Models", appendix C.
    """
    return _SameRng(torch.device(device))


class _SameRng(AbstractContextManager[None]):
    def __init__(self, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        self._start = self._states()
        self._left: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def __enter__(self) -> None:
        self._left.append(self._states())
        self._restore(self._start)

    def __exit__(self, *_: object) -> None:
        self._restore(self._left.pop())

    def _states(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), None if self._cuda is None else torch.cuda.get_rng_state(self._cuda)

    def _restore(self, states: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        cpu, cuda = states
        torch.set_rng_state(cpu)
        if cuda is not None and self._cuda is not None:
            torch.cuda.set_rng_state(cuda, self._cuda)
