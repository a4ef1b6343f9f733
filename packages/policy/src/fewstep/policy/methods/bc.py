"""Behaviour cloning by regression: the mean action of a state."""

import torch
from jaxtyping import Float
from torch import Tensor

from ..nets.mlp import ActorConfig, perceptron
from ..rl.actor import Actor


class RegressionActor(Actor):
    """a = clamp(f_θ(s), ±1), trained by mean (f_θ(s) − a)²: what the others have to be better than.

    Args:
        config: of the network; embeddings of times are not used.

    Reference: Pomerleau 1991, "Efficient Training of Artificial Neural Networks for Autonomous Navigation".

    Example:
        >>> actor = RegressionActor(ActorConfig(action_dim=2, state_dim=5))
        >>> actor.act(torch.zeros(7, 5), torch.zeros(7, 1, 2)).shape
        torch.Size([7, 2])
    """

    def __init__(self, config: ActorConfig) -> None:
        super().__init__(config.action_dim)
        sizes = (config.state_dim, *(config.hidden,) * config.depth, config.action_dim)
        self.net = perceptron(sizes, config.activation)

    def act(
        self, state: Float[Tensor, "batch state"], noise: Float[Tensor, "batch draws numbers"]
    ) -> Float[Tensor, "batch numbers"]:
        """f_θ(s), clamped.

        Args:
            state: normalised.
            noise: without use.
        """
        return self.net(state).clamp(-1, 1)

    def behaviour_loss(
        self,
        state: Float[Tensor, "batch state"],
        action: Float[Tensor, "batch numbers"],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """mean (f_θ(s) − a)²."""
        return {"loss": (self.net(state) - action).square().mean()}
