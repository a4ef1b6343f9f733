"""What the two heads of an RDDM network may be, and how the published sampler reads them."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from fewstep.core.predictions import Affine, Prediction, Weights

# The published code divides by this where nothing of the clean image is left, instead of by 0.
LEAST_CLEAN_SHARE = 1e-6


@dataclass(frozen=True)
class TwoHeads(Prediction):
    """Two heads, chunked along dimension 1: R = y − x0 or x0, and ε or its sum with the first head.

    Args:
        name: of the prediction.
        first: "residual" or "x0".
        second: "noise" or "sum".

    Reference: Liu et al. 2024, "Residual Denoising Diffusion Models", published code.
    """

    name: str
    first: str
    second: str
    heads = 2

    @property
    def needs_y(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the targets contain the degraded image."""
        return self.first == "residual"

    def requires_y(self, path) -> bool:
        return False

    def targets_at(self, point) -> tuple[Weights, ...]:
        first = Weights(-1.0, 0.0, 1.0) if self.first == "residual" else Weights(1.0, 0.0, 0.0)
        added = first if self.second == "sum" else Weights(0.0, 0.0, 0.0)
        return first, added._replace(eps=1.0)

    def x0_at(self, point) -> Affine:
        if self.first == "x0":
            return Affine(0.0, (1.0, 0.0), 0.0)
        noise = -point.sigma
        residual = -point.b - (noise if self.second == "sum" else 0.0)
        total = point.a + point.b
        return Affine(1 / total, (residual / total, noise / total), 0.0)

    def eps_at(self, point) -> Affine:
        return Affine(0.0, (-1.0 if self.second == "sum" else 0.0, 1.0), 0.0)


class Reading(NamedTuple):
    """What a call of the network says: residual (clamped), noise, clean image (clamped)."""

    residual: Tensor
    noise: Tensor
    x0: Tensor


def read(
    objective: str,
    out: Float[Tensor, "batch heads h w"],
    x: Float[Tensor, "batch channels h w"],
    y: Float[Tensor, "batch channels h w"],
    coefficients: tuple[float, float, float],
    is_start: bool,
) -> Reading:
    """Read a network's output as the published sampler does.

    Args:
        objective: what the network predicts.
        out: its output.
        x: the state.
        y: the degraded image.
        coefficients: (1 − A, A, B) of the path at this time.
        is_start: it is the last time of the path, where the published code takes 1 − A for 10⁻⁶.
    """
    clean_share, done, sigma = coefficients
    first, *others = out.split(x.shape[1], dim=1)
    if objective == "pred_noise":
        share = LEAST_CLEAN_SHARE if is_start else clean_share
        x0 = ((x - done * y - sigma * first) / share).clamp(-1, 1)
        return Reading((y - x0).clamp(-1, 1), first, x0)
    if objective in ("pred_res", "pred_x0"):
        x0 = (y - first.clamp(-1, 1) if objective == "pred_res" else first).clamp(-1, 1)
        residual = (first if objective == "pred_res" else y - first).clamp(-1, 1)
        return Reading(residual, (x - y + clean_share * residual) / sigma, x0)
    noise = others[0] - first if objective.endswith("add_noise") else others[0]
    if objective.startswith("pred_x0"):
        return Reading((y - first).clamp(-1, 1), noise, first.clamp(-1, 1))
    residual = first.clamp(-1, 1)
    return Reading(residual, noise, (x - done * residual - sigma * noise).clamp(-1, 1))
