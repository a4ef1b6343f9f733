"""The temporal U-Net for inference: the same function in a fraction of the time on a CPU."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .fast_layers import conv_block, convolution, lengthening, residual_block
from .time_embedding import spread_times
from .unet1d import ConditionalUnet1D
from .unet1d_blocks import ConditionalResidualBlock1D

KEPT_TIMES = 1024  # a sampler visits a few dozen; one that makes new times should not fill the memory


class FastUnet1D:
    """A ConditionalUnet1D that is called in the same way, without gradients, and gives the same numbers.

    Convolutions are matrix products (see `fast_layers`). What modulates a block is W_t·mish(time) +
    W_c·mish(condition): the first part is remembered for every time that was asked for, the second for the
    last condition, each made for all blocks in one product.

    The weights are copied: make another one when they change. It is not safe to call from several threads at
    the same time.

    Args:
        net: the network.
        dtype: that the weights of the convolutions are stored in (None: as they are). torch.bfloat16 halves
            the memory that a call reads; an output then has an error of about one percent.

    Raises:
        TypeError: net is another network, or dtype is not a floating-point type.

    Example:
        >>> from fewstep.policy.nets.unet1d import Unet1dConfig
        >>> net = ConditionalUnet1D(Unet1dConfig(2, embedding=16, down_dims=(8, 16)))
        >>> x = torch.randn(1, 16, 2)
        >>> torch.allclose(FastUnet1D(net)(x, 5), net(x, 5), atol=1e-5)
        True
    """

    def __init__(self, net: nn.Module, dtype: torch.dtype | None = None) -> None:
        if not isinstance(net, ConditionalUnet1D):
            raise TypeError(f"net must be a ConditionalUnet1D, got {type(net).__name__}")
        own = next(net.parameters()).dtype
        stored = own if dtype is None else dtype
        if not stored.is_floating_point:
            raise TypeError(f"dtype must be a floating-point type, got {dtype}")
        self.config, self.check = net.config, net.check
        blocks: list[tuple[ConditionalResidualBlock1D, bool]] = []

        def made(modules: list[nn.Module], part: str) -> list:
            """The fast blocks of a level; what they are told is made in this order."""
            blocks.extend((block, part in net.config.conditioned) for block in modules)  # type: ignore[misc]
            return [residual_block(block, stored) for block in modules]  # type: ignore[arg-type]

        self._local = None
        if net.local_cond_encoder is not None:
            blocks.append((net.local_cond_encoder[0], True))  # type: ignore[arg-type]
            self._local = residual_block(blocks[0][0], stored)
        self._down = [made([level[0], level[1]], "down") for level in net.down_modules]  # type: ignore[index]
        self._mid = made([*net.mid_modules], "mid")
        self._up = [made([level[0], level[1]], "up") for level in net.up_modules]  # type: ignore[index]
        self._shorter = [convolution(level[2].conv, stored) for level in net.down_modules[:-1]]  # type: ignore[index, union-attr]
        self._longer = [lengthening(level[2].conv, stored) for level in net.up_modules]  # type: ignore[index, union-attr]
        self._last = conv_block(net.final_conv[0], stored), convolution(net.final_conv[1], own)
        self._modulations = _Modulations(net, blocks)

    @torch.no_grad()
    def __call__(
        self,
        x: Float[Tensor, "batch horizon numbers"],
        t: Shaped[Tensor, "*batch"] | float,
        s: Shaped[Tensor, "*batch"] | float | None = None,
        *,
        local_cond: Float[Tensor, "batch horizon local"] | None = None,
        global_cond: Float[Tensor, "batch global"] | None = None,
    ) -> Float[Tensor, "batch horizon numbers"]:
        """As of `ConditionalUnet1D`."""
        self.check(x, s, local_cond, global_cond)
        told = self._modulations(x, t, s, global_cond)
        added = None
        if self._local is not None and local_cond is not None:
            added = self._local(local_cond, next(told))
        h, skips = x, []
        for level, (first, second) in enumerate(self._down):
            h = first(h, next(told))
            h = second(h if added is None or level else h + added, next(told))
            skips.append(h)
            if level < len(self._shorter):
                h = self._shorter[level](h)
        for block in self._mid:
            h = block(h, next(told))
        for (first, second), longer in zip(self._up, self._longer, strict=True):
            h = first(torch.cat([h, skips.pop()], dim=2), next(told))
            h = longer(second(h, next(told)))
        block, project = self._last
        return project(block(h))


class _Modulations:
    """What every block is told, for all blocks at once.

    Args:
        net: the network.
        blocks: in the order in which they run, and whether each is told anything.
    """

    def __init__(self, net: ConditionalUnet1D, blocks: list[tuple[ConditionalResidualBlock1D, bool]]) -> None:
        self.embed = net.time_embedding
        self.told = [conditioned for _, conditioned in blocks]
        self.encoders: list[nn.Sequential] = [block.cond_encoder for block, told in blocks if told]
        # A perceptron mixes time and condition before it is linear: nothing can be remembered.
        self.mixed = net.config.condition == "mlp_film"
        if self.mixed or not self.encoders:
            return
        size = net.config.embedding
        layers = [layer for encoder in self.encoders for layer in encoder if isinstance(layer, nn.Linear)]
        weight = torch.cat([layer.weight.detach() for layer in layers])
        self.bias = torch.cat([layer.bias.detach() for layer in layers])
        self.of_time = weight[:, :size].t().contiguous()
        self.of_condition = weight[:, size:].t().contiguous()
        self.sizes = [layer.out_features for layer in layers]
        self._times: dict[tuple[float, float | None], Tensor] = {}
        self._last: tuple[Tensor, int, Tensor] | None = None

    def __call__(
        self, x: Tensor, t: Tensor | float, s: Tensor | float | None, condition: Tensor | None
    ) -> Iterator[Tensor | None]:
        """Rows of numbers per sample, one tensor per block (None for a block that is told nothing)."""
        if not self.encoders:
            parts = iter(())
        elif self.mixed:
            told = self._embedded(x, t, s)
            told = told if condition is None else torch.cat([told, condition], dim=1)
            parts = iter([encoder(told) for encoder in self.encoders])
        else:
            rows = self._time_part(x, t, s)
            rows = rows if condition is None else rows + self._condition_part(condition)
            parts = iter(rows.split(self.sizes, dim=1))
        return (next(parts) if told else None for told in self.told)

    def _embedded(self, x: Tensor, t: Tensor | float, s: Tensor | float | None) -> Tensor:
        return self.embed(spread_times(t, x), None if s is None else spread_times(s, x))

    def _time_part(self, x: Tensor, t: Tensor | float, s: Tensor | float | None) -> Tensor:
        """W_t·mish(time) + b, of one row where all samples have the same time."""
        key = None if x.is_cuda else _one_time(t, s)
        if key is None:
            return torch.addmm(self.bias, F.mish(self._embedded(x, t, s)), self.of_time)
        known = self._times.get(key)
        if known is None:
            if len(self._times) >= KEPT_TIMES:
                self._times.clear()
            made = self._embedded(x[:1], *key)
            known = self._times[key] = torch.addmm(self.bias, F.mish(made), self.of_time)
        return known

    def _condition_part(self, condition: Tensor) -> Tensor:
        """W_c·mish(condition), made again only for another condition."""
        version = -1 if condition.is_inference() else condition._version
        if self._last is not None and self._last[0] is condition and 0 <= self._last[1] == version:
            return self._last[2]
        made = F.mish(condition) @ self.of_condition
        self._last = (condition, version, made)
        return made


def _one_time(t: Tensor | float, s: Tensor | float | None) -> tuple[float, float | None] | None:
    """The time that all samples share, and the one to jump to; None where they differ."""
    values: list[float | None] = []
    for time in (t, s):
        if isinstance(time, Tensor):
            first = time.reshape(-1)[0]
            if time.numel() > 1 and not bool((time == first).all()):
                return None
            values.append(first.item())
        else:
            values.append(time)
    assert values[0] is not None
    return values[0], values[1]
