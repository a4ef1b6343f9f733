"""Heads: features → logits. Each is called as head(features, t) and gives (batch, logits)."""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.nets.embedding import TimeEmbedding
from fewstep.core.nets.init import zeroed

Features = Sequence[Tensor]
_LAST_SIDE, _GROUP = 4, 16


class VectorHead(nn.Module):
    """A small MLP on the last feature tensor: one logit per vector, so one per sample or one per token.

    Args:
        width: features of a vector (batch, width) or of every token (batch, tokens, width).
        hidden: features of the hidden layers.
        depth: hidden layers.

    Example:
        >>> VectorHead(16)([torch.zeros(3, 5, 16)], torch.zeros(3)).shape
        torch.Size([3, 5])
    """

    def __init__(self, width: int, hidden: int = 64, depth: int = 1) -> None:
        super().__init__()
        sizes = [width, *[hidden] * depth]
        layers = [nn.Sequential(nn.Linear(a, b), nn.SiLU()) for a, b in itertools.pairwise(sizes)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], 1))

    def forward(self, features: Features, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch logits"]:
        """The logits."""
        return self.layers(features[-1]).flatten(1)


class MapHead(nn.Module):
    """Strided convolutions until one place is left: one logit for a whole feature map.

    For maps of 8×8 these are a convolution of side 4 and stride 2, one of side 4 and stride 4, each followed
    by group norm and SiLU, and one of side 1, as in DMD2; other sizes have more or fewer of the first.

    Args:
        width: channels of the map.
        size: (height, width) of the map.
        hidden: channels inside (None: those of the map).
        groups: of the group norms, at most.

    Reference: Yin et al. 2024 (DMD2), published code.

    Example:
        >>> MapHead(64, (8, 8))([torch.zeros(3, 64, 8, 8)], torch.zeros(3)).shape
        torch.Size([3, 1])
    """

    def __init__(
        self, width: int, size: tuple[int, int], hidden: int | None = None, groups: int = 32
    ) -> None:
        super().__init__()
        hidden = width if hidden is None else hidden
        layers: list[nn.Module] = []
        while max(size) > _LAST_SIDE:
            layers += _normed(nn.Conv2d(width, hidden, 4, stride=2, padding=1), hidden, groups)
            size, width = (size[0] // 2, size[1] // 2), hidden
        # The kernel that covers what is left of the map.
        layers += _normed(nn.Conv2d(width, hidden, size), hidden, groups)
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden, 1, 1))

    def forward(self, features: Features, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch 1"]:
        """The logit."""
        return self.layers(features[-1]).flatten(1)


class PatchHead(nn.Module):
    """Convolutions that keep the places: one logit for the neighbourhood of every place of a map.

    Args:
        width: channels of the map.
        hidden: channels inside.
        groups: of the group norm, at most.
    """

    def __init__(self, width: int, hidden: int = 64, groups: int = 32) -> None:
        super().__init__()
        layers = _normed(nn.Conv2d(width, hidden, 3, padding=1), hidden, groups)
        self.layers = nn.Sequential(*layers, nn.Conv2d(hidden, 1, 1))

    def forward(self, features: Features, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch logits"]:
        """The logits, place by place."""
        return self.layers(features[-1]).flatten(1)


class QueryHead(nn.Module):
    """A learned query that attends to the tokens: one logit for all of them together.

    Args:
        width: features of a token.
        heads: of the attention; divides width.

    Reference: Lin et al. 2025 (APT), section 3.2.
    """

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) / math.sqrt(width))
        self.norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.last = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1)
        )

    def forward(self, features: Features, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch 1"]:
        """The logit."""
        tokens = self.norm(features[-1])
        found, _ = self.attention(self.query.expand(len(tokens), -1, -1), tokens, tokens, need_weights=False)
        return self.last(self.query + found).flatten(1)


class TimedHead(nn.Module):
    """Features modulated by the time before a head judges them: f ← f·(1 + s(t)) + b(t), s = b = 0 at first.

    Args:
        head: that judges the modulated features.
        widths: channels of every feature tensor; maps (batch, channels, height, width) have them in place
            1, vectors and tokens in the last.
        embedding: features of the embedding of time.
        fastest: largest frequency, in radians per unit of the time that the network is told.
        slowest: smallest frequency.

    Reference: He et al. 2024, "One Step Diffusion-based Super-Resolution with Time-Aware Distillation".
    """

    def __init__(
        self,
        head: nn.Module,
        widths: Sequence[int],
        embedding: int = 64,
        fastest: float = 5.0,
        slowest: float = 0.5,
    ) -> None:
        super().__init__()
        self.head = head
        self.embedding = TimeEmbedding(embedding, fastest, slowest)
        self.modulations = nn.ModuleList(zeroed(nn.Linear(embedding, 2 * width)) for width in widths)

    def forward(self, features: Features, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch logits"]:
        """The head's logits."""
        embedding = F.silu(self.embedding(t))
        changed = [
            _modulated(feature, layer(embedding))
            for feature, layer in zip(features, self.modulations, strict=True)
        ]
        return self.head(changed, t)


class HeadPerLayer(nn.Module):
    """One head for every feature tensor; all logits side by side.

    Args:
        heads: as many as there are feature tensors.
    """

    def __init__(self, heads: Sequence[nn.Module]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, features: Features, t: Shaped[Tensor, "batch"]) -> Float[Tensor, "batch logits"]:
        """The logits of all heads."""
        if len(features) != len(self.heads):
            raise ValueError(f"there are {len(self.heads)} heads for {len(features)} feature tensors")
        each = [head([feature], t) for head, feature in zip(self.heads, features, strict=True)]
        return torch.cat(each, dim=1)


def head_for(shape: Sequence[int], hidden: int = 64) -> nn.Module:
    """The plainest head for features of a shape.

    Args:
        shape: of one sample's features: (width,), (tokens, width) or (channels, height, width).
        hidden: features inside.

    Raises:
        ValueError: shape has more than three entries or none.
    """
    if len(shape) == 3:
        return MapHead(shape[0], (shape[1], shape[2]), hidden)
    if len(shape) in (1, 2):
        return VectorHead(shape[-1], hidden)
    raise ValueError(f"shape must be (width,), (tokens, width) or (channels, height, width), got {shape}")


@torch.no_grad()
def feature_shapes(
    features: Callable[[Tensor, Tensor], Sequence[Tensor]], like: Tensor
) -> list[tuple[int, ...]]:
    """Shapes of the features of one sample, by asking once at time 1.

    Args:
        features: (x, t) → feature tensors, such as `net.features`.
        like: one sample with a batch of 1.
    """
    return [tuple(feature.shape[1:]) for feature in features(like, like.new_ones(1))]


def _normed(layer: nn.Module, width: int, groups: int) -> list[nn.Module]:
    groups = math.gcd(width, groups)
    # At a single place a group of two channels would keep nothing but the sign of their difference.
    while groups > 1 and width // groups < _GROUP:
        groups = max(groups // 2, 1)
    return [layer, nn.GroupNorm(math.gcd(width, groups), width), nn.SiLU()]


def _modulated(feature: Tensor, modulation: Tensor) -> Tensor:
    scale, shift = modulation.to(feature.dtype).chunk(2, dim=1)
    ones = [1] * (feature.ndim - 2)
    shape = (len(feature), -1, *ones) if feature.ndim > 3 else (len(feature), *ones, -1)
    return feature * (1 + scale.reshape(shape)) + shift.reshape(shape)
