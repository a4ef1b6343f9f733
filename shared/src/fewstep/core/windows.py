"""Map a function over overlapping windows and blend its results, in bounded memory and with back-off."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.layout import Layout, Lengths, Ratio, Window, Windowing, ratios, scaled

# Windows -> results stacked along the batch axis: all samples of the first window, then of the second, ...
WindowFunction = Callable[[Sequence[Window]], Tensor]
Progress = Callable[[int, int], object]


class Band(NamedTuple):
    """Finished rows of a blended result: the first row's index and their values."""

    start: int
    values: Float[Tensor, "batch channels rows *rest"]


def windows(
    size: Sequence[int], window: Lengths, overlap: Lengths = 0, *, halo: Lengths = 0, multiple: int = 1
) -> Layout:
    """Overlapping windows of equal size that cover `size`, the last of each axis shifted inside.

    Args: as of `Windowing`.

    Raises:
        ValueError: when the overlap is not smaller than the window, or a length not a multiple of `multiple`.

    >>> [window.start for window in windows((11,), window=4, overlap=1)]
    [(0,), (3,), (6,), (7,)]
    """
    return Windowing(window, overlap, halo, multiple).layout(size)


def blend(
    function: WindowFunction,
    size: Sequence[int],
    window: Lengths,
    overlap: Lengths,
    *,
    halo: Lengths = 0,
    multiple: int = 1,
    batch: int = 1,
    scale: Ratio = 1,
    device: torch.device | str | None = None,
    progress: Progress | None = None,
) -> Float[Tensor, "batch channels *space"]:
    """Results of a function over overlapping windows, blended to one tensor: see `Blender.blend`.

    >>> x = torch.arange(12.0).reshape(1, 1, 12)
    >>> double = lambda group: torch.cat([2 * window.crop(x) for window in group])
    >>> torch.allclose(blend(double, (12,), window=5, overlap=2), 2 * x)
    True
    """
    blender = Blender(Windowing(window, overlap, halo, multiple), batch)
    return blender.blend(function, size, scale=scale, device=device, progress=progress)


class Blender:
    """Maps functions over windows and blends; remembers for the next call what fitted into memory.

    When memory runs out, it first halves the number of windows that run together, then the windows
    themselves, says so once (RuntimeWarning) and goes on; rows that were handed out are not computed again.

    Args:
        windowing: length, overlap and halo of the windows.
        batch: windows that run together, at most.
    """

    def __init__(self, windowing: Windowing, batch: int = 1) -> None:
        if batch < 1:
            raise ValueError(f"batch must be at least 1, not {batch}")
        self.windowing = windowing
        self.batch = batch
        self._warned = False

    def blend(
        self,
        function: WindowFunction,
        size: Sequence[int],
        *,
        scale: Ratio = 1,
        device: torch.device | str | None = None,
        progress: Progress | None = None,
    ) -> Float[Tensor, "batch channels *space"]:
        """The whole blended result, Σ_w weight_w · function(w), in float32 or better.

        Args:
            function: takes windows (in input samples) and returns their results stacked along the batch axis,
                (windows·batch, channels, *scale·window).
            size: lengths of the input's spatial axes.
            scale: output samples for one input sample, one ratio or one for each axis.
            device: where the canvas lives; default: where the results are.
            progress: called as progress(windows done, windows in all).

        Returns:
            Tensor (batch, channels, *scale·size).
        """
        shape = [scaled(length, ratio) for length, ratio in zip(size, ratios(scale, len(size)), strict=True)]
        canvas = None
        for start, rows in self.bands(function, size, scale=scale, device=device, progress=progress):
            if rows.shape[2] == shape[0]:
                return rows
            if canvas is None:
                canvas = rows.new_empty((*rows.shape[:2], *shape))
            canvas[:, :, start : start + rows.shape[2]] = rows
        assert canvas is not None
        return canvas

    def bands(
        self,
        function: WindowFunction,
        size: Sequence[int],
        *,
        scale: Ratio = 1,
        device: torch.device | str | None = None,
        progress: Progress | None = None,
    ) -> Iterator[Band]:
        """Finished bands of rows (first spatial axis) in order; only the unfinished rows are held in memory.

        Arguments as of `blend`. Bands have different heights and cover all rows exactly once.
        """
        size = tuple(size)
        finished = 0
        while finished < size[0]:
            # A sweep ends early when memory ran out; the next one goes on behind the finished rows.
            for band, complete in self._sweep(function, size, finished, scale, device, progress):
                finished = complete
                yield band

    def _sweep(
        self,
        function: WindowFunction,
        size: tuple[int, ...],
        finished: int,
        scale: Ratio,
        device: torch.device | str | None,
        progress: Progress | None,
    ) -> Iterator[tuple[Band, int]]:
        layout = self.windowing.layout(size)
        todo = [window for window in layout if window.start[0] + window.shape[0] > finished]
        row_ratio = ratios(scale, len(size))[0]
        canvas = _Canvas(layout, scale, scaled(finished, row_ratio), device)
        for first in range(0, len(todo), self.batch):
            group = todo[first : first + self.batch]
            results = self._evaluate(function, group, size)
            if results is None:
                return
            canvas.add(group, results)
            following = first + len(group)
            if progress is not None:
                progress(len(layout) - len(todo) + following, len(layout))
            # No later window starts above the next one, so the rows above it are complete.
            complete = todo[following].start[0] if following < len(todo) else size[0]
            if complete > finished:
                finished = complete
                yield canvas.release(scaled(finished, row_ratio)), finished

    def _evaluate(
        self, function: WindowFunction, group: list[Window], size: tuple[int, ...]
    ) -> Tensor | None:
        """The function's results, or None when memory ran out and the next try will be smaller."""
        try:
            return function(group)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not self._shrink(size):
                error.add_note(f"not even windows of {group[0].shape} fit into memory")
                raise
        # Only here, outside the handler, has the failed call let go of its tensors.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return None

    def _shrink(self, size: tuple[int, ...]) -> bool:
        if self.batch > 1:
            self.batch //= 2
        else:
            halved = self.windowing.halved(size)
            if halved is None:
                return False
            self.windowing = halved
        if not self._warned:
            shape = self.windowing.layout(size).shape
            warnings.warn(
                f"memory ran out: going on with {self.batch} window(s) of {shape} at a time, less if needed",
                RuntimeWarning,
                stacklevel=2,
            )
            self._warned = True
        return True


