"""A policy whose network is made for control on a CPU."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from .model import PolicyModel
from .nets.fast import FastUnet1D


def quickened(model: PolicyModel, dtype: torch.dtype | None = None) -> PolicyModel:
    """A copy of a policy for inference on the CPU, its temporal U-Net replaced by `FastUnet1D`.

    Args:
        model: with a temporal U-Net; it is left as it is.
        dtype: that the weights of the convolutions are stored in (None: as they are, the same actions up to
            rounding); torch.bfloat16 is faster still, and an output of the network then has an error of about
            one percent.

    Returns:
        A model to predict with; it cannot be trained or saved, nor leave the CPU.

    Raises:
        TypeError: the policy has another network, or dtype is not a floating-point type.

    Example:
        >>> from fewstep.policy.config import PolicyConfig
        >>> small = {"embedding": 16, "down_dims": (8, 16)}
        >>> model = PolicyModel(PolicyConfig({"state": (5,)}, 2, steps=2, network_options=small)).eval()
        >>> seen = {"state": torch.zeros(1, 2, 5)}
        >>> torch.allclose(quickened(model).predict(seen), model.predict(seen), atol=1e-5)
        True
    """
    made = PolicyModel(model.config)
    made.load_state_dict(model.state_dict())
    made.net = _Quick(made.net, dtype)
    return made.eval().requires_grad_(False)


class _Quick(nn.Module):
    """A `FastUnet1D` as a module of a policy."""

    def __init__(self, net: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.ask = FastUnet1D(net, dtype)
        self.config = self.ask.config

    def forward(
        self,
        x: Float[Tensor, "batch horizon numbers"],
        t: Shaped[Tensor, "*batch"] | float,
        s: Shaped[Tensor, "*batch"] | float | None = None,
        *,
        global_cond: Float[Tensor, "batch told"],
    ) -> Float[Tensor, "batch horizon numbers"]:
        return self.ask(x, t, s, global_cond=global_cond)
