"""FlowChef: the state is steered by a gradient in x0, which costs no pass through the network."""

import torch
from jaxtyping import Float
from torch import Tensor

from fewstep.core.guidance.operators import LinearOperator
from fewstep.core.guidance.range_null import residual
from fewstep.core.step_info import StepInfo

LOSSES = ("mean", "sum")


class Steering:
    """Steers a sampler towards an observation y = A·x_data; a function for `on_step`.

    x_s <- x_s - scale·∇L(x0),  with x0 the newest estimate, taken at the step's start, and for each sample
        "mean": L = mean((A·x0 - y)²),   ∇L = 2·Aᵀ(A·x0 - y)/values of y  (the published loss and scale)
        "sum":  L = ½·sum((A·x0 - y)²),  ∇L = Aᵀ(A·x0 - y).

    On straight paths the Jacobian of x0 by the state is taken as the identity, so no gradient passes through
    the network and no call is added. The last step is not steered. With Euler steps of rectified flow this
    is the published sampler, in which the velocity of the step stays the one before steering.

    Args:
        operator: the degradation A.
        observed: y, one entry for each sample or one for all.
        scale: step size; the published default for pixels is 100 with the mean.
        loss: "mean" or "sum".
        steps: how many steps are steered, from the first; default: all but the last.

    Raises:
        ValueError: for an unknown loss, or (on a call) an observation of the wrong shape.

    Reference: Patel et al. 2024, "Steering Rectified Flow Models in the Vector Field for Controlled Image
    Generation" (FlowChef), algorithm 1.

    >>> from fewstep.core import paths, sample
    >>> from fewstep.core.guidance.operators import AveragePool
    >>> path, chef = paths.RectifiedFlow(), Steering(AveragePool(2), torch.full((1, 1, 1), 3.0), 1.0, "sum")
    >>> x = sample(lambda x, t: x, path, "ddim", 20, "uniform", x=torch.zeros(1, 1, 2), on_step=chef)
    >>> bool((x.mean() > 2.5).all())
    True
    """

    def __init__(
        self,
        operator: LinearOperator,
        observed: Float[Tensor, "entries *observed"],
        scale: float = 100.0,
        loss: str = "mean",
        steps: int | None = None,
    ) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
        self.operator = operator
        self.observed = observed
        self.scale = float(scale)
        self.loss = loss
        self.steps = steps

    def __call__(self, info: StepInfo) -> None:
        """Edit the state that a sampler reports."""
        if info.step < info.total and (self.steps is None or info.step <= self.steps):
            info.x.sub_(self.gradient(info.x0).to(info.x), alpha=self.scale)

    def gradient(self, x0: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *space"]:
        """∇L(x0)."""
        gap = residual(self.operator, x0, self.observed)
        gradient = self.operator.adjoint(gap)
        return gradient if self.loss == "sum" else torch.mul(gradient, 2.0 / gap[0].numel())
