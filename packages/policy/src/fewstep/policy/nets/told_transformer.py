"""The transformer of Diffusion Policy behind the call that all chunk networks share."""

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .transformer import TransformerConfig, TransformerForDiffusion


class ToldTransformer(nn.Module):
    """A transformer that takes the observations of all steps as one row.

    Args:
        config: of the transformer; its condition has n_obs_steps tokens.

    Reference: Chi et al. 2023, "Diffusion Policy", section III-A.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = TransformerForDiffusion(config)

    def forward(
        self,
        x: Float[Tensor, "batch horizon numbers"],
        t: Shaped[Tensor, "*batch"] | float,
        *,
        global_cond: Float[Tensor, "batch told"],
    ) -> Float[Tensor, "batch horizon numbers"]:
        """Predict what the objective defines.

        Args:
            x: noisy chunk.
            t: times, one for all or one each.
            global_cond: the observations, the oldest step first.
        """
        return self.transformer(x, t, cond=global_cond.unflatten(1, (self.config.n_obs_steps, -1)))
