"""The vector-quantised autoencoder in whose latents the published ResShift models work."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from .resblock import Upsample

# Table entries of one distance matrix: 64 MiB in float32.
DISTANCES_AT_ONCE = 2**24


def norm(channels: int) -> nn.GroupNorm:
    """Group normalisation as the autoencoder has it; statistics are accumulated in float32."""
    return nn.GroupNorm(32, channels, eps=1e-6)


class Block(nn.Module):
    """Residual block: twice norm, SiLU and 3×3 convolution.

    Args:
        channels: channels taken.
        out_channels: channels given; a 1×1 convolution carries the input over when they differ.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = None if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch out_channels h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class Attention(nn.Module):
    """Single-head attention over all pixels, added to the input.

    The 1×1 convolutions run as products on rows of channels: where the channels lie side by side, attention
    needs no matrix of all pairs of pixels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        rows = self.norm(x).flatten(2).transpose(1, 2)[:, None]
        q, k, v = (F.linear(rows, layer.weight.flatten(1), layer.bias) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        mixed = F.linear(mixed, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + mixed[:, 0].transpose(1, 2).reshape(x.shape)


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = Block(channels, channels)
        self.attn_1 = Attention(channels)
        self.block_2 = Block(channels, channels)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h w"]:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Halve the resolution by a strided 3×3 convolution, padded on the right and below only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """Blocks of one resolution and, but for one level, the change of resolution after them."""

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(a, b) for a, b in pairwise(widths))
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch channels2 h2 w2"]:
        for block in self.block:
            x = block(x)
        for change in (self.downsample, self.upsample):
            if change is not None:
                x = change(x)
        return x


class Encoder(nn.Module):
    """Image to latent, before the projection to the codebook's width."""

    def __init__(
        self, channels: int, ch: int, ch_mult: Sequence[int], num_res_blocks: Sequence[int], z_channels: int
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        width = ch
        for level, (mult, count) in enumerate(zip(ch_mult, num_res_blocks, strict=True)):
            stage = Level([width] + [ch * mult] * count)
            width = ch * mult
            if level < len(ch_mult) - 1:
                stage.downsample = Downsample(width)
            self.down.append(stage)
        self.mid = Middle(width)
        self.norm_out = norm(width)
        self.conv_out = nn.Conv2d(width, z_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch z h2 w2"]:
        h = self.conv_in(x)
        for stage in self.down:
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latent to image; levels are numbered by resolution, 0 the full one."""

    def __init__(
        self, channels: int, ch: int, ch_mult: Sequence[int], num_res_blocks: Sequence[int], z_channels: int
    ) -> None:
        super().__init__()
        width = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, width, 3, padding=1)
        self.mid = Middle(width)
        stages = []
        for level in reversed(range(len(ch_mult))):
            stage = Level([width] + [ch * ch_mult[level]] * (num_res_blocks[level] + 1))
            width = ch * ch_mult[level]
            if level:
                stage.upsample = Upsample(width)
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out = norm(width)
        self.conv_out = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "batch z h w"]) -> Float[Tensor, "batch channels h2 w2"]:
        h = self.mid(self.conv_in(z))
        for stage in reversed(self.up):
            h = stage(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Codebook(nn.Module):
    """The vectors that a latent may take.

    Args:
        codes: number of vectors.
        width: their length.
    """

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def indices(self, z: Float[Tensor, "batch width h w"]) -> Int[Tensor, "pixels"]:
        """Nearest vector of each pixel, row by row, in squared distance computed in float32."""
        rows = z.detach().permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()
        codes = self.embedding.weight.detach().float()
        # |z − e|² = |z|² + |e|² − 2 z·e, and |z|² does not change which e is nearest.
        half_lengths = codes.square().sum(1) / 2
        chunk = max(1, DISTANCES_AT_ONCE // len(codes))
        # Outside autocast: a product in half precision would choose other vectors.
        with torch.autocast(z.device.type, enabled=False):
            found = [
                torch.addmm(half_lengths, part, codes.T, alpha=-1).argmin(1) for part in rows.split(chunk)
            ]
        return torch.cat(found)

    def forward(self, z: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h w"]:
        """The nearest vectors; the gradient passes straight through."""
        batch, width, h, w = z.shape
        nearest = self.embedding(self.indices(z)).view(batch, h, w, width).permute(0, 3, 1, 2).to(z.dtype)
        return z + (nearest - z).detach() if z.requires_grad else nearest


class VQModel(nn.Module):
    """Autoencoder with a codebook; encoding leaves the latent continuous, decoding quantises it.

    Parameter names are those of the published files. The image is 2^(levels−1) times as large as its latent:
    4 (VQ-f4) or 8 (VQ-f8).

    Args:
        in_channels: image channels.
        ch: base width (a multiple of 32).
        ch_mult: width of each level, in base widths, from full resolution down.
        num_res_blocks: blocks per level of the encoder (the decoder has one more); one number or a list.
        z_channels: channels of the latent inside the network.
        embed_dim: channels of the latent and of the codebook.
        n_embed: vectors in the codebook.

    Example:
        >>> autoencoder = VQModel(ch=32, ch_mult=(1, 1, 1), num_res_blocks=1, n_embed=16)
        >>> z = autoencoder.encode(torch.zeros(1, 3, 16, 24))
        >>> z.shape, autoencoder.decode(z).shape
        (torch.Size([1, 3, 4, 6]), torch.Size([1, 3, 16, 24]))

    Reference: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", appendix G
        (VQ-regularised); Esser et al. 2021, "Taming Transformers".
    """

    def __init__(
        self,
        in_channels: int = 3,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 4),
        num_res_blocks: int | Sequence[int] = 2,
        z_channels: int = 3,
        embed_dim: int = 3,
        n_embed: int = 8192,
    ) -> None:
        super().__init__()
        blocks = [num_res_blocks] * len(ch_mult) if isinstance(num_res_blocks, int) else num_res_blocks
        if len(blocks) != len(ch_mult):
            raise ValueError(
                f"num_res_blocks must be one number or one per level of ch_mult ({len(ch_mult)}), "
                f"got {len(blocks)}"
            )
        self.width = ch
        self.factor = 2 ** (len(ch_mult) - 1)
        self.latent_channels = embed_dim
        self.encoder = Encoder(in_channels, ch, ch_mult, blocks, z_channels)
        self.quant_conv = nn.Conv2d(z_channels, embed_dim, 1)
        self.quantize = Codebook(n_embed, embed_dim)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        self.decoder = Decoder(in_channels, ch, ch_mult, blocks, z_channels)

    def encode(self, x: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch latent h2 w2"]:
        """Image in [-1, 1] to its latent, not quantised; sides are multiples of `factor`."""
        if x.shape[-2] % self.factor or x.shape[-1] % self.factor:
            raise ValueError(
                f"x must have sides that are multiples of {self.factor}, got {tuple(x.shape[-2:])}"
            )
        return self.quant_conv(self.encoder(x.to(self.quant_conv.weight.dtype))).to(x.dtype)

    def decode(
        self, z: Float[Tensor, "batch latent h w"], force_not_quantize: bool = False
    ) -> Float[Tensor, "batch channels h2 w2"]:
        """Latent to image.

        Args:
            z: latent, quantised or not.
            force_not_quantize: skip the codebook: smoother, and not what the models were trained for.
        """
        codes = z if force_not_quantize else self.quantize(z)
        return self.decoder(self.post_quant_conv(codes.to(self.quant_conv.weight.dtype))).to(z.dtype)
