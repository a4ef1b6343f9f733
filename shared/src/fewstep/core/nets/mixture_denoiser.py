"""A denoiser of each token's embedding that begins as the exact one of an autoregressive model."""

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core.clock import time_of_clock
from fewstep.core.mixture_flow import MixtureFlow
from fewstep.core.nets.autoregressive import Autoregressive


class MixtureDenoiser(nn.Module):
    """x0 of a noisy embedding by a model's probabilities, whose weights may be trained, and a rest.

        D(x, t | e) = Σ_k softmax_k(log p(k | e) − ‖x − a·e_k‖²/(2·sigma²))·e_k + rest(x, t | e)

    with e the embeddings before. With the weights of a teacher and a rest that begins at zero it begins as
    the teacher's exact denoiser. The probabilities learn which tokens there are, the rest how far samples
    lie from embeddings.

    Args:
        model: whose log-probabilities enter; trained with this network.
        flow: over the embeddings of the model's tokens.
        rest: called as this network, such as a new `ConditionalDenoiser`, which begins at zero.
    """

    def __init__(self, model: Autoregressive, flow: MixtureFlow, rest: nn.Module) -> None:
        super().__init__()
        self.model, self.flow, self.rest = model, flow, rest

    def forward(
        self,
        x: Float[Tensor, "batch tokens features"],
        t: Float[Tensor, "batch tokens"],
        before: Float[Tensor, "batch tokens features"],
        label: Shaped[Tensor, "batch"] | None = None,
    ) -> Float[Tensor, "batch tokens features"]:
        """The estimate of every place; the arguments are those of `ConditionalDenoiser`."""
        times = time_of_clock(self.flow.path, t.flatten()).view(t.shape)
        return self.flow.x0(x, times, self.model.log_p(before, label)) + self.rest(x, t, before, label)
