"""IDM's noise estimator: Stable Diffusion's U-Net cut to two levels, its layers wired to be invertible."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .idm_blocks import Gram, Injector, PlainBlock, ResnetBlock, SpatialTransformer
from .invertible import Chain, Link, keeping
from .resblock import Upsample


@dataclass(frozen=True)
class Shape:
    """Sizes of the U-Net; the defaults are the published ones.

    Args:
        channels: features of the two levels.
        heads: of every attention.
        groups: of every group normalisation.
        steps: sampling steps, each with injectors of its own.
        fold: side of the squares of pixels that become channels before the first layer.
        attention: whether a level's layers hold an attention. Its cost grows with the square of the pixels.
        normalised: residual blocks with group normalisation; otherwise plain ones.
        wiring: v of every coupling at the start of training.

    Raises:
        ValueError: a size that cannot be built.
    """

    channels: tuple[int, int] = (320, 640)
    heads: int = 8
    groups: int = 32
    steps: int = 3
    fold: int = 2
    attention: tuple[bool, bool] = (True, True)
    normalised: bool = True
    wiring: float = 0.5

    def __post_init__(self) -> None:
        for name in ("heads", "groups", "steps", "fold"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for level, channels in enumerate(self.channels):
            if channels < 1 or channels % (self.fold << level) ** 2:
                raise ValueError(
                    f"channels of level {level} must be a multiple of {(self.fold << level) ** 2}, "
                    f"the pixels of a place, got {channels}"
                )
            if self.normalised and channels % self.groups:
                raise ValueError(f"channels must be multiples of groups {self.groups}, got {channels}")
            if self.attention[level] and channels % self.heads:
                raise ValueError(f"channels must be multiples of heads {self.heads}, got {channels}")
        if not 0 < self.wiring < 1:
            raise ValueError(f"wiring must lie in (0, 1), got {self.wiring}")

    def resnet(self, channels: int, out_channels: int) -> nn.Module:
        """A residual block."""
        if self.normalised:
            return ResnetBlock(channels, out_channels, self.groups)
        return PlainBlock(channels, out_channels)


@dataclass(frozen=True, eq=False)
class Situation:
    """What the layers are told beside their features, and how chains are run.

    Args:
        seen: Aᵀ y.
        gram: z → Aᵀ A z.
        step: whose injectors are used, from 0.
        chain: `keeping` or `recomputing`.
    """

    seen: Float[Tensor, "batch 1 h w"]
    gram: Gram
    step: int
    chain: Chain = keeping

    def once(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Apply a layer that has no inverse; where chains recompute, it is run again for its gradients."""
        if self.chain is keeping or not torch.is_grad_enabled():
            return layer(x)
        made = checkpoint(layer, x, use_reentrant=False)
        assert isinstance(made, Tensor)
        return made


class Coupling(nn.Module):
    """The learned mixing weight v of one coupling."""

    def __init__(self, v: float) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.tensor([v]))

    def link(self, body: Callable[..., Tensor], *modules: nn.Module, told: tuple[Tensor, ...] = ()) -> Link:
        """The coupling around a function that uses the weights of some modules."""
        return Link(body, self.v, told, tuple(p for module in modules for p in module.parameters()))


