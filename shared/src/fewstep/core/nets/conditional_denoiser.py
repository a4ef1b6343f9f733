"""A denoiser of each token's embedding, conditioned on the tokens before it."""

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.nets.autoregressive import AutoregressiveConfig, CodebookTransformer
from fewstep.core.nets.embedding import TimeEmbedding
from fewstep.core.nets.init import zeroed


class ConditionalDenoiser(CodebookTransformer):
    """x0 of a noisy embedding, given the embeddings before it: a transformer with a head that denoises.

    Args:
        config: its shape.
        codebook: embeddings of the tokens.

    Reference: Li et al. 2024, "Autoregressive Image Generation without Vector Quantization", section 3.3.
    """

    def __init__(self, config: AutoregressiveConfig, codebook: Float[Tensor, "codes features"]) -> None:
        super().__init__(config, codebook)
        width = config.width
        self.time = TimeEmbedding(width, fastest=20.0, slowest=0.5)
        self.noisy = nn.Linear(config.features, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.leave = zeroed(nn.Linear(width, config.features))

    def forward(
        self,
        x: Float[Tensor, "batch tokens features"],
        t: Float[Tensor, "batch tokens"],
        before: Float[Tensor, "batch tokens features"],
        label: Shaped[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch tokens features"]:
        """The estimate of every place.

        Args:
            x: noisy embeddings, each with its own time.
            t: of the normalised clock, in [0, 1].
            before: clean embeddings; place i is told those of 1 … i − 1.
            label: class of each sample.
        """
        hidden = self.trunk(self.after(before), label) + self.time(t.flatten()).unflatten(0, t.shape)
        hidden = hidden + self.noisy(x.to(self.noisy.weight))
        for layer in self.inner:
            hidden = hidden + F.silu(layer(F.silu(hidden)))
        return self.leave(F.silu(hidden))
