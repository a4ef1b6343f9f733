"""ResShift's network: a U-Net with window attention that sees the low-quality image."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .cache import Remembered, Remembering
from .resblock import REMEMBERED_TIMES, Downsample, ResBlock, Stage, Upsample, timestep_embedding, zero
from .swin import SwinLayer


class UNetModelSwin(Remembering):
    """U-Net of residual blocks with one window-attention layer per resolution, for ResShift.

    Parameter names are those of the published checkpoints. The condition, the low-quality image with the mask
    where there is one, is joined to the noisy image; a larger one is first brought down to the latent's size
    by the feature extractor. What depends on the time or on the weights alone is remembered between calls
    without gradients.

    Args:
        image_size: side of the maps it was built for; decides where attention goes and where windows shift.
        in_channels: channels of the noisy image or latent.
        model_channels: base width (a multiple of 32).
        out_channels: channels of the prediction.
        attention_resolutions: resolutions, counted down from image_size, with attention (the middle always).
        num_res_blocks: residual blocks of each level.
        channel_mult: width of each level, in base widths.
        num_head_channels: channels per attention head.
        swin_depth: blocks per attention layer.
        swin_embed_dim: width of the attention layers (a multiple of 32 and of num_head_channels).
        window_size: side of an attention window.
        mlp_ratio: hidden width of their MLPs, in widths.
        dropout: probability of dropping a feature in training.
        cond_lq: whether there is a low-quality image.
        cond_mask: whether it comes with a mask channel (inpainting).
        lq_size: side of the low-quality image for a map of side image_size: 1, 2, 4, 8 … times it.

    Raises:
        ValueError: where sizes do not fit each other.

    Example:
        >>> net = UNetModelSwin(16, model_channels=32, attention_resolutions=(16,), num_res_blocks=(1, 1),
        ...     channel_mult=(1, 1), swin_embed_dim=32, lq_size=16)
        >>> net(torch.zeros(2, 3, 16, 32), torch.tensor([3, 3]), lq=torch.zeros(2, 3, 16, 32)).shape
        torch.Size([2, 3, 16, 32])

    Reference: Yue, Wang & Loy 2023, "ResShift: Efficient Diffusion Model for Image Super-resolution by
        Residual Shifting", and its journal version of 2024, section 3.
    """

    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 3,
        model_channels: int = 160,
        out_channels: int = 3,
        attention_resolutions: Sequence[int] = (64, 32, 16, 8),
        num_res_blocks: Sequence[int] = (2, 2, 2, 2),
        channel_mult: Sequence[float] = (1, 2, 2, 4),
        num_head_channels: int = 32,
        swin_depth: int = 2,
        swin_embed_dim: int = 192,
        window_size: int = 8,
        mlp_ratio: float = 4,
        dropout: float = 0.0,
        cond_lq: bool = True,
        cond_mask: bool = False,
        lq_size: int = 64,
    ) -> None:
        super().__init__()
        check_multiple("model_channels", model_channels, 32)
        check_multiple("swin_embed_dim", swin_embed_dim, math.lcm(32, num_head_channels))
        check_multiple("image_size", image_size, 2 ** (len(channel_mult) - 1))
        check_levels(num_res_blocks, channel_mult)
        sides = [image_size >> level for level in range(len(channel_mult))]
        widths = [int(mult * model_channels) for mult in channel_mult]
        attended = [side in attention_resolutions for side in sides]
        heads = swin_embed_dim // num_head_channels
        embedding = 4 * model_channels

        def attention(level: int) -> SwinLayer:
            side, width = sides[level], widths[level]
            return SwinLayer(width, swin_embed_dim, heads, swin_depth, side, window_size, mlp_ratio)

        def stage(channels: int, level: int, first: bool) -> Stage:
            layers: list[nn.Module] = [ResBlock(channels, widths[level], embedding, dropout)]
            return Stage([*layers, attention(level)] if first and attended[level] else layers)

        # A map must divide into whole windows wherever there is attention.
        windows = [
            min(window_size, side) * (image_size // side)
            for side, attends in zip(sides, [*attended[:-1], True], strict=True)
            if attends
        ]
        self.size_multiple = math.lcm(2 ** (len(sides) - 1), *windows)
        self.model_channels = model_channels
        self.condition_scale = condition_scale(lq_size, image_size)
        self.condition_channels = (3 + cond_mask) * cond_lq
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        extractor, extracted = feature_extractor(self.condition_channels, self.condition_scale)
        self.feature_extractor = extractor
        self.input_blocks, skips = encoder(in_channels + extracted, widths, num_res_blocks, stage)
        self.middle_block = Stage(
            [
                ResBlock(widths[-1], widths[-1], embedding, dropout),
                attention(-1),
                ResBlock(widths[-1], widths[-1], embedding, dropout),
            ]
        )
        self.output_blocks = decoder(skips, widths, num_res_blocks, stage)
        self.out = nn.Sequential(
            nn.GroupNorm(32, widths[0]), nn.SiLU(), zero(nn.Conv2d(widths[0], out_channels, 3, padding=1))
        )
        self.remembered: Remembered[Tensor] = Remembered(REMEMBERED_TIMES)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in; its output has the dtype of its input."""
        return next(self.time_embed.parameters()).dtype

    def condition(
        self,
        lq: Float[Tensor, "batch 3 h_lq w_lq"],
        mask: Float[Tensor, "batch 1 h_lq w_lq"] | None = None,
    ) -> Float[Tensor, "batch features h w"]:
        """What is joined to the noisy image: compute it once and pass it as `features` at every step.

        Args:
            lq: low-quality image in [-1, 1], condition_scale times as large as the latent.
            mask: +1 where the image is unknown, -1 where it is known (networks with cond_mask).
        """
        given = lq if mask is None else torch.cat([lq, mask], dim=1)
        if given.shape[1] != self.condition_channels:
            raise ValueError(
                f"the network is conditioned on {self.condition_channels} channels (image 3, mask 1), "
                f"but lq and mask have {given.shape[1]} together"
            )
        return self.feature_extractor(given.to(self.dtype))

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Tensor,
        lq: Float[Tensor, "batch 3 h_lq w_lq"] | None = None,
        mask: Float[Tensor, "batch 1 h_lq w_lq"] | None = None,
        features: Float[Tensor, "batch features h w"] | None = None,
    ) -> Float[Tensor, "batch out_channels h w"]:
        """Predict from the noisy image.

        Args:
            x: noisy image, already scaled by the path's input scale; sides are multiples of size_multiple.
            t: step index, shape (batch,).
            lq: low-quality image in [-1, 1].
            mask: +1 where the image is unknown, -1 where it is known.
            features: condition(lq, mask), instead of lq and mask.
        """
        if x.shape[-2] % self.size_multiple or x.shape[-1] % self.size_multiple:
            raise ValueError(
                f"x must have sides that are multiples of {self.size_multiple}, got {tuple(x.shape[-2:])}"
            )
        if lq is not None:
            features = self.condition(lq, mask)
        dtype = self.dtype
        inputs = (t, *self.time_embed.parameters())
        embedding = self.remembered.get(
            inputs, lambda: self.time_embed(timestep_embedding(t, self.model_channels).to(dtype))
        )
        h = x.to(dtype)
        if features is not None:
            h = torch.cat([h, features], dim=1)
        skips = []
        for stage in self.input_blocks:
            h = stage(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h).to(x.dtype)


