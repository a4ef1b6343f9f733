"""RDDM's training losses: of every objective, and of the automatic choice between residual and noise."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from fewstep.core import paths

from .base import Level
from .rddm import RDDM
from .rddm_heads import LEAST_CLEAN_SHARE

LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}
# How far the share has to move for the choice to be made.
DECISION = 0.01


def rddm_loss(
    model: RDDM,
    x0: Float[Tensor, "batch 3 h w"],
    y: Float[Tensor, "batch 3 h w"],
    t: Shaped[Tensor, "batch"],
    noise: Float[Tensor, "batch 3 h w"],
    mask: Float[Tensor, "batch 1 h w"] | None = None,
    level: Level = None,
    loss: str = "l1",
) -> Float[Tensor, ""]:
    """The sum over heads of each one's mean distance from its target.

    Args:
        model: what is trained.
        x0: clean images in [-1, 1].
        y: degraded images in [-1, 1].
        t: times 0 … T − 1, one per image.
        noise: normal draws.
        mask: as of `RDDM.restore`.
        level: as of `RDDM.restore`.
        loss: "l1" as published for restoration, or "l2".

    Raises:
        ValueError: an unknown loss.

    Reference: Liu et al. 2024, "Residual Denoising Diffusion Models", equations 10 and 11.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(map(repr, LOSSES))}, got {loss!r}")
    prediction = model.config.prediction
    out = model.asked(y, mask, level).predict(model.path.corrupt(x0, t, noise, y), t.double())
    target = prediction.target(model.path, t, x0, noise, y)
    return prediction.heads * LOSSES[loss](out, target)


class AOSA(nn.Module):
    """Automatic choice of the objective of one head: residual or noise.

    While the learnable share α is within 0.01 of ½, an output is read both ways, as residual R̂, noise ε̂:
    R̃ = α R̂ + (1 − α) (y − x0(ε̂)), ε̃ = α ε(R̂) + (1 − α) ε̂, loss α |R̃ − R| + (1 − α) |ε̃ − ε|. Then the loss
    is that of the reading which won. A model of that objective is trained anew, as published.

    Args:
        path: of the model.

    Example:
        >>> choice = AOSA(paths.RDDM(schedule="converted"))
        >>> choice.objective is None, choice.share.item()
        (True, 0.5)

    Reference: Liu et al. 2024, "Residual Denoising Diffusion Models", section 4.2 (automatic objective
        selection).
    """

    def __init__(self, path: paths.RDDM) -> None:
        super().__init__()
        self.path = path
        self.share = nn.Parameter(torch.full((1,), 0.5))

    @property
    def objective(self) -> str | None:
        """The objective that was chosen: "pred_res" or "pred_noise"; None as long as none is."""
        distance = self.share.item() - 0.5
        if abs(distance) < DECISION:
            return None
        return "pred_res" if distance > 0 else "pred_noise"

    def forward(
        self,
        out: Float[Tensor, "batch 3 h w"],
        x: Float[Tensor, "batch 3 h w"],
        x0: Float[Tensor, "batch 3 h w"],
        y: Float[Tensor, "batch 3 h w"],
        t: Shaped[Tensor, "batch"],
        noise: Float[Tensor, "batch 3 h w"],
    ) -> Float[Tensor, ""]:
        """The loss of an output.

        Args:
            out: of the network, at x and t.
            x: noisy images.
            x0: clean images in [-1, 1].
            y: degraded images in [-1, 1].
            t: times 0 … T − 1, one per image.
            noise: what x was made with.
        """
        if self.objective is not None:
            return F.l1_loss(out, y - x0 if self.objective == "pred_res" else noise)
        clean_share, done, sigma = (c.to(x.dtype).view(-1, 1, 1, 1) for c in self.path.evaluate(t))
        divisor = torch.where(t.view(-1, 1, 1, 1) == self.path.t_max, LEAST_CLEAN_SHARE, clean_share)
        by_noise = y - ((x - done * y - sigma * out) / divisor).clamp(-1, 1)
        by_residual = (x - y + clean_share * out) / sigma
        share = self.share
        residual = F.l1_loss(share * out + (1 - share) * by_noise, y - x0)
        mixed = F.l1_loss(share * by_residual + (1 - share) * out, noise)
        return (share * residual + (1 - share) * mixed).squeeze()
