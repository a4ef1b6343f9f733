"""DDIM's U-Net, with which Resfusion generates CIFAR images."""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .cache import Remembered, Remembering
from .rddm_blocks import REMEMBERED_TIMES, sinusoids
from .rddm_unet import joined
from .resblock import Upsample
from .vq import Attention, Downsample, norm


class TimedBlock(Remembering):
    """Residual block: norm, SiLU, convolution, plus the time's features, norm, SiLU, dropout, convolution.

    Args:
        channels: channels taken.
        out_channels: channels given; a 1×1 convolution carries the input over when they differ.
        embedding: channels of the time embedding.
        dropout: probability of dropping a feature in training.

    Reference: Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic Models", appendix B.
    """

    def __init__(self, channels: int, out_channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = norm(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.temb_proj = nn.Linear(embedding, out_channels)
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = None if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        self.remembered: Remembered[Tensor] = Remembered(REMEMBERED_TIMES)

    def forward(
        self, x: Float[Tensor, "batch channels h w"], embedding: Float[Tensor, "batch embedding"]
    ) -> Float[Tensor, "batch out_channels h w"]:
        features = self.remembered.get(
            (embedding, *self.temb_proj.parameters()),
            lambda: self.temb_proj(F.silu(embedding))[:, :, None, None],
        )
        h = self.conv1(F.silu(self.norm1(x))) + features
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class TimeDense(Remembering):
    """Two linear layers with SiLU between them on the sinusoids of the time; remembered for visited times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.dense = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, 4 * width)])
        self.remembered: Remembered[Tensor] = Remembered(REMEMBERED_TIMES)

    def forward(self, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch embedding"]:
        return self.remembered.get((t, *self.parameters()), lambda: self._embed(t))

    def _embed(self, t: Tensor) -> Tensor:
        first, second = self.dense
        return second(F.silu(first(sinusoids(t, self.width).to(first.weight.dtype))))  # type: ignore[arg-type]


class TimedLevel(nn.Module):
    """Blocks of one resolution, with attention after each or none, and the change of resolution."""

    def __init__(self, blocks: Sequence[TimedBlock], attended: int | None) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self.attn = nn.ModuleList(Attention(attended) for _ in blocks if attended)
        self.downsample: Downsample | None = None
        self.upsample: Upsample | None = None

    def apply_block(self, index: int, x: Tensor, embedding: Tensor) -> Tensor:
        """One block and its attention."""
        h = self.block[index](x, embedding)
        return self.attn[index](h) if len(self.attn) else h


class TimedMiddle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = TimedBlock(channels, channels, embedding, dropout)
        self.attn_1 = Attention(channels)
        self.block_2 = TimedBlock(channels, channels, embedding, dropout)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x, embedding)), embedding)


class DDIMUnet(nn.Module):
    """The U-Net of DDPM and DDIM with images joined to its input.

    Parameter names are those of the published files. Which levels attend is told by `attn_resolutions` and
    `image_size` together; other sizes of images may be given later.

    Args:
        image_size: side of the training images.
        channels: image channels.
        condition_channels: channels of all that is joined to the noisy image.
        out_channels: channels given; those of the image by default.
        ch: base width (a multiple of 32).
        ch_mult: width of each level, in base widths, from full resolution down.
        num_res_blocks: blocks per level on the way down; the way up has one more.
        attn_resolutions: sides of the maps with attention.
        dropout: probability of dropping a feature in training.

    Raises:
        ValueError: ch is not a multiple of 32, or the image cannot be halved as often as there are levels.

    Example:
        >>> net = DDIMUnet(16, ch=32, ch_mult=(1, 1), num_res_blocks=1, attn_resolutions=(8,))
        >>> net(torch.zeros(2, 3, 16, 16), torch.tensor([0, 7])).shape
        torch.Size([2, 3, 16, 16])

    Reference: Song, Meng & Ermon 2021, "Denoising Diffusion Implicit Models", appendix D; Shi et al. 2024,
        "Resfusion".
    """

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        condition_channels: int = 0,
        out_channels: int | None = None,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attn_resolutions: Collection[int] = (16,),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.multiple = 2 ** (len(ch_mult) - 1)
        if ch < 32 or ch % 32:
            raise ValueError(f"ch must be a positive multiple of 32, got {ch}")
        if image_size < 1 or image_size % self.multiple:
            raise ValueError(f"image_size must be a positive multiple of {self.multiple}, got {image_size}")
        embedding = 4 * ch
        self.temb = TimeDense(ch)
        self.conv_in = nn.Conv2d(channels + condition_channels, ch, 3, padding=1)
        widths, width = [ch], ch
        self.down = nn.ModuleList()
        for level, mult in enumerate(ch_mult):
            taken = [width] + [ch * mult] * (num_res_blocks - 1)
            width = ch * mult
            attended = width if image_size >> level in attn_resolutions else None
            blocks = [TimedBlock(below, width, embedding, dropout) for below in taken]
            stage = TimedLevel(blocks, attended)
            widths += [width] * num_res_blocks
            if level + 1 < len(ch_mult):
                stage.downsample = Downsample(width)
                widths.append(width)
            self.down.append(stage)
        self.mid = TimedMiddle(width, embedding, dropout)
        stages = []
        for level in reversed(range(len(ch_mult))):
            blocks = []
            for _ in range(num_res_blocks + 1):
                blocks.append(TimedBlock(width + widths.pop(), ch * ch_mult[level], embedding, dropout))
                width = ch * ch_mult[level]
            attended = width if image_size >> level in attn_resolutions else None
            stage = TimedLevel(blocks, attended)
            if level:
                stage.upsample = Upsample(width)
            stages.insert(0, stage)
        self.up = nn.ModuleList(stages)
        self.norm_out = norm(width)
        self.conv_out = nn.Conv2d(width, channels if out_channels is None else out_channels, 3, padding=1)

    def forward(
        self,
        x: Float[Tensor, "batch channels h w"],
        t: Shaped[Tensor, "batch"],
        lq: Float[Tensor, "batch lq h w"] | None = None,
        mask: Float[Tensor, "batch mask h w"] | None = None,
    ) -> Float[Tensor, "batch out h w"]:
        """Predict.

        Args:
            x: noisy image.
            t: times, whole or not, shape (batch,).
            lq: what is joined to it first: the degraded image.
            mask: what is joined next: a mask, or another image.

        Returns:
            The prediction, in the dtype of the weights.
        """
        if x.shape[-2] % self.multiple or x.shape[-1] % self.multiple:
            raise ValueError(
                f"x must have sides that are multiples of {self.multiple}, got {tuple(x.shape[-2:])}"
            )
        embedding = self.temb(t)
        h = self.conv_in(joined(x, lq, mask, self.conv_in.weight))
        skips = [h]
        for stage in self.down:
            assert isinstance(stage, TimedLevel)
            for index in range(len(stage.block)):
                h = stage.apply_block(index, h, embedding)
                skips.append(h)
            if stage.downsample is not None:
                h = stage.downsample(h)
                skips.append(h)
        h = self.mid(h, embedding)
        for stage in reversed(self.up):
            assert isinstance(stage, TimedLevel)
            for index in range(len(stage.block)):
                h = stage.apply_block(index, torch.cat([h, skips.pop()], dim=1), embedding)
            if stage.upsample is not None:
                h = stage.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))
