"""A diffusion transformer for pictures: patches as tokens, modulated by time and label."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.nets.init import zeroed


@dataclass(frozen=True)
class DiTConfig:
    """Shape of a DiT.

    Args:
        size: (height, width) of the picture.
        channels: of the picture.
        patch: side of a token in pixels; divides both sides of the picture.
        width: features of a token, divisible by 4 and by `heads`.
        depth: transformer blocks.
        heads: of the attention.
        expansion: hidden features of the feed-forward part per feature of a token.
        classes: number of labels (0: unconditional). Label `classes` means "none".
        time_scale: factor on the time that the network is told, so that it spans some hundreds.
        two_times: whether the network takes a second time s, the one to jump to.

    Raises:
        ValueError: if the sizes do not fit each other.
    """

    size: tuple[int, int] = (8, 8)
    channels: int = 1
    patch: int = 2
    width: int = 96
    depth: int = 6
    heads: int = 4
    expansion: int = 4
    classes: int = 0
    time_scale: float = 1.0
    two_times: bool = False

    def __post_init__(self) -> None:
        if self.patch < 1 or any(side % self.patch for side in self.size):
            raise ValueError(f"patch must divide size {self.size}, got {self.patch}")
        if self.width % 4 or self.width % self.heads:
            raise ValueError(f"width must be divisible by 4 and by heads={self.heads}, got {self.width}")


class DiT(nn.Module):
    """Transformer with adaptive layer norm: tokens in `embed`, `blocks`, and back in `unembed`.

    Every block computes h ← h + g1·Attention(s1·LN(h) + b1), then h ← h + g2·MLP(s2·LN(h) + b2); the six
    vectors are linear in the embedding of time and label and start at zero, so a new block is the identity.

    Args:
        config: its shape.

    Reference: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", section 3.2 (adaLN-Zero).

    Example:
        >>> net = DiT(DiTConfig(classes=10))
        >>> net(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, 10])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        width, pixels = config.width, config.channels * config.patch**2
        self.patches = nn.Linear(pixels, width)
        self.register_buffer("positions", _positions(config), persistent=False)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.second = None
        if config.two_times:
            last = zeroed(nn.Linear(width, width))
            self.second = nn.Sequential(nn.Linear(width, width), nn.SiLU(), last)
        self.labels = nn.Embedding(config.classes + 1, width) if config.classes else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.last_norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.last_modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, pixels)
        zeroed(self.last_modulation)
        zeroed(self.out)

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, "batch"],
        label: Shaped[Tensor, "batch"] | None = None,
        s: Float[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        """The network's raw value.

        Args:
            x: picture.
            t: time, as the path tells it.
            label: class of each sample; None or `classes` means none.
            s: time to jump to, as the path tells it; None: s = t.
        """
        tokens, modulation = self.embed(x, t, label, s)
        for block in self.blocks:
            tokens = block(tokens, modulation)
        return self.unembed(tokens, modulation)

    def features(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, s: Tensor | None = None
    ) -> list[Float[Tensor, "batch tokens features"]]:
        """The tokens after every block, for heads that judge by features."""
        tokens, modulation = self.embed(x, t, label, s)
        states = []
        for block in self.blocks:
            tokens = block(tokens, modulation)
            states.append(tokens)
        return states

    def embed(
        self, x: Tensor, t: Tensor, label: Tensor | None = None, s: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch tokens features"], Float[Tensor, "batch features"]]:
        """Tokens of the picture, and the embedding of time and label that modulates every block."""
        side = self.config.patch
        tokens = self.patches(F.unfold(x, side, stride=side).transpose(1, 2)) + self.positions.to(x.dtype)
        modulation = self.time(_waves(t * self.config.time_scale, self.config.width).to(x.dtype))
        if s is not None and self.second is None:
            raise ValueError("s was given to a network with one time; build it with two_times=True")
        if self.second is not None:
            ahead = (t - (t if s is None else s)) * self.config.time_scale
            modulation = modulation + self.second(_waves(ahead, self.config.width).to(x.dtype))
        if self.labels is not None:
            none = torch.full((len(x),), self.config.classes, device=x.device)
            modulation = modulation + self.labels(none if label is None else label.long())
        return tokens, F.silu(modulation)

    def unembed(
        self, tokens: Float[Tensor, "batch tokens features"], modulation: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "batch channels height width"]:
        """The picture that the tokens stand for."""
        shift, scale = self.last_modulation(modulation)[:, None].chunk(2, dim=-1)
        pixels = self.out(self.last_norm(tokens) * (1 + scale) + shift).transpose(1, 2)
        return F.fold(pixels, self.config.size, self.config.patch, stride=self.config.patch)


class Block(nn.Module):
    """One modulated transformer block; `DiT` has the formula."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.mixed = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, config.expansion * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(config.expansion * width, width),
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, tokens: Float[Tensor, "batch tokens features"], modulation: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "batch tokens features"]:
        """The tokens after attention and feed-forward."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(modulation)[:, None].chunk(6, dim=-1)
        tokens = tokens + gate1 * self._attend(self.norm(tokens) * (1 + scale1) + shift1)
        return tokens + gate2 * self.feed_forward(self.norm(tokens) * (1 + scale2) + shift2)

    def _attend(self, tokens: Tensor) -> Tensor:
        batch, count, width = tokens.shape
        parts = self.queries_keys_values(tokens).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        return self.mixed(
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, count, width)
        )


def _waves(t: Tensor, width: int) -> Tensor:
    """cos and sin of t at `width`/2 frequencies from 1 down to 1/10000."""
    half = width // 2
    rate = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = t.float()[:, None] * rate
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def _positions(config: DiTConfig) -> Tensor:
    """Waves of the row in one half of the features, of the column in the other, (tokens, width)."""
    rows, columns = (torch.arange(side // config.patch, dtype=torch.float32) for side in config.size)
    half = config.width // 2
    down = _waves(rows, half)[:, None].expand(-1, len(columns), -1)
    across = _waves(columns, half)[None].expand(len(rows), -1, -1)
    return torch.cat([down, across], dim=-1).reshape(-1, config.width)
