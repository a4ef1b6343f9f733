"""What an actor of offline reinforcement learning can do, however it makes its actions."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Actor(nn.Module, ABC):
    """Gives actions for states: from noise, or without.

    Actions are flattened chunks in [−1, 1].

    Args:
        numbers: of an action, or of a whole chunk.

    Attributes:
        draws: how many normal vectors an action takes.
    """

    draws: int = 1

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers

    @abstractmethod
    def act(
        self, state: Float[Tensor, "batch state"], noise: Float[Tensor, "batch draws numbers"]
    ) -> Float[Tensor, "batch numbers"]:
        """The action that the noise leads to, with its graph, in [−1, 1].

        Args:
            state: normalised.
            noise: standard normal.
        """

    @abstractmethod
    def behaviour_loss(
        self,
        state: Float[Tensor, "batch state"],
        action: Float[Tensor, "batch numbers"],
        generator: torch.Generator,
    ) -> dict[str, Tensor]:
        """How far the actor is from what was done: "loss", and whatever else the log should tell.

        Args:
            state: normalised.
            action: that was done there, normalised.
            generator: of noise and times.
        """

    def noise(self, state: Float[Tensor, "batch state"], generator: torch.Generator) -> Tensor:
        """Normal draws for one action per state."""
        shape = (len(state), self.draws, self.numbers)
        return torch.randn(shape, dtype=state.dtype, device=state.device, generator=generator)