class Level(nn.Module):
    """What both halves of a level share: residual blocks, attentions, injectors.

    Args:
        shape: sizes of the network.
        level: 0 or 1, counted from the image.
        widths: channels that each residual block takes.
    """

    def __init__(self, shape: Shape, level: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        channels = shape.channels[level]
        self.resnets = nn.ModuleList([shape.resnet(width, channels) for width in widths])
        attentions = len(widths) if shape.attention[level] else 0
        self.attentions = nn.ModuleList(
            [SpatialTransformer(channels, shape.heads, shape.groups) for _ in range(attentions)]
        )
        factor = shape.fold << level
        self.injectors = nn.ModuleList(
            [Injector(channels, factor, shape.steps) for _ in range(2 * len(widths))]
        )
        self.input_help_scale_factor = nn.Parameter(torch.ones(1))

    def after_resnet(self, index: int) -> list[nn.Module]:
        """The modules that follow a residual block."""
        before, after = self.injectors[2 * index], self.injectors[2 * index + 1]
        return [before, *([self.attentions[index]] if len(self.attentions) else []), after]

    def links(
        self, index: int, couplings: Sequence[nn.Module], at: Situation, skip: Tensor | None = None
    ) -> list[Link]:
        """A layer as links: residual block (where it has a coupling), injector, attention, injector."""
        modules = self.after_resnet(index)
        if len(couplings) > len(modules):
            modules = [self.resnets[index], *modules]
        links = []
        for coupling, module in zip(couplings, modules, strict=True):
            assert isinstance(coupling, Coupling)
            if isinstance(module, Injector):
                links.append(
                    coupling.link(partial(inject, module, at.gram, at.step), module, told=(at.seen,))
                )
            elif module is self.resnets[index] and skip is not None:
                links.append(coupling.link(partial(join, module), module, told=(skip,)))
            else:
                links.append(coupling.link(module, module))
        return links


class DownBlock(Level):
    """Two layers, each giving a skip; then a strided convolution, but on the last level."""

    def __init__(self, shape: Shape, level: int) -> None:
        channels = shape.channels[level]
        super().__init__(shape, level, (shape.channels[0], channels))
        inner = len(self.after_resnet(0))
        # A residual block that changes the number of channels has no place in a chain.
        self.wired = channels == shape.channels[0]
        counts = (inner + self.wired, inner + 1)
        self.rev_module_lists = nn.ModuleList(
            [nn.ModuleList([Coupling(shape.wiring) for _ in range(count)]) for count in counts]
        )
        self.merge_scale_factors = nn.Parameter(torch.zeros(2))
        self.downsamplers = nn.ModuleList([Downsample(channels)] if level == 0 else [])

    def forward(self, x: Tensor, at: Situation) -> tuple[Tensor, list[Tensor]]:
        """Features, and the skips of the level."""
        if not self.wired:
            x = at.once(self.resnets[0], x)
        x1, x2 = x, self.input_help_scale_factor.to(x.dtype) * x
        skips = []
        for index, couplings in enumerate(self.rev_module_lists):
            x1, x2 = at.chain(x1, x2, self.links(index, list(couplings.children()), at))
            skips.append(x1 + self.merge_scale_factors[index].to(x1.dtype) * x2)
        x = skips[-1]
        if len(self.downsamplers):
            x = at.once(self.downsamplers[0], x)
            skips.append(x)
        return x, skips


class UpBlock(Level):
    """Three layers, each told a skip; then an enlargement, but on the first level.

    Args:
        shape: sizes of the network.
        level: 0 or 1.
        above: channels that come in.
        skips: channels of the skips, last one first.
    """

    def __init__(self, shape: Shape, level: int, above: int, skips: tuple[int, int, int]) -> None:
        channels = shape.channels[level]
        widths = (above + skips[0], channels + skips[1], channels + skips[2])
        super().__init__(shape, level, widths)
        count = 3 * len(self.after_resnet(0)) + 2
        self.rev_module_list = nn.ModuleList([Coupling(shape.wiring) for _ in range(count)])
        self.merge_scale_factor = nn.Parameter(torch.zeros(1))
        self.upsamplers = nn.ModuleList([Upsample(channels)] if level else [])

    def forward(self, x: Tensor, skips: list[Tensor], at: Situation) -> Tensor:
        """Features joined with three skips, the last of which is joined first."""
        x = at.once(self.resnets[0], torch.cat([x, skips[-1]], dim=1))
        x1, x2 = x, self.input_help_scale_factor.to(x.dtype) * x
        couplings = list(self.rev_module_list)
        size = len(self.after_resnet(0))
        links = self.links(0, couplings[:size], at)
        links += self.links(1, couplings[size : 2 * size + 1], at, skips[-2])
        links += self.links(2, couplings[2 * size + 1 :], at, skips[-3])
        x1, x2 = at.chain(x1, x2, links)
        x = x1 + self.merge_scale_factor.to(x1.dtype) * x2
        return at.once(self.upsamplers[0], x) if len(self.upsamplers) else x


class CutUNet(nn.Module):
    """Stable Diffusion 1.5's U-Net without times, texts and its two deepest levels, with injectors.

    Between its halves the features are repeated, so that weights of the uncut network fit.

    Args:
        shape: its sizes.

    Reference: Chen et al. 2025, "Invertible Diffusion Models for Compressed Sensing", sections 3.2 and 3.3.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        low, high = shape.channels
        self.conv_in = nn.Conv2d(shape.fold**2, low, 3, padding=1)
        self.down_blocks = nn.ModuleList([DownBlock(shape, 0), DownBlock(shape, 1)])
        self.up_blocks = nn.ModuleList(
            [UpBlock(shape, 1, 2 * high, (high, high, low)), UpBlock(shape, 0, high, (low, low, low))]
        )
        self.conv_norm_out = nn.GroupNorm(shape.groups, low, eps=1e-5) if shape.normalised else nn.Identity()
        self.conv_out = nn.Conv2d(low, shape.fold**2, 3, padding=1)
        # A fresh network sees no noise: the first reconstruction is then Aᵀ y.
        nn.init.zeros_(self.conv_out.weight)
        assert self.conv_out.bias is not None
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, image: Float[Tensor, "batch 1 h w"], at: Situation) -> Float[Tensor, "batch 1 h w"]:
        """The noise in an image; sides are multiples of 2 · fold."""
        x = self.conv_in(F.pixel_unshuffle(image, self.shape.fold))
        skips = [x]
        for block in self.down_blocks:
            x, given = block(x, at)
            skips += given
        x = torch.cat([x, x], dim=1)
        for block in self.up_blocks:
            x = block(x, skips[-3:], at)
            skips = skips[:-3]
        return F.pixel_shuffle(self.conv_out(F.silu(self.conv_norm_out(x))), self.shape.fold)


class Downsample(nn.Module):
    """Half the resolution by a strided 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        return self.conv(x)


def inject(injector: Injector, gram: Gram, step: int, x: Tensor, seen: Tensor) -> Tensor:
    """An injector as a function of what it has gradients of."""
    return injector(x, seen, gram, step)


def join(resnet: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
    """A residual block of features and a skip."""
    return resnet(torch.cat([x, skip], dim=1))