def feature_extractor(channels: int, scale: int) -> tuple[nn.Module, int]:
    """The condition's way down to 1/scale of its size, and the channels that come out."""
    if scale == 1 or not channels:
        return nn.Identity(), channels
    layers: list[nn.Module] = []
    width = 16
    for _ in range(scale.bit_length() - 1):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.SiLU(), Downsample(width, 2 * width)]
        channels = width = 2 * width
    return nn.Sequential(*layers), channels


def encoder(
    channels: int,
    widths: Sequence[int],
    num_res_blocks: Sequence[int],
    stage: Callable[[int, int, bool], Stage],
) -> tuple[nn.ModuleList, list[int]]:
    """The way down, and the widths of the maps that it hands over to the way up."""
    stages = [Stage([nn.Conv2d(channels, widths[0], 3, padding=1)])]
    skips = [widths[0]]
    for level, width in enumerate(widths):
        for i in range(num_res_blocks[level]):
            stages.append(stage(skips[-1], level, i == 0))
            skips.append(width)
        if level < len(widths) - 1:
            stages.append(Stage([Downsample(width, width)]))
            skips.append(width)
    return nn.ModuleList(stages), skips


def decoder(
    skips: Sequence[int],
    widths: Sequence[int],
    num_res_blocks: Sequence[int],
    stage: Callable[[int, int, bool], Stage],
) -> nn.ModuleList:
    """The way up: one block more per level than on the way down, each joined with a map handed over."""
    stages = []
    remaining, width = list(skips), widths[-1]
    for level in reversed(range(len(widths))):
        for i in range(num_res_blocks[level] + 1):
            stages.append(stage(width + remaining.pop(), level, i == 0))
            width = widths[level]
        if level:
            stages[-1].append(Upsample(width))
    return nn.ModuleList(stages)


def condition_scale(lq_size: int, image_size: int) -> int:
    """How many times larger than the map the condition is: a power of two."""
    scale, rest = divmod(lq_size, image_size)
    if rest or scale < 1 or scale & (scale - 1):
        raise ValueError(f"lq_size must be 1, 2, 4, 8 … times image_size ({image_size}), got {lq_size}")
    return scale


def check_multiple(name: str, value: int, unit: int) -> None:
    """Refuse a size that is not a positive multiple."""
    if value < 1 or value % unit:
        raise ValueError(f"{name} must be a positive multiple of {unit}, got {value}")


def check_levels(num_res_blocks: Sequence[int], channel_mult: Sequence[float]) -> None:
    """Refuse lists of different lengths."""
    if len(num_res_blocks) != len(channel_mult):
        raise ValueError(
            f"num_res_blocks must have one entry per level of channel_mult ({len(channel_mult)}), "
            f"got {len(num_res_blocks)}"
        )
