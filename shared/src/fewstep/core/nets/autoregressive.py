"""Small causal transformers over a sequence of tokens: a model of the tokens, and what distils it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn


@dataclass(frozen=True)
class AutoregressiveConfig:
    """Shape of the transformers of a token sequence.

    Args:
        tokens: length of the sequence.
        codes: number of different tokens.
        features: of a token's embedding.
        width: hidden features, divisible by `heads`.
        depth: transformer blocks.
        heads: of the attention.
        classes: number of labels (0: unconditional); label `classes` means "none".
        dropout: share of the hidden features that are dropped in training.

    Raises:
        ValueError: a size is not positive, heads does not divide width, or dropout is not in [0, 1).
    """

    tokens: int = 16
    codes: int = 64
    features: int = 4
    width: int = 96
    depth: int = 4
    heads: int = 4
    classes: int = 0
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if min(self.tokens, self.codes, self.features, self.width, self.depth, self.heads) < 1:
            raise ValueError(f"the sizes must be positive, got {self}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width={self.width}, got {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")


class CausalTrunk(nn.Module):
    """Causal self-attention and feed-forward blocks on (batch, tokens, width); place and label are added."""

    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        width = config.width
        self.classes = config.classes
        self.places = nn.Parameter(0.02 * torch.randn(config.tokens, width))
        self.labels = nn.Embedding(config.classes + 1, width) if config.classes else None
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, hidden: Tensor, label: Tensor | None) -> Tensor:
        if hidden.shape[1] > len(self.places):
            raise ValueError(f"at most {len(self.places)} tokens fit, got {hidden.shape[1]}")
        hidden = hidden + self.places[: hidden.shape[1]]
        if self.labels is not None:
            none = torch.full((len(hidden),), self.classes, device=hidden.device)
            hidden = hidden + self.labels(none if label is None else label.long())[:, None]
        for block in self.blocks:
            hidden = block(hidden)
        return self.norm(hidden)


class _Block(nn.Module):
    def __init__(self, config: AutoregressiveConfig) -> None:
        super().__init__()
        width, self.heads = config.width, config.heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        parts = self.queries_keys_values(self.norm1(hidden)).unflatten(-1, (3, self.heads, -1))
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        hidden = hidden + self.dropout(self.mixed(attended.transpose(1, 2).flatten(2)))
        return hidden + self.dropout(self.feed_forward(self.norm2(hidden)))


class CodebookTransformer(nn.Module):
    """What the networks of a token sequence share: the embeddings of the tokens and the transformer."""

    codebook: Tensor

    def __init__(self, config: AutoregressiveConfig, codebook: Tensor) -> None:
        super().__init__()
        if codebook.shape != (config.codes, config.features):
            wanted = (config.codes, config.features)
            raise ValueError(f"codebook must be of shape {wanted}, got {tuple(codebook.shape)}")
        self.config = config
        self.register_buffer("codebook", codebook.detach().clone())
        self.enter = nn.Linear(config.features, config.width)
        self.trunk = CausalTrunk(config)

    def nearest(self, x: Float[Tensor, "batch tokens features"]) -> Int[Tensor, "batch tokens"]:
        """The token whose embedding lies closest."""
        points = self.codebook.to(x)
        return (x @ points.T - points.square().sum(-1) / 2).argmax(-1)

    def after(self, before: Tensor) -> Tensor:
        """Hidden state of every place: what stands before it, (batch, tokens, features) moved by one."""
        return F.pad(self.enter(before[:, :-1].to(self.enter.weight)), (0, 0, 1, 0))


class Autoregressive(CodebookTransformer):
    """p(q) = Π_i p(q_i | q_1 … q_{i−1}, label): a causal transformer over the embeddings of the tokens.

    Args:
        config: its shape.
        codebook: embeddings of the tokens, (codes, features); they are not trained.

    Example:
        >>> net = Autoregressive(AutoregressiveConfig(tokens=3, codes=5, features=2), torch.randn(5, 2))
        >>> net(torch.tensor([[4, 0, 1]])).shape
        torch.Size([1, 3, 5])
    """

    def __init__(self, config: AutoregressiveConfig, codebook: Float[Tensor, "codes features"]) -> None:
        super().__init__(config, codebook)
        self.leave = nn.Linear(config.width, config.codes)

    def forward(
        self, tokens: Int[Tensor, "batch tokens"], label: Shaped[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch tokens codes"]:
        """log p(q_i | q_1 … q_{i−1}, label) of every place; the last token itself plays no part."""
        return self.log_p(self.codebook[tokens], label)

    def log_p(
        self, before: Float[Tensor, "batch tokens features"], label: Shaped[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch tokens codes"]:
        """The same, told the embeddings of the tokens."""
        return self.leave(self.trunk(self.after(before), label)).log_softmax(-1)


class TokenGenerator(CodebookTransformer):
    """All tokens at once from noise: logits and an estimated embedding of every place.

    Place i sees the states of places 1 … i, each either a known token's embedding or its noise: a flow that
    is conditioned on earlier tokens depends on no later noise.

    Args:
        config: its shape.
        codebook: embeddings of the tokens.
    """

    def __init__(self, config: AutoregressiveConfig, codebook: Float[Tensor, "codes features"]) -> None:
        super().__init__(config, codebook)
        self.is_known = nn.Embedding(2, config.width)
        self.leave = nn.Linear(config.width, config.codes)
        self.embedded = nn.Sequential(
            nn.Linear(config.width, config.width), nn.SiLU(), nn.Linear(config.width, config.features)
        )

    def forward(
        self,
        x: Float[Tensor, "batch tokens features"],
        known: Bool[Tensor, "batch tokens"] | None = None,
        label: Shaped[Tensor, "batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens codes"], Float[Tensor, "batch tokens features"]]:
        """Logits and embeddings of all tokens.

        Args:
            x: embedding of every known token, noise of every other.
            known: which tokens are known; None: none is.
            label: class of each sample.
        """
        flags = torch.zeros(x.shape[:2], dtype=torch.long, device=x.device) if known is None else known.long()
        hidden = self.trunk(self.enter(x.to(self.enter.weight)) + self.is_known(flags), label)
        return self.leave(hidden), self.embedded(hidden)
