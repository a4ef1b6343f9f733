"""A residual multilayer perceptron for vectors and very small pictures."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.nets.embedding import TimeEmbedding
from fewstep.core.nets.init import zeroed


@dataclass(frozen=True)
class MLPConfig:
    """Shape of an MLP.

    Args:
        shape: of one sample, of any number of dimensions.
        width: features of the hidden layers.
        depth: residual blocks.
        embedding: features of the embedding of time and label.
        fastest: largest frequency of the time embedding (see `TimeEmbedding`).
        slowest: smallest frequency.
        two_times: whether the network takes a second time s.
        classes: number of labels (0: unconditional).

    Raises:
        ValueError: a size is not positive.
    """

    shape: tuple[int, ...] = (2,)
    width: int = 128
    depth: int = 3
    embedding: int = 64
    fastest: float = 5.0
    slowest: float = 0.5
    two_times: bool = False
    classes: int = 0

    def __post_init__(self) -> None:
        if not self.shape or min(*self.shape, self.width, self.depth, self.embedding) < 1:
            raise ValueError(f"shape, width, depth and embedding must be positive, got {self}")


class MLP(nn.Module):
    """h ← h + W2·SiLU(W1·SiLU(h) + E·e), `depth` times, between two linear layers; the last starts at zero.

    Args:
        config: its shape.

    Example:
        >>> import torch
        >>> MLP(MLPConfig(shape=(2,), two_times=True))(torch.zeros(4, 2), torch.ones(4), torch.zeros(4)).shape
        torch.Size([4, 2])
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        size, width = math.prod(config.shape), config.width
        self.embedding = TimeEmbedding(
            config.embedding, config.fastest, config.slowest, config.two_times, config.classes
        )
        self.first = nn.Linear(size, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.told = nn.ModuleList(nn.Linear(config.embedding, width) for _ in range(config.depth))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(config.depth))
        self.last = zeroed(nn.Linear(width, size))

    def forward(
        self,
        x: Float[Tensor, "batch *shape"],
        t: Float[Tensor, "batch"],
        s: Float[Tensor, "batch"] | None = None,
        label: Shaped[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """The network's raw value.

        Args:
            x: samples.
            t: time, as the path tells it.
            s: time to jump to, as the path tells it; None: s = t.
            label: class of each sample; None or `classes` means none.
        """
        return self.last(F.silu(self.features(x, t, s, label)[-1])).reshape(x.shape)

    def features(
        self, x: Tensor, t: Tensor, s: Tensor | None = None, label: Tensor | None = None
    ) -> list[Float[Tensor, "batch width"]]:
        """The hidden state after every block, for heads that judge by features."""
        embedding = self.embedding(t, s, label)
        hidden, states = self.first(x.flatten(1)), []
        for inner, told, outer in zip(self.inner, self.told, self.outer, strict=True):
            hidden = hidden + outer(F.silu(inner(F.silu(hidden)) + told(embedding)))
            states.append(hidden)
        return states