class _Canvas:
    """Weighted sums over the rows that are not finished."""

    def __init__(self, layout: Layout, scale: Ratio, top: int, device: torch.device | str | None) -> None:
        self.layout = layout
        self.scale = scale
        self.device = device
        self.top = top
        self.sums: Tensor | None = None

    def add(self, group: Sequence[Window], results: Tensor) -> None:
        shape = tuple(where.stop - where.start for where in group[0].slices(self.scale))
        if results.ndim != len(shape) + 2 or results.shape[2:] != shape or results.shape[0] % len(group):
            raise ValueError(
                f"function must return (windows·batch, channels, *{shape}) for {len(group)} windows, "
                f"not {tuple(results.shape)}"
            )
        dtype = torch.promote_types(results.dtype, torch.float32)
        results = results.to(self.device or results.device, dtype).unflatten(0, (len(group), -1))
        sums = self._reach(group[-1].slices(self.scale)[0].stop, results)
        for window, values in zip(group, results, strict=True):
            weight = self.layout.weight(window, self.scale).to(values)
            rows, *rest = window.slices(self.scale)
            # After a back-off a window may begin above the rows that are still open.
            above = max(self.top - rows.start, 0)
            where = slice(rows.start + above - self.top, rows.stop - self.top)
            sums[(..., where, *rest)].addcmul_(values[:, :, above:], weight[above:])

    def release(self, stop: int) -> Band:
        """Hand out the rows before `stop`."""
        assert self.sums is not None
        band = Band(self.top, self.sums[:, :, : stop - self.top])
        # A copy, so that the rows handed out are freed as soon as their taker is done with them.
        self.sums = self.sums[:, :, stop - self.top :].clone()
        self.top = stop
        return band

    def _reach(self, stop: int, like: Tensor) -> Tensor:
        """The sums, with room for the rows before `stop`."""
        old = self.sums
        if old is not None and stop <= self.top + old.shape[2]:
            return old
        width = [
            scaled(n, r) for n, r in zip(self.layout.size, ratios(self.scale, like.ndim - 3), strict=True)
        ]
        sums = like.new_zeros((*like.shape[1:3], stop - self.top, *width[1:]))
        if old is not None:
            sums[:, :, : old.shape[2]] = old
        self.sums = sums
        return sums


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on whatever device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    phrases = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in phrases)
