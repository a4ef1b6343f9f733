"""The U-Net of guided diffusion whose residual blocks change the resolution themselves."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .cache import Remembered, Remembering
from .resblock import REMEMBERED_TIMES, ResBlock, Stage, timestep_embedding, zero


class ResampleBlock(ResBlock):
    """A residual block that halves or doubles the resolution, inside and beside its convolutions.

    Args:
        channels: channels taken and given.
        embedding: channels of the time embedding.
        dropout: probability of dropping a feature in training.

    Reference: Dhariwal & Nichol 2021, section 3.1 ("BigGAN up/downsampling"); Song et al. 2021, appendix H.
    """

    def __init__(self, channels: int, embedding: int, dropout: float = 0.0) -> None:
        super().__init__(channels, channels, embedding, dropout)

    def forward(
        self, x: Float[Tensor, "batch channels h w"], embedding: Float[Tensor, "batch embedding"]
    ) -> Float[Tensor, "batch channels h2 w2"]:
        inputs = (embedding, *self.emb_layers.parameters())
        gain, shift = self.remembered.get(inputs, lambda: self.modulation(embedding))
        h = self.in_layers[2](self.resample(self.in_layers[:2](x)))
        h = torch.addcmul(shift, self.out_layers[0](h), gain)
        return self.resample(x) + self.out_layers[1:](h)

    def resample(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        """The map at the other resolution."""
        raise NotImplementedError


class DownBlock(ResampleBlock):
    """Halves the resolution by averaging."""

    def resample(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        return F.avg_pool2d(x, 2)


class UpBlock(ResampleBlock):
    """Doubles the resolution by repetition."""

    def resample(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        return F.interpolate(x, scale_factor=2, mode="nearest")


class AttentionBlock(nn.Module):
    """Self-attention of all places of a map, added to it.

    Args:
        channels: of the map.
        head_channels: of one head; divides channels.

    Raises:
        ValueError: it does not divide them.

    Reference: Dhariwal & Nichol 2021, section 3.1.
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        if channels % head_channels:
            raise ValueError(f"head_channels must divide {channels}, got {head_channels}")
        self.heads = channels // head_channels
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        if self.proj_out.bias is not None:
            nn.init.zeros_(self.proj_out.bias)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        flat = x.flatten(2)
        # The published order: heads first, then query, key and value of each.
        heads = self.qkv(self.norm(flat)).unflatten(1, (self.heads, -1)).transpose(2, 3)
        seen = F.scaled_dot_product_attention(*heads.chunk(3, dim=3))
        return x + self.proj_out(seen.transpose(2, 3).flatten(1, 2)).unflatten(2, x.shape[2:])


class GuidedUNet(Remembering):
    """The published network of OFTSR: names and shapes of its weights are those of guided diffusion.

    The state and the enlarged low-quality image are joined; what the network has beyond `out_channels`
    outputs, learnt variances in guided diffusion, is not used.

    Args:
        in_channels: of state and low-quality image together.
        model_channels: feature channels at the finest level, a multiple of 32.
        channel_mult: feature channels of the levels, per `model_channels`.
        num_res_blocks: residual blocks per level.
        attention_downsampling: levels with attention, by how many times they are smaller than the image.
        head_channels: of one attention head.
        outputs: channels that the last convolution gives.
        out_channels: of them that are used, the first ones.
        dropout: probability of dropping a feature in training.

    Raises:
        ValueError: there is no level, or more channels are used than given.

    Reference: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis"; sizes: Zhu et al.
        2025, "OFTSR", published configurations.
    """

    def __init__(
        self,
        in_channels: int = 6,
        model_channels: int = 128,
        channel_mult: Sequence[float] = (1, 1, 2, 2, 4, 4),
        num_res_blocks: int = 1,
        attention_downsampling: Sequence[int] = (16,),
        head_channels: int = 64,
        outputs: int = 6,
        out_channels: int = 3,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not channel_mult or out_channels > outputs:
            raise ValueError(
                "channel_mult must name a level and out_channels be at most outputs, got "
                f"{tuple(channel_mult)}, {out_channels} and {outputs}"
            )
        self.model_channels, self.levels, self.out_channels = model_channels, len(channel_mult), out_channels
        embedding = 4 * model_channels
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        widths = [int(mult * model_channels) for mult in channel_mult]
        width, skips = widths[0], [widths[0]]
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(in_channels, width, 3, padding=1)])])

        def stage(taken: int, given: int, level: int) -> Stage:
            layers: list[nn.Module] = [ResBlock(taken, given, embedding, dropout)]
            if 2**level in attention_downsampling:
                layers.append(AttentionBlock(given, head_channels))
            return Stage(layers)

        for level, given in enumerate(widths):
            for _ in range(num_res_blocks):
                self.input_blocks.append(stage(width, given, level))
                width = given
                skips.append(width)
            if level + 1 < len(widths):
                self.input_blocks.append(Stage([DownBlock(width, embedding, dropout)]))
                skips.append(width)
        self.middle_block = Stage(
            [
                ResBlock(width, width, embedding, dropout),
                AttentionBlock(width, head_channels),
                ResBlock(width, width, embedding, dropout),
            ]
        )
        self.output_blocks = nn.ModuleList()
        for level in range(len(widths))[::-1]:
            for block in range(num_res_blocks + 1):
                layers = stage(width + skips.pop(), widths[level], level)
                width = widths[level]
                if level and block == num_res_blocks:
                    layers.append(UpBlock(width, embedding, dropout))
                self.output_blocks.append(layers)
        self.out = nn.Sequential(
            nn.GroupNorm(32, width), nn.SiLU(), zero(nn.Conv2d(width, outputs, 3, padding=1))
        )
        self.remembered: Remembered[Tensor] = Remembered(REMEMBERED_TIMES)

    @property
    def multiple(self) -> int:
        """What the sides of an image must be multiples of."""
        return 2 ** (self.levels - 1)

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Float[Tensor, "batch"],
        lq: Float[Tensor, "batch channels h w"],
    ) -> Float[Tensor, "batch out h w"]:
        """The raw prediction.

        Args:
            x: states.
            t: time as the network knows it, 0 … 999.
            lq: low-quality image, enlarged to the size of the states.
        """
        embedding = self.remembered.get((t, *self.time_embed.parameters()), lambda: self._embedded(t))
        h = torch.cat([x, lq], dim=1)
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            h = stage(h, embedding)
            skips.append(h)
        h = self.middle_block(h, embedding)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.out(h)[:, : self.out_channels]

    def _embedded(self, t: Tensor) -> Tensor:
        weight = next(self.time_embed.parameters())
        return self.time_embed(timestep_embedding(t, self.model_channels).to(weight.dtype))
