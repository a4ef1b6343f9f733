"""A small convolutional U-Net for pictures."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.nets.embedding import TimeEmbedding
from fewstep.core.nets.init import zeroed


@dataclass(frozen=True)
class UNetConfig:
    """Shape of a UNet.

    Args:
        size: (height, width) of the picture, divisible by 2^(levels − 1).
        channels: of the picture.
        widths: features of each level; the picture is halved between levels.
        blocks: residual blocks per level.
        attention: sides of the feature maps that attend to themselves.
        groups: of the group norms; divides every width.
        embedding: features of the embedding of time and label.
        fastest: largest frequency of the time embedding (see `TimeEmbedding`).
        slowest: smallest frequency.
        two_times: whether the network takes a second time s.
        classes: number of labels (0: unconditional).
        dropout: share of features that are dropped in training.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    size: tuple[int, int] = (16, 16)
    channels: int = 1
    widths: tuple[int, ...] = (32, 64, 64)
    blocks: int = 1
    attention: tuple[int, ...] = (8,)
    groups: int = 8
    embedding: int = 128
    fastest: float = 8.0
    slowest: float = 0.25
    two_times: bool = False
    classes: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if not self.widths or self.blocks < 1:
            raise ValueError(f"widths and blocks must not be empty, got {self.widths} and {self.blocks}")
        factor = 2 ** (len(self.widths) - 1)
        if any(side % factor for side in self.size):
            raise ValueError(f"size must be divisible by {factor} for {len(self.widths)} levels: {self.size}")
        if any(width % self.groups for width in self.widths):
            raise ValueError(f"groups must divide every width of {self.widths}, got {self.groups}")


class UNet(nn.Module):
    """Residual blocks on the way down, in the middle and, with skip connections, on the way up.

    Every block computes h + Conv(SiLU(s·GN(Conv(SiLU(GN h))) + b)) with s and b linear in the embedding of
    time and label; its last convolution starts at zero.

    Args:
        config: its shape.

    Reference: Ho, Jain and Abbeel 2020, appendix B; scale and shift of Dhariwal and Nichol 2021.

    Example:
        >>> UNet(UNetConfig(two_times=True))(torch.zeros(2, 1, 16, 16), torch.ones(2), torch.zeros(2)).shape
        torch.Size([2, 1, 16, 16])
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths, side = config.widths, config.size[0]
        self.embedding = TimeEmbedding(
            config.embedding, config.fastest, config.slowest, config.two_times, config.classes
        )
        self.first = nn.Conv2d(config.channels, widths[0], 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        width, skips = widths[0], [widths[0]]
        for level, wanted in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(_Stage(config, width, wanted, side))
                width = wanted
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
                skips.append(width)
                side //= 2
        self.middle = nn.ModuleList(
            [_Stage(config, width, width, side, attends=True), _Stage(config, width, width, side)]
        )
        for level, wanted in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(_Stage(config, width + skips.pop(), wanted, side))
                width = wanted
            if level:
                self.up.append(nn.Conv2d(width, width, 3, padding=1))
                side *= 2
        self.last_norm = nn.GroupNorm(config.groups, width)
        self.last = zeroed(nn.Conv2d(width, config.channels, 3, padding=1))

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, "batch"],
        s: Float[Tensor, "batch"] | None = None,
        label: Shaped[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The network's raw value.

        Args:
            x: pictures.
            t: time, as the path tells it.
            s: time to jump to, as the path tells it; None: s = t.
            label: class of each sample; None or `classes` means none.
        """
        embedding = F.silu(self.embedding(t, s, label))
        hidden, skips = self._encode(x, embedding)
        for layer in self.up:
            if isinstance(layer, _Stage):
                hidden = layer(torch.cat([hidden, skips.pop()], dim=1), embedding)
            else:
                hidden = layer(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))
        return self.last(F.silu(self.last_norm(hidden)))

    def features(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None
    ) -> list[Float[Tensor, "batch features height width"]]:
        """The maps on the way down, then that of the middle, for heads that judge by features."""
        hidden, skips = self._encode(x, F.silu(self.embedding(t, s, label)))
        return [*skips, hidden]

    def _encode(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = self.first(x)
        skips = [hidden]
        for layer in self.down:
            hidden = layer(hidden, embedding) if isinstance(layer, _Stage) else layer(hidden)
            skips.append(hidden)
        for layer in self.middle:
            hidden = layer(hidden, embedding)
        return hidden, skips


class _Stage(nn.Module):
    """A residual block and, at the sides that ask for it, self-attention."""

    def __init__(self, config: UNetConfig, width: int, wanted: int, side: int, attends: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_groups(width, config.groups), width)
        self.conv1 = nn.Conv2d(width, wanted, 3, padding=1)
        self.modulation = nn.Linear(config.embedding, 2 * wanted)
        self.norm2 = nn.GroupNorm(config.groups, wanted)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zeroed(nn.Conv2d(wanted, wanted, 3, padding=1))
        self.skip = nn.Identity() if width == wanted else nn.Conv2d(width, wanted, 1)
        self.attention = (
            _Attention(wanted, config.groups) if attends or side in config.attention else nn.Identity()
        )

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.norm2(hidden) * (1 + scale) + shift
        return self.attention(self.skip(x) + self.conv2(self.dropout(F.silu(hidden))))


class _Attention(nn.Module):
    """x + projected self-attention over all places, one head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.queries_keys_values = nn.Conv2d(width, 3 * width, 1)
        self.mixed = zeroed(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        q, k, v = (part.unsqueeze(1) for part in parts)
        attended = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2)
        return x + self.mixed(attended.reshape(x.shape))


def _groups(width: int, groups: int) -> int:
    """Concatenated widths need not be divisible by the groups of their parts' sum; halve until they are."""
    while width % groups:
        groups //= 2
    return groups
