"""Noise: one generator per sample, and a Gaussian field that has a value at every position."""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

_MASK = (1 << 64) - 1
_BLOCK_VALUES = 4096
"""Positions in a block: small enough to waste little at a window's border, large enough to seed rarely."""


@runtime_checkable
class NoiseSource(Protocol):
    """Anything that writes standard normal draws into a buffer."""

    def fill(self, out: Tensor) -> None:
        """Overwrite `out`, shape (batch, ...), with fresh draws."""
        ...


class SampleNoise:
    """One generator per sample, so that a sample does not depend on its batch mates.

    Args:
        seed: sample i draws from seed + i; or one seed per sample.
        batch: number of samples.
        device: where the draws are made.

    Raises:
        ValueError: if the number of seeds is not the batch size.
    """

    def __init__(self, seed: int | Sequence[int], batch: int, device: torch.device | str = "cpu") -> None:
        seeds = [seed + i for i in range(batch)] if isinstance(seed, int) else list(seed)
        if len(seeds) != batch:
            raise ValueError(
                f"seed holds {len(seeds)} seeds for a batch of {batch}; give one int or one per sample"
            )
        self._generators = [torch.Generator(device).manual_seed(s & _MASK) for s in seeds]

    def fill(self, out: Float[Tensor, "batch *rest"]) -> None:
        """Overwrite every sample of `out` from its own generator."""
        for sample, generator in zip(out, self._generators, strict=True):
            sample.normal_(generator=generator)


class GivenNoise:
    """Draws that come from a function `noise(like) -> Tensor`.

    Args:
        function: returns a tensor shaped like its argument.

    Raises:
        ValueError: (on a draw) if the function returns another shape.
    """

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self._function = function

    def fill(self, out: Float[Tensor, "batch *rest"]) -> None:
        """Overwrite `out` with the function's next tensor."""
        drawn = self._function(out)
        if drawn.shape != out.shape:
            raise ValueError(
                f"noise(like) must return shape {tuple(out.shape)}, it returned {tuple(drawn.shape)}"
            )
        out.copy_(drawn)


class NoiseField:
    """A Gaussian field over an unbounded N-d grid: each (draw, channel, position) has one fixed value.

    Overlapping windows see the same noise and no window needs the whole field in memory. The grid is cut into
    blocks, and each block has a generator seeded by (seed, draw, block).

    Example:
        >>> field = NoiseField(seed=3, channels=2)
        >>> whole = field.crop(0, origin=(0, 0), size=(100, 90))
        >>> bool((field.crop(0, origin=(40, 10), size=(50, 70)) == whole[:, 40:90, 10:80]).all())
        True

    Args:
        seed: chooses the field.
        channels: values at each position.
    """

    def __init__(self, seed: int, channels: int) -> None:
        if channels < 1:
            raise ValueError(f"channels must be at least 1, not {channels}")
        self.seed = seed
        self.channels = channels

    def crop(
        self,
        draw: int,
        origin: Sequence[int],
        size: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "channels *space"]:
        """The field in a box.

        Args:
            draw: which of the independent fields (0 the start noise, 1 … the draws of a stochastic solver).
            origin: first position in each dimension; may be negative.
            size: extent in each dimension.
            device: where the result lies; the values do not depend on it.
            dtype: of the result; the values are drawn in float32.

        Returns:
            Shape (channels, *size).

        Raises:
            ValueError: if origin and size differ in length or a size is negative.
        """
        if len(origin) != len(size) or not size:
            raise ValueError(
                f"origin {tuple(origin)} and size {tuple(size)} must have the same length, at least 1"
            )
        if any(extent < 0 for extent in size):
            raise ValueError(f"size must not be negative, it is {tuple(size)}")
        edge = max(1, round(_BLOCK_VALUES ** (1 / len(size))))
        out = torch.empty((self.channels, *size))
        spans = [
            range(o // edge, -(-(o + extent) // edge)) if extent else range(0)
            for o, extent in zip(origin, size, strict=True)
        ]
        for block in product(*spans):
            target, source = [slice(None)], [slice(None)]
            for index, o, extent in zip(block, origin, size, strict=True):
                low, high = max(index * edge, o), min((index + 1) * edge, o + extent)
                target.append(slice(low - o, high - o))
                source.append(slice(low - index * edge, high - index * edge))
            out[tuple(target)] = self._block(draw, block, edge)[tuple(source)]
        return out.to(device=device, dtype=dtype)

    def window(self, origin: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """A `noise(like)` function for `sample`: successive draws of the field in the window at `origin`.

        Args:
            origin: first position of the window; its size is that of the tensor asked for,
                (batch, channels, *space).
        """
        count = 0

        def noise(like: Tensor) -> Tensor:
            nonlocal count
            drawn = self.crop(count, origin, like.shape[2:], like.device, like.dtype)
            count += 1
            return drawn.expand(like.shape)

        return noise

    def _block(self, draw: int, block: tuple[int, ...], edge: int) -> Tensor:
        # torch generators keep 32 bits of a seed, too few for the blocks of a large image; NumPy hashes all
        key = [number * 2 if number >= 0 else -2 * number - 1 for number in (self.seed, draw, *block)]
        values = np.random.default_rng(key).standard_normal(
            (self.channels, *(edge,) * len(block)), np.float32
        )
        return torch.from_numpy(values)
